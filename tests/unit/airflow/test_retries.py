"""How long Airflow waits before it retries a stage."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk import DAG, ExceptionRetryPolicy
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.serialization.serialized_objects import DagSerialization

from rallypoint.airflow.operators import TorchElasticOperator
from rallypoint.airflow.retries import StageRetryPolicy
from rallypoint.errors import StageFailedError
from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.spec.failure import Kind
from rallypoint.stages.failures import FailureReport, explain
from rallypoint.stages.view import AttemptView


def failed(signal: str | None) -> StageFailedError:
    ends = (ProcessEnd("agent-0", None, signal, "here", first=True),)
    return StageFailedError(explain(Status(Phase.ENDED, "failed", ends), AttemptView(), attempt="rp-1", logs=""))


@pytest.mark.parametrize(
    ("error", "try_number", "delay"),
    [
        (failed("SIGTERM"), 1, 0),  # preempted: at once
        (failed("SIGTERM"), 3, 0),
        (failed("SIGKILL"), 1, 60),  # most likely out of memory: others need time to end
        (failed("SIGKILL"), 3, 240),
        (failed("SIGKILL"), 30, 3600),  # no longer than the longest
    ],
)
def test_a_retryable_failure_waits_as_long_as_its_cause_needs(error, try_number, delay):
    decision = StageRetryPolicy().evaluate(error, try_number, 99)
    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, timedelta(seconds=delay))


@pytest.mark.parametrize(
    "error",
    [
        failed("SIGSEGV"),
        StageFailedError(FailureReport(kind=Kind.CANCELLED, title="cancelled")),
        ValueError("not a stage's"),
    ],
)
def test_everything_else_follows_the_task(error):
    assert StageRetryPolicy().evaluate(error, 1, 3).action is RetryAction.DEFAULT


def test_a_stage_has_the_policy_unless_it_is_given_another():
    other = ExceptionRetryPolicy([])
    with DAG("d"):
        ready = TorchElasticOperator(task_id="a", script="a.py")
        own = TorchElasticOperator(task_id="b", script="a.py", retry_policy=other)
    assert isinstance(ready.retry_policy, StageRetryPolicy)
    assert own.retry_policy is other


def test_a_dag_with_the_policy_can_be_stored():
    with DAG("d") as dag:
        TorchElasticOperator(task_id="a", script="a.py")
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_ids == ["a"]


def test_the_policy_survives_its_own_json():
    policy = StageRetryPolicy(timedelta(minutes=5))
    assert StageRetryPolicy.deserialize(policy.serialize()).longest == policy.longest
