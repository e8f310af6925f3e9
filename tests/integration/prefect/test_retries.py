"""Flows of this process on a real server: their retries, and what ends a job that they wait for."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
import threading
import uuid
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


# Retries -------------------------------------------------------------------------------------------------------------


def test_a_retry_within_the_process_continues(tasks, witness):
    from prefect import flow

    witness.do("fail")
    seen = []

    @flow(retries=1)
    def twice():
        data = tasks.prepare(str(witness))
        if seen:
            witness.do("finish")
        seen.append(data)
        return tasks.train(str(witness), data)

    assert twice()["from"] == 2
    assert (witness.starts, witness.lines("prepared")) == ([0, 2], ["prepared"])


def test_a_task_that_is_retried_continues(tasks, witness):
    from prefect import flow

    witness.do("fail")

    def mend(task, task_run, state):
        from rallypoint.prefect import retry_condition

        witness.do("finish")
        return retry_condition(task, task_run, state)

    @flow
    def once():
        return tasks.train.with_options(retries=1, retry_condition_fn=mend)(str(witness), "data")

    assert once() == {"epochs": 4, "from": 2, "data": "data"}
    assert witness.starts == [0, 2]


def test_an_error_of_the_user_is_not_retried(tasks, tmp_path):
    from prefect import flow

    from rallypoint.errors import StageUserError

    folder = str(tmp_path)

    @tasks.python_task(retries=3)
    def wrong():
        with Path(folder, "calls").open("a") as file:
            file.write("call\n")
        return undefined_name  # noqa: F821 - it is the error

    @flow
    def fails():
        wrong()

    with pytest.raises(StageUserError, match="NameError"):
        fails()
    assert (tmp_path / "calls").read_text() == "call\n"


def test_a_result_needs_no_result_storage_of_prefect(tasks, witness, instance):
    from prefect import flow

    first = []

    @flow(retries=1, persist_result=True)
    def persisted():
        data = tasks.prepare(str(witness))
        if not first:
            first.append(data)
            shutil.rmtree(instance.home / "storage")
            msg = "the host is gone, with what it had stored"
            raise OSError(msg)
        return data

    assert persisted() == f"{witness}/data"
    assert witness.lines("prepared") == ["prepared"]


def test_a_retry_of_an_inline_subflow_continues(tasks, witness):
    from prefect import flow
    from prefect.runtime import flow_run

    witness.do("fail")
    subflows = []

    @flow
    def inner():
        subflows.append(flow_run.id)
        return tasks.train(str(witness), "data")

    @flow(retries=1)
    def outer():
        state = inner(return_state=True)
        witness.do("finish")
        return state.result()

    assert outer()["from"] == 2
    assert witness.starts == [0, 2]
    assert len(set(subflows)) == 2


def test_a_cache_policy_of_the_user_comes_first(tasks, witness, instance):
    from prefect import flow
    from prefect.cache_policies import DEFAULT

    cached = tasks.prepare.with_options(cache_policy=DEFAULT, persist_result=True)
    seen = []

    @flow(retries=2)
    def thrice():
        state = cached(str(witness), return_state=True)
        seen.append(state.name)
        if len(seen) == 2:
            shutil.rmtree(instance.home / "storage")
        if len(seen) < 3:
            msg = "again"
            raise OSError(msg)
        return state.result()

    assert thrice() == f"{witness}/data"
    assert seen == ["Completed", "Cached", "Completed"]
    assert witness.lines("prepared") == ["prepared"]


def test_a_transaction_that_fails_forgets_no_stage(tasks, witness):
    from prefect import flow
    from prefect.transactions import transaction

    seen = []

    @flow(retries=1)
    def twice():
        with transaction():
            data = tasks.prepare(str(witness))
            seen.append(data)
            if len(seen) == 1:
                msg = "the transaction does not commit"
                raise OSError(msg)
        return data

    assert twice() == f"{witness}/data"
    assert (len(seen), witness.lines("prepared")) == (2, ["prepared"])


def test_a_mapped_stage_is_found_by_its_inputs(tasks, tmp_path):
    from prefect import flow

    @tasks.python_task
    def visit(folder: str, city: str) -> str:
        with Path(folder, "visits").open("a") as file:
            file.write(f"{city}\n")
        return city.upper()

    orders = iter([["oslo", "rome"], ["rome", "lima", "oslo"]])

    @flow(retries=1)
    def visits():
        cities = next(orders)
        found = visit.map(str(tmp_path), cities).result()
        if len(cities) == 2:
            msg = "the list comes in another order now"
            raise OSError(msg)
        return found

    assert visits() == ["ROME", "LIMA", "OSLO"]
    assert sorted((tmp_path / "visits").read_text().split()) == ["lima", "oslo", "rome"]


def test_a_limit_of_accelerators_holds_for_mapped_stages(tasks, api, tmp_path):
    from prefect import flow

    tag = f"gpu-{uuid.uuid4().hex[:8]}"
    api.post("/v2/concurrency_limits/", name=f"tag:{tag}", limit=1)

    @tasks.python_task(tags=[tag])
    def use(folder: str, number: int) -> int:
        import time

        log = Path(folder, "uses")
        for what in ("takes", "frees"):
            with log.open("a") as file:
                file.write(f"{what} {number}\n")
            time.sleep(0.5)
        return number

    @flow
    def uses():
        return use.map(str(tmp_path), [1, 2]).result()

    assert uses() == [1, 2]
    lines = (tmp_path / "uses").read_text().splitlines()
    assert sorted([lines[:2], lines[2:]]) == [["takes 1", "frees 1"], ["takes 2", "frees 2"]]


# What ends a job -----------------------------------------------------------------------------------------------------


def test_a_task_run_that_is_cancelled_stops_its_job(tasks, api, witness, until):
    from prefect import flow
    from prefect.runtime import flow_run

    witness.do("wait")
    ids, states = [], []

    @flow
    def waits():
        ids.append(flow_run.id)
        states.append(tasks.train(str(witness), "data", return_state=True))
        return "the flow goes on"

    thread = threading.Thread(target=contextvars.copy_context().run, args=(waits,))  # with the server's address
    thread.start()
    until(lambda: witness.waits, "the training waits")
    (run,) = until(lambda: api.task_runs(ids[0]), "the server knows the task run")
    api.post(f"/task_runs/{run['id']}/set_state", state={"type": "CANCELLED", "name": "Cancelled"}, force=True)
    until(lambda: not witness.job_lives, "the job has ended", deadline=20)
    thread.join(60)
    assert "cancelled" in str(states[0].message).lower()


async def test_code_that_stops_waiting_stops_the_job(tasks, witness, until):
    from prefect import flow

    witness.do("wait")

    @flow
    async def impatient():
        training = asyncio.create_task(tasks.train.aio(str(witness), "data"))
        await asyncio.to_thread(until, lambda: witness.waits, "the training waits")
        training.cancel()
        with pytest.raises(asyncio.CancelledError):
            await training
        return "the flow goes on"

    assert await impatient() == "the flow goes on"
    until(lambda: not witness.job_lives, "the job has ended", deadline=20)


@pytest.mark.parametrize("how", ["call", "submit", "await"])
async def test_a_timeout_stops_the_job_and_says_so(tasks, witness, until, how):
    from prefect import flow

    witness.do("wait")
    limited = tasks.train.with_options(timeout_seconds=6)

    @flow
    async def slow():
        if how == "await":
            return await limited.aio(str(witness), "data")
        return limited.submit(str(witness), "data").result() if how == "submit" else limited(str(witness), "data")

    state = await slow(return_state=True)
    assert "timed out" in str(state.message).lower() or "timeout" in str(state.message).lower()
    until(lambda: not witness.job_lives, "the job has ended", deadline=20)
    assert witness.starts == [0]
