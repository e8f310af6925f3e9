"""Deployments on a real server: retry and cancel as the UI does them, killed processes, and what becomes of jobs."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
WAYS = [("pipeline", "direct"), ("pipeline", "submit"), ("async-pipeline", None), ("pool-pipeline", None)]


@pytest.fixture
def start(api, served):
    def run(name, witness, **more):
        return api.start(served[name], folder=str(witness), **more)

    return run


@pytest.fixture
def waiting(start, witness, until):
    """Starts a pipeline whose training waits after its second epoch."""

    def run(name="pipeline", how=None):
        witness.do("wait")
        flow_run = start(name, witness, **({"how": how} if how else {}))
        until(lambda: witness.waits, "the training waits")
        return flow_run

    return run


# Retry ---------------------------------------------------------------------------------------------------------------


def test_a_retry_returns_what_succeeded_and_continues_what_failed(start, api, witness, until):
    witness.do("fail")
    flow_run = start("pipeline", witness)
    api.ends(flow_run, "FAILED")
    failure = api.artifacts(flow_run)["pipeline-train-failure"]["data"]
    assert "ValueError: loss is NaN" in failure
    assert not api.events("prefect.asset.materialization.succeeded", any_resource={"id": [f"test://models{witness}"]})
    witness.do("finish")
    api.retry(flow_run, witness)
    api.ends(flow_run, "COMPLETED")
    assert witness.lines("prepared") == ["prepared"]
    assert witness.starts == [0, 2]
    until(lambda: _announcements(api, witness), "the asset is announced")
    # Whoever waits for the asset starts once, however often the run is retried.
    api.retry(flow_run, witness)
    api.ends(flow_run, "COMPLETED")
    assert witness.starts == [0, 2]
    (event,) = _announcements(api, witness)
    assert event["payload"]["metrics"] == {"loss": 0.25}
    assert {"stage", "attempt", "artifacts", "uri"} < set(event["payload"])


def test_a_killed_flow_leaves_its_job_to_the_retry(waiting, api, witness, until):
    flow_run = waiting("pipeline", "submit")
    os.kill(witness.flow_process, signal.SIGKILL)
    api.ends(flow_run, "CRASHED")
    assert witness.job_lives
    api.retry(flow_run, witness)
    until(lambda: "reattached" in api.logs(flow_run), "the retry reattached")
    witness.do("finish")
    api.ends(flow_run, "COMPLETED")
    assert witness.starts == [0]
    shown = api.artifacts(flow_run)
    assert shown["pipeline-train-progress"]["data"] == 100
    assert len(_announcements(api, witness)) == 1


# Cancel --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_a_cancelled_run_stops_its_job_within_ten_seconds(waiting, api, witness, until, name, how):
    flow_run = waiting(name, how)
    began = time.monotonic()
    api.cancel(flow_run)
    until(lambda: not witness.job_lives, "the job has ended")
    assert time.monotonic() - began < 10
    api.ends(flow_run, "CANCELLED")
    assert witness.starts == [0]


def test_a_cancelled_run_on_a_worker_stops_its_job_too(on_a_worker, api, witness, until):
    witness.do("wait")
    flow_run = api.start(on_a_worker, folder=str(witness))
    until(lambda: witness.waits, "the training waits")
    began = time.monotonic()
    api.cancel(flow_run)
    until(lambda: not witness.job_lives, "the job has ended")
    assert time.monotonic() - began < 10
    api.ends(flow_run, "CANCELLED")


def test_a_cancelled_run_that_is_retried_continues(waiting, api, witness, until):
    flow_run = waiting()
    api.cancel(flow_run)
    api.ends(flow_run, "CANCELLED")
    witness.do("finish")
    api.retry(flow_run, witness)
    api.ends(flow_run, "COMPLETED")
    assert witness.starts == [0, 2]


@pytest.mark.parametrize(("name", "how"), WAYS[1:3])
def test_an_evicted_flow_leaves_its_job_to_the_retry(waiting, api, witness, until, name, how):
    flow_run = waiting(name, how)
    os.kill(witness.flow_process, signal.SIGTERM)  # as a node that is drained does
    api.ends(flow_run, "CRASHED")
    until(lambda: not psutil.pid_exists(witness.flow_process), "the flow's process has ended")
    assert witness.job_lives
    api.retry(flow_run, witness)
    until(lambda: "reattached" in api.logs(flow_run), "the retry reattached")
    witness.do("finish")
    api.ends(flow_run, "COMPLETED")
    assert witness.starts == [0]


# Without anybody to stop them ----------------------------------------------------------------------------------------


def test_a_restarted_server_of_deployments_leaves_jobs_and_the_reaper_stops_those_that_are_cancelled(
    instance, api, witness, until
):
    instance.run("short-lived", ("pipelines.py", "short"), cwd=HERE)
    deployment = until(lambda: api.deployment("pipeline/short"), "the deployment")
    witness.do("wait")
    flow_run = api.start(deployment, folder=str(witness))
    until(lambda: witness.waits, "the training waits")
    instance.end("short-lived")
    until(lambda: not psutil.pid_exists(witness.flow_process), "the flow's process has ended")
    assert witness.job_lives
    instance.run("reaper", ("-m", "rallypoint.prefect.reaper"))
    reaper = until(lambda: api.deployment("rallypoint-reaper/reaper"), "the reaper")
    until(lambda: api.post("/automations/filter"), "the reaper's trigger")
    for _ in range(5):  # the server's triggers learn of a new one a moment later
        api.cancel(flow_run)
        with suppress(AssertionError):
            until(lambda: not witness.job_lives, "the reaper has stopped the job", deadline=30)
            break
    assert not witness.job_lives
    api.client.delete(f"/deployments/{reaper}")
    instance.end("reaper")


def _announcements(api, witness):
    wanted = {"id": [f"test://models{witness}"]}
    return api.events("prefect.asset.materialization.succeeded", any_resource=wanted)
