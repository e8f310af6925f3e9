"""Flow runs that are cancelled as the UI does it: their jobs are stopped, whatever becomes of the process that waits.

===================================  ===================================================================================
what Prefect does to the task        the test
===================================  ===================================================================================
a signal: called directly, awaited   `test_a_cancelled_run_stops_its_job_within_ten_seconds`
nothing: submitted to threads        the same
nothing, and its process is killed:  the same, and `test_a_guard_stops_the_job_of_a_cancelled_run_and_of_no_other`
runners of processes, Dask, Ray
a signal, with a temporary cluster   the same: it is stopped too
on a process worker, which ends the  `test_a_cancelled_run_on_a_worker_stops_its_job_too`
group of processes
SIGKILL 30 s later, if it hangs      `test_a_job_whose_flow_hangs_is_stopped_by_the_flows_hook`
the job itself does not want to end  `test_a_job_that_ignores_signals_is_killed_before_its_flow_is`
nothing, for it has no process       `test_served.test_a_restarted_serve_leaves_jobs_to_the_retry_and_to_the_reaper`
an eviction looks the same           `test_served.test_an_evicted_flow_leaves_its_job_to_the_retry`
the timeout of a task                `test_retries.test_a_timeout_stops_the_job_and_says_so`
the task run's state is *Cancelled*  `test_retries.test_a_task_run_that_is_cancelled_stops_its_job`
cancelled by the flow's own code     `test_retries.test_code_that_stops_waiting_stops_the_job`
retried after it                     `test_a_cancelled_run_that_is_retried_continues`
===================================  ===================================================================================

The runs of this file start at once and wait, because most of the time that a run takes is waiting.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid

import pytest

from rallypoint.prefect.guard import Ward
from rallypoint.prefect.places import find_place
from rallypoint.stages.attempt import Request
from rallypoint.stages.key import StageKey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WAYS = [
    ("pipeline", "direct"),
    ("pipeline", "submit"),
    ("async-pipeline", "await"),
    ("async-pipeline", "submit"),
    ("pool-pipeline", None),
    ("dask-pipeline", None),
    ("ray-pipeline", None),
    ("service-pipeline", None),
]
STUBBORN, HANGING = ("pipeline", "stubborn"), ("hooked-pipeline", None)


@pytest.fixture(scope="module")
def fleet(api, served, witnesses, until):
    """Runs whose trainings wait: the flow run's id and the witness, by the way."""
    runs = {}
    for name, how in [*WAYS, STUBBORN, HANGING]:
        if name not in served:
            continue
        witness = witnesses()
        witness.do("refuse" if how == "stubborn" else "wait")
        more = {"how": how} if how not in {None, "stubborn"} else {}
        runs[name, how] = (api.start(served[name], folder=str(witness), **more), witness)
    for way, (_, witness) in runs.items():
        until(lambda witness=witness: witness.waits, f"the training of {way} waits", deadline=240)
    # These two take half a minute, so they are asked to end first and looked at last.
    flow_run, witness = runs[HANGING]
    os.kill(witness.flow_process, signal.SIGSTOP)
    api.cancel(flow_run)
    api.cancel(runs[STUBBORN][0])
    return runs


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_a_cancelled_run_stops_its_job_within_ten_seconds(fleet, api, until, name, how):
    if (name, how) not in fleet:
        pytest.skip(f"CANCELLING THE {name.upper()} WAS NOT TESTED: prefect-dask and prefect-ray are not installed")
    flow_run, witness = fleet[name, how]
    began = time.monotonic()
    api.cancel(flow_run)
    until(lambda: not witness.job_lives, "the job has ended")
    assert time.monotonic() - began < 10
    api.ends(flow_run, "CANCELLED")
    assert witness.starts == [0]
    if name == "service-pipeline":
        until(lambda: not witness.service_lives, "the service has ended too")


def test_a_cancelled_run_on_a_worker_stops_its_job_too(deploy, instance, api, witness, until):
    deployment = deploy("processes")
    instance.worker("processes")
    witness.do("wait")
    flow_run = api.start(deployment, folder=str(witness))
    until(lambda: witness.waits, "the training waits")
    began = time.monotonic()
    api.cancel(flow_run)
    until(lambda: not witness.job_lives, "the job has ended")
    assert time.monotonic() - began < 10
    api.ends(flow_run, "CANCELLED")
    instance.end("worker")


async def test_a_guard_stops_the_job_of_a_cancelled_run_and_of_no_other(prefect, tasks, api, witness, until):
    flow = api.post("/flows/", name="pipeline")["id"]
    flow_run = uuid.UUID(api.post("/flow_runs/", flow_id=flow, state={"type": "RUNNING", "name": "Running"})["id"])
    place, key = await find_place(), StageKey((str(flow_run), "pipeline", "train"))
    witness.do("wait")
    started = await place.engine(key).start(tasks.train.job(str(witness), "data"), Request(owner="worker"))
    until(lambda: witness.waits, "the training waits")
    number = started.attempt.record.number
    ward = Ward(flow_run=flow_run, root=flow_run, place=place, key=key, number=number, owner="worker")
    assert Ward.from_json(json.loads(json.dumps(ward.to_json()))) == ward
    assert not await ward.stop_if_cancelled(patience=0)
    assert witness.job_lives
    api.cancel(flow_run)
    assert await ward.stop_if_cancelled()
    assert not witness.job_lives


def test_a_cancelled_run_that_is_retried_continues(fleet, api):
    flow_run, witness = fleet["pipeline", "direct"]
    api.ends(flow_run, "CANCELLED")
    witness.do("finish")
    api.retry(flow_run, witness)
    api.ends(flow_run, "COMPLETED")
    assert witness.starts == [0, 2]


def test_a_job_that_ignores_signals_is_killed_before_its_flow_is(fleet, api):
    flow_run, witness = fleet[STUBBORN]
    api.ends(flow_run, "CANCELLED")
    assert not witness.job_lives
    assert witness.starts == [0]


def test_a_job_whose_flow_hangs_is_stopped_by_the_flows_hook(fleet, api):
    flow_run, witness = fleet[HANGING]
    api.ends(flow_run, "CANCELLED")
    assert not witness.job_lives
    assert witness.starts == [0]
