"""The five promises for stages that wait in their worker, and that never two copies of the user's code are alive."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress

import psutil
import pytest
from airflow_instance import Component

from rallypoint.worker.supervisor import read_json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture
def witness(tmp_path):
    """The file that the user's code writes; at no time were two copies of it alive."""
    path = tmp_path / "witness.txt"
    yield path
    assert "beside" not in (path.read_text() if path.exists() else "")


@contextmanager
def told(witness, word):
    """Tell the code to ``fail`` or to ``hold`` after its third epoch, for as long as this lasts."""
    file = witness.with_name(f"{witness.name}.{word}")
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def starts(witness):
    return [line.rpartition(" pid ")[0] for line in witness.read_text().splitlines()]


def started(airflow, dag_id, witness, task="count"):
    run = airflow.start(dag_id, {"witness": str(witness)})
    return run, airflow.wait_for_step(dag_id, run, task, 3)


def failed(airflow, dag_id, witness):
    with told(witness, "fail"):
        run = airflow.start(dag_id, {"witness": str(witness)})
        airflow.api.wait_for_run(dag_id, run, state="failed", timeout=120)
    return run


def cleared(airflow, dag_id, run, task="count", **options):
    airflow.api.clear(dag_id, run, [task], **options)
    airflow.api.wait_for_run(dag_id, run, timeout=120)


# Processes die -------------------------------------------------------------------------------------------------------


def test_a_scheduler_that_dies_with_its_workers_restarts_no_job(airflow, witness):
    with told(witness, "hold"):
        run, _ = started(airflow, "in_worker_retried", witness)
        airflow.instance.kill(Component.SCHEDULER)
        airflow.instance.restart(Component.SCHEDULER)
        airflow.api.wait_until(
            lambda: airflow.api.task_instance("in_worker_retried", run, "count").try_number == 2 or None,
            "the second try",
            timeout=180,
        )
    airflow.api.wait_for_run("in_worker_retried", run, timeout=120)
    assert airflow.api.xcom("in_worker_retried", run, "count") == {"first": 0, "attempt": 1}
    assert starts(witness) == ["attempt 1 first 0"]


def test_a_worker_that_is_killed_after_the_jobs_end_loses_no_result(airflow, tmp_path):
    """Two workers: one dies before the outcome is recorded, the other one before it is delivered."""
    armed = [airflow.instance.home.parent / point for point in ("after-end", "after-outcome")]
    for file in armed:
        file.touch()
    witnesses = [tmp_path / "one", tmp_path / "two"]
    runs = [airflow.start("in_worker_retried", {"witness": str(witness)}) for witness in witnesses]
    for run, witness in zip(runs, witnesses, strict=True):
        airflow.api.wait_for_run("in_worker_retried", run, timeout=240)
        assert airflow.api.task_instance("in_worker_retried", run, "count").try_number == 2
        assert airflow.api.xcom("in_worker_retried", run, "count") == {"first": 0, "attempt": 1}
        assert starts(witness) == ["attempt 1 first 0"]
    assert not [file for file in armed if file.exists()]


@pytest.mark.parametrize("who", ["supervisor", "everything"])
def test_a_lost_job_is_continued_by_the_automatic_retry(airflow, witness, who):
    with told(witness, "hold"):
        run, snapshot = started(airflow, "in_worker_retried", witness)
        attempt = snapshot.entry.record.id
        folder = airflow.instance.home / "rallypoint" / "runs" / attempt
        supervisor = read_json(str(folder / "started.json"))["pid"]
        below = [child.pid for child in psutil.Process(supervisor).children(recursive=True)]
        for pid in {"supervisor": [supervisor], "everything": [supervisor, *below]}[who]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        airflow.api.wait_until(lambda: not airflow.jobs_alive(attempt) or None, f"the end of {attempt}", timeout=40)
    airflow.api.wait_for_run("in_worker_retried", run, timeout=120)
    assert airflow.api.xcom("in_worker_retried", run, "count") == {"first": 3, "attempt": 2}
    assert [one.state for one in airflow.attempts("in_worker_retried", run, "count")] == ["lost", "succeeded"]
    assert starts(witness) == ["attempt 1 first 0", "attempt 2 first 3"]


