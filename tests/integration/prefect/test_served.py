"""Deployments on a real server: every way in which a flow run goes on, and what its stages do then.

Each way with what Prefect keeps of the run and what it does to the task that was running, and the test that shows the
stages return, continue or reattach all the same. Where nothing else is said the test is in this file.

==========================  ========================================================================================
a task's own retry          same task run: `test_retries.test_a_task_that_is_retried_continues`
``flow(retries=1)``         new task runs: `test_retries.test_a_retry_within_the_process_continues`
inline subflows             are new runs in a retry, except those that completed and whose result Prefect keeps:
                            `test_a_retry_continues_in_an_inline_subflow`, and within a process
                            `test_retries.test_a_retry_of_an_inline_subflow_continues`
*Retry* in the UI           new task runs and a new process:
                            `test_a_retry_returns_what_succeeded_and_continues_what_failed`, which a browser
                            presses in `tests/e2e/test_prefect_browser.py`
*Pause* and *Resume*        as above, but the run's count stays 1:
                            `test_a_suspended_run_that_is_resumed_repeats_nothing`
a deployed child's parent   is retried: another flow run:
                            `test_a_parent_that_is_retried_continues_its_deployed_child`
``persist_result=True``     from Prefect's cache, and without its storage from the ledger:
                            `test_retries.test_a_cache_policy_of_the_user_comes_first`
result storage gone         the first test here, and
                            `test_retries.test_a_result_needs_no_result_storage_of_prefect`
``with transaction():``     Prefect forgets what did not commit:
                            `test_retries.test_a_transaction_that_fails_forgets_no_stage`
equal inputs twice          one result in Prefect, an error here:
                            `test_flows.test_two_stages_of_one_name_are_an_error_that_says_what_to_do`
``.map()``, other order     `test_retries.test_a_mapped_stage_is_found_by_its_inputs`
``retry_condition_fn``      `test_retries.test_an_error_of_the_user_is_not_retried`
SIGKILL of the flow         the task run stays *Running*:
                            `test_a_killed_flow_leaves_its_job_to_the_retry`
SIGTERM, not cancelled      `test_an_evicted_flow_leaves_its_job_to_the_retry`, and where Prefect reschedules
                            the run `test_an_evicted_pod_is_followed_by_one_that_reattaches`
``serve`` restarted         the run stays *Running*:
                            `test_a_restarted_serve_leaves_jobs_to_the_retry_and_to_the_reaper`
a worker restarted          `test_a_restarted_worker_leaves_jobs_to_the_retry`
==========================  ========================================================================================

What cancels a run, and what does not, is in `test_cancel`.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HERE = Path(__file__).parent


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


@pytest.fixture
def reattaches(api, witness, until):
    """Retries a run whose job goes on, and sees that the retry waits for that job and for no other."""

    def retry(flow_run):
        assert witness.job_lives
        api.retry(flow_run, witness)
        until(lambda: "reattached" in api.logs(flow_run), "the retry reattached")
        witness.do("finish")
        api.ends(flow_run, "COMPLETED")
        assert witness.starts == [0]

    return retry


# Retry ---------------------------------------------------------------------------------------------------------------


def test_a_retry_returns_what_succeeded_and_continues_what_failed(start, api, witness, until, instance):
    witness.do("fail")
    flow_run = start("pipeline", witness)
    api.ends(flow_run, "FAILED")
    failure = api.artifacts(flow_run)["pipeline-train-failure"]["data"]
    assert "ValueError: loss is NaN" in failure
    assert not _announcements(api, witness)
    witness.do("finish")
    shutil.rmtree(instance.home / "storage", ignore_errors=True)  # the host is another one
    api.retry(flow_run, witness)
    api.ends(flow_run, "COMPLETED")
    assert witness.lines("prepared") == ["prepared"]
    assert witness.starts == [0, 2]
    _announcement(api, witness, until)
    picture = api.artifacts(flow_run)["pipeline-train-metrics"]["data"].partition(",")[2]
    assert {b">1<", b">4<"} <= set(re.findall(rb">\d<", base64.b64decode(picture)))  # the steps of both attempts
    # Whoever waits for the asset starts once, however often the run is retried.
    api.retry(flow_run, witness)
    api.ends(flow_run, "COMPLETED")
    assert witness.starts == [0, 2]
    event = _announcement(api, witness, until)
    assert event["payload"]["metrics"] == {"loss": 0.25}
    assert {"stage", "attempt", "artifacts", "uri"} < set(event["payload"])


def test_a_retry_continues_in_an_inline_subflow(start, api, witness):
    witness.do("fail")
    flow_run = start("nested-pipeline", witness)
    api.ends(flow_run, "FAILED")
    witness.do("finish")
    api.retry(flow_run, witness)
    api.ends(flow_run, "COMPLETED")
    assert (witness.lines("prepared"), witness.starts) == (["prepared"], [0, 2])
    first, *subflows = witness.lines("bodies")
    assert first == "prepared"  # and not again: Prefect keeps its result
    assert len(set(subflows)) == 2


def test_a_suspended_run_that_is_resumed_repeats_nothing(start, api, witness, until):
    witness.do("wait")
    flow_run = start("pipeline", witness, how="suspend")
    api.ends(flow_run, "PAUSED")
    until(lambda: witness.flow_ended, "the flow's process has ended")
    assert (witness.lines("prepared"), witness.starts) == (["prepared"], [])
    api.resume(flow_run)
    until(lambda: witness.waits, "the training waits")
    api.suspend(flow_run)
    witness.do("finish")
    until(lambda: witness.flow_ended, "the flow's process has ended")
    assert (api.state(flow_run)["type"], witness.lines("checked")) == ("PAUSED", [])
    api.resume(flow_run)
    api.ends(flow_run, "COMPLETED")
    done = [witness.lines("prepared"), witness.starts, witness.lines("checked")]
    assert done == [["prepared"], [0], ["checked"]]
    assert (len(witness.lines("flow")), api.run_count(flow_run)) == (3, 1)
    _announcement(api, witness, until)


def test_a_parent_that_is_retried_continues_its_deployed_child(prefect, served, witness):
    from prefect import flow
    from prefect.deployments import run_deployment

    witness.do("fail")
    children = []

    @flow(retries=1)
    def parent():
        child = run_deployment("pipeline/test", parameters={"folder": str(witness)}, poll_interval=0.5)
        children.append(child.id)
        witness.do("finish")
        if not child.state.is_completed():
            msg = "the child has failed"
            raise RuntimeError(msg)
        return child.name

    assert parent()
    assert len(set(children)) == 2
    assert (witness.lines("prepared"), witness.starts) == (["prepared"], [0, 2])


# Processes that end --------------------------------------------------------------------------------------------------


def test_a_killed_flow_leaves_its_job_to_the_retry(waiting, reattaches, api, witness, until):
    flow_run = waiting("pipeline", "submit")
    os.kill(witness.flow_process, signal.SIGKILL)
    # The runner sees it at once: no job holds the process's output, which it reads to the end first.
    api.ends(flow_run, "CRASHED", deadline=30)
    reattaches(flow_run)
    assert api.artifacts(flow_run)["pipeline-train-progress"]["data"] == 100
    _announcement(api, witness, until)


@pytest.mark.parametrize(("name", "how"), [("pipeline", "submit"), ("async-pipeline", "await")])
def test_an_evicted_flow_leaves_its_job_to_the_retry(waiting, reattaches, api, witness, until, name, how):
    flow_run = waiting(name, how)
    os.kill(witness.flow_process, signal.SIGTERM)  # as a node that is drained does
    api.ends(flow_run, "CRASHED")
    until(lambda: witness.flow_ended, "the flow's process has ended")
    reattaches(flow_run)


def test_an_evicted_pod_is_followed_by_one_that_reattaches(deploy, instance, api, witness, until):
    """What a pod of Kubernetes runs, without the worker that would start it: its pool has none."""
    pod = ("-m", "prefect", "flow-run", "execute")
    reschedules = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    witness.do("wait")
    flow_run = api.start(deploy("pods"), folder=str(witness))
    api.set_state(flow_run, "PENDING")
    instance.run("pod-1", (*pod, flow_run), env=reschedules)
    until(lambda: witness.waits, "the training waits")
    instance.end("pod-1", timeout=40)
    assert api.ends(flow_run, "SCHEDULED")["name"] == "AwaitingRetry"
    until(lambda: witness.flow_ended, "the flow's process has ended")
    assert witness.job_lives
    api.set_state(flow_run, "PENDING")
    instance.run("pod-2", (*pod, flow_run), env=reschedules)
    until(lambda: "reattached" in api.logs(flow_run), "the next pod reattached")
    witness.do("finish")
    api.ends(flow_run, "COMPLETED")
    instance.end("pod-2", timeout=40)
    assert (witness.starts, witness.lines("prepared")) == ([0], ["prepared"])


def test_a_restarted_worker_leaves_jobs_to_the_retry(deploy, reattaches, instance, api, witness, until):
    deployment = deploy("restarted")
    instance.worker("restarted", name="worker-1")
    witness.do("wait")
    flow_run = api.start(deployment, folder=str(witness))
    until(lambda: witness.waits, "the training waits")
    instance.end("worker-1")
    witness.end_flow()
    until(lambda: witness.flow_ended, "the flow's process has ended")
    assert api.state(flow_run)["type"] == "RUNNING"  # nobody has told the server
    instance.worker("restarted", name="worker-2")
    api.set_state(flow_run, "CRASHED")  # as the automation of Prefect's guide "Detect zombie flows" does
    reattaches(flow_run)
    instance.end("worker-2")


def test_a_restarted_serve_leaves_jobs_to_the_retry_and_to_the_reaper(instance, api, witness, until):
    def serve(name):
        instance.run(name, ("pipelines.py", "short"), cwd=HERE)

    def restart(name):
        instance.end(name)
        witness.end_flow()
        until(lambda: witness.flow_ended, "the flow's process has ended")
        assert witness.job_lives

    serve("serve-1")
    deployment = until(lambda: api.deployment("pipeline/short"), "the deployment")
    witness.do("wait")
    flow_run = api.start(deployment, folder=str(witness))
    until(lambda: witness.waits, "the training waits")
    restart("serve-1")
    serve("serve-2")
    api.set_state(flow_run, "CRASHED")
    api.retry(flow_run, witness)
    until(lambda: "reattached" in api.logs(flow_run), "the retry reattached")
    restart("serve-2")
    # Nobody serves it any more: it is cancelled in the UI, and only the reaper can hear of it.
    instance.run("reaper", ("-m", "rallypoint.prefect.reaper"))
    reaper = until(lambda: api.deployment("rallypoint-reaper/reaper"), "the reaper")
    until(lambda: api.post("/automations/filter"), "the reaper's trigger")
    for _ in range(10):  # the server's triggers learn of a new one a moment later
        api.cancel(flow_run)
        with suppress(AssertionError):
            until(lambda: not witness.job_lives, "the reaper has stopped the job", deadline=12)
            break
    assert not witness.job_lives
    assert witness.starts == [0]
    api.client.delete(f"/deployments/{reaper}")
    instance.end("reaper")


def _announcement(api, witness, until):
    """The one event of the asset, once the server has stored it."""
    (event,) = until(lambda: _announcements(api, witness), "the asset is announced")
    return event


def _announcements(api, witness):
    wanted = {"id": [f"test://models{witness}"]}
    return api.events("prefect.asset.materialization.succeeded", any_resource=wanted)
