"""What goes in and out of the engine: what a try asks for, and an attempt as it starts, runs and stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rallypoint.stages.rule import Decision, Intent, Resume, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.launchers.base import Handle, LogChunk
    from rallypoint.stages.events import Event
    from rallypoint.stages.ledger import Entry, Record
    from rallypoint.stages.outcome import Outcome
    from rallypoint.stages.view import AttemptView


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an orchestrator's try asks of a stage.

    Args:
        owner: A name of this try that no other try has; only an attempt's owner may cancel it.
        marker: The orchestrator's count of explicit re-runs, if it has one: a larger one than the last attempt's says
            that a person cleared the stage (Airflow: ``max_tries``).
        intent: What is wanted, where no marker says it.
        resume: When checkpoints may be used.
    """

    owner: str
    marker: int | None = None
    intent: Intent = Intent.CONTINUE
    resume: Resume = Resume.IF_SAME_WORK


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt that is running, or that has ended.

    Args:
        record: Its intent, as the ledger holds it.
        handle: How to find its gang; None if it was never launched.
        outcome: How it ended; None while it runs.
    """

    record: Record
    handle: Handle | None
    outcome: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Started:
    """What `Engine.start` did.

    Args:
        attempt: The attempt that was launched, found or had succeeded.
        decision: What was decided, and why.
    """

    attempt: Attempt
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An attempt as it stands now, for people to look at.

    Args:
        entry: What the ledger holds; of an attempt that has ended unseen, with the outcome that it has yet to record.
        view: What its processes have said.
        state: Where it stands.
        ready: The address object of a service that is ready.
        renewed: When the lease of a live service was renewed, in seconds since the epoch; None if it never was.
    """

    entry: Entry
    view: AttemptView
    state: State
    ready: Mapping[str, Any] | None = None
    renewed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is new about a running attempt.

    Args:
        view: What its processes have said so far.
        events: The new events.
        output: New output of the processes whose log is shown. Of a process that writes faster than it is read, a
            part is skipped.
        outcome: How it ended; the last update has it.
        ready: The address object of a service that is ready; where nobody holds it, the last update has it.
        logs: The command that shows everything.
    """

    view: AttemptView
    events: list[Event] = field(default_factory=list)
    output: list[LogChunk] = field(default_factory=list)
    outcome: Outcome | None = None
    ready: Mapping[str, Any] | None = None
    logs: str = ""