# A person clears, or time is over ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dag_id", ["in_worker", "in_triggerer"])
def test_clearing_a_waiting_stage_stops_its_job_before_the_next_one_starts(airflow, witness, dag_id):
    with told(witness, "hold"):
        run, _ = started(airflow, dag_id, witness)
        airflow.api.clear(dag_id, run, ["count"])
        airflow.wait_for_step(dag_id, run, "count", 4, attempt=2)
        if dag_id == "in_triggerer":  # the first try's trigger asks for the end of its job late, and harms nothing
            words = "attempt 1 was stopped: the task was cleared", "belongs to a newer try by now: left alone"
            airflow.api.wait_until(
                lambda: any(word in airflow.api.log(dag_id, run, "count", 1) for word in words) or None,
                "on_kill of the first try's trigger",
                timeout=90,
            )
    airflow.api.wait_for_run(dag_id, run, timeout=120)
    assert airflow.api.xcom(dag_id, run, "count") == {"first": 3, "attempt": 2}
    assert [one.state for one in airflow.attempts(dag_id, run, "count")] == ["cancelled", "succeeded"]
    assert starts(witness) == ["attempt 1 first 0", "attempt 2 first 3"]


def test_clearing_a_failed_stage_continues_and_clearing_a_succeeded_one_starts_over(airflow, witness):
    run = failed(airflow, "in_worker", witness)
    cleared(airflow, "in_worker", run)
    assert airflow.api.xcom("in_worker", run, "count") == {"first": 3, "attempt": 2}
    cleared(airflow, "in_worker", run)
    assert airflow.api.xcom("in_worker", run, "count") == {"first": 0, "attempt": 3}
    assert [one.entry.record.generation for one in airflow.attempts("in_worker", run, "count")] == [1, 1, 2]
    assert starts(witness) == ["attempt 1 first 0", "attempt 2 first 3", "attempt 3 first 0"]


@pytest.mark.parametrize("dag_id", ["in_worker_limited_run", "in_triggerer_limited_run"])
def test_the_timeout_of_a_whole_run_stops_its_jobs_and_says_so(airflow, witness, dag_id):
    with told(witness, "hold"):
        run, snapshot = started(airflow, dag_id, witness)
        airflow.api.wait_for_run(dag_id, run, state="failed", timeout=120)
        attempt = snapshot.entry.record.id
        airflow.api.wait_until(lambda: not airflow.jobs_alive(attempt) or None, f"the end of {attempt}", timeout=40)
    (ended,) = airflow.attempts(dag_id, run, "count")
    assert ended.state == "cancelled"
    assert "timed out" in ended.entry.outcome.failure.message


# Something changed before the retry ----------------------------------------------------------------------------------


def test_a_changed_argument_starts_from_scratch_and_the_log_says_which(airflow, witness):
    run = failed(airflow, "in_worker", witness)
    airflow.api.request("POST", "/variables", json={"key": "plain_rate", "value": "0.5"})
    try:
        cleared(airflow, "in_worker", run)
    finally:
        airflow.api.request("DELETE", "/variables/plain_rate")
    assert airflow.api.xcom("in_worker", run, "count") == {"first": 0, "attempt": 2}
    assert "because the work changed: argument rate changed" in airflow.api.log("in_worker", run, "count")


def test_a_stage_whose_upstream_was_cleared_too_starts_from_scratch(airflow, witness):
    run = failed(airflow, "in_worker_chain", witness)
    before = airflow.api.xcom("in_worker_chain", run, "make")
    cleared(airflow, "in_worker_chain", run, "make", include_downstream=True)
    result = airflow.api.xcom("in_worker_chain", run, "read")
    assert (result["first"], result["attempt"]) == (0, 2)
    assert result["data"] == airflow.api.xcom("in_worker_chain", run, "make") != before


def test_each_map_index_is_a_stage_of_its_own(airflow):
    run = airflow.start("in_worker_mapped")
    airflow.api.wait_for_run("in_worker_mapped", run, timeout=120)
    results = [airflow.api.xcom("in_worker_mapped", run, "square", map_index=index) for index in (0, 1)]
    stage = f"in_worker_mapped/{run}/square"
    assert results == [{"square": 4, "stage": f"{stage}/0"}, {"square": 9, "stage": f"{stage}/1"}]
