"""Judges how an attempt ended. A success needs every process's word; silence is a failure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rallypoint.errors import StageCancelledError, StageFailedError, StageUserError
from rallypoint.launchers.base import Phase, Status
from rallypoint.spec.failure import FailureRule, Kind
from rallypoint.stages.failures import FailureReport, explain
from rallypoint.stages.rule import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.stages.view import AttemptView

_MAX_NAMED = 20  # silent ranks


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended; written once.

    Args:
        state: ``succeeded``, ``failed``, ``cancelled`` or ``lost``.
        result: What the entry returned.
        metrics: The last value of every metric.
        artifacts: What it saved: name, URI, bytes.
        failure: Why it did not succeed.
        ended: Seconds since the epoch.
    """

    state: State
    result: Any = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Sequence[Mapping[str, Any]] = ()
    failure: FailureReport | None = None
    ended: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as a JSON object."""
        return {
            "state": self.state.value,
            "result": self.result,
            "metrics": dict(self.metrics),
            "artifacts": [dict(artifact) for artifact in self.artifacts],
            "failure": self.failure.to_json() if self.failure else None,
            "ended": self.ended,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """Return the outcome that `to_json` described."""
        failure = value["failure"]
        return cls(
            state=State(value["state"]),
            result=value["result"],
            metrics=value["metrics"],
            artifacts=value["artifacts"],
            failure=FailureReport.from_json(failure) if failure else None,
            ended=value["ended"],
        )


def judge(  # noqa: PLR0913 - each is known apart
    status: Status,
    view: AttemptView,
    *,
    attempt: str,
    logs: str,
    rules: tuple[FailureRule, ...] = (),
    service: bool = False,
) -> Outcome:
    """Return the outcome of an attempt that is no longer running.

    It succeeded only if the launcher saw every process of the gang end with exit code 0, and every one of them, and
    every rank of the last round, said itself that it closed with 0; but for those that the gang may lose. A service
    never succeeds: one that ends by itself has failed, whatever its exit codes, and one that was stopped is cancelled.

    Args:
        status: What the launcher knows of its end.
        view: What its processes said.
        attempt: The attempt's id.
        logs: The command that shows all logs.
        rules: The job's own rules for failures.
        service: Whether it was to stay.
    """
    silent = _silent(status, view)
    whole = status.phase is Phase.ENDED and status.reason == "completed" and bool(status.processes)
    good = all(end.exit_code == 0 or end.tolerated for end in status.processes)
    if not service and whole and not silent and good:
        return Outcome(state=State.SUCCEEDED, result=view.result, metrics=view.metrics, artifacts=view.artifacts)
    report = explain(status, view, attempt=attempt, logs=logs, silent=silent, rules=rules, service=service)
    state = State.FAILED
    if status.phase is Phase.LOST:
        state = State.LOST
    elif report.kind is Kind.CANCELLED:
        state = State.CANCELLED
    return Outcome(state=state, metrics=view.metrics, artifacts=view.artifacts, failure=report)


def raise_for(outcome: Outcome) -> None:
    """Raise the error of an outcome that is no success.

    Raises:
        StageUserError: A retry cannot help.
        StageCancelledError: Somebody stopped it.
        StageFailedError: It failed in another way.
    """
    if outcome.state is State.SUCCEEDED or outcome.failure is None:
        return
    if outcome.failure.kind is Kind.USER:
        raise StageUserError(outcome.failure)
    if outcome.failure.kind is Kind.CANCELLED:
        raise StageCancelledError(outcome.failure)
    raise StageFailedError(outcome.failure)


def with_last_lines(outcome: Outcome, lines: Sequence[str]) -> Outcome:
    """Return the outcome with the last lines of the process that failed first."""
    if outcome.failure is None or not lines:
        return outcome
    return replace(outcome, failure=replace(outcome.failure, last_lines=tuple(lines)))


def _silent(status: Status, view: AttemptView) -> list[str]:
    """Return the processes without a good last word."""
    silent = [
        end.name
        for end in status.processes
        if end.exit_code == 0 and (end.name not in view.processes or view.processes[end.name].exit_code != 0)
    ]
    ranks = view.last_round
    expected = max((rank.world_size or 0 for rank in ranks), default=0)
    closed = {rank.rank for rank in ranks if rank.exit_code == 0}
    missing = (f"rank {number}" for number in range(expected) if number not in closed)
    return silent + list(islice(missing, _MAX_NAMED))  # a job may claim any world size
