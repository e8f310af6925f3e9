"""What Ray's word about a job means for its gang."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.launchers.ray_jobs.request import FORBIDDEN, PROCESS

if TYPE_CHECKING:
    from collections.abc import Mapping

TERMINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
# Ray lost the job's process with its node, or its own supervisor of it: there was no last word.
_LOST = frozenset({"JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"})


def has_ended(details: Mapping[str, Any]) -> bool:
    """Return whether Ray says that a job has ended."""
    return details.get("status") in TERMINAL


def status_of(details: Mapping[str, Any] | None, final: Status | None) -> Status:
    """Return where a gang stands.

    Args:
        details: What Ray says about its job; None if Ray does not know it (any more).
        final: What the gang's own supervisor recorded at its end, if that can be read.
    """
    if details is None:
        words = "the Ray cluster does not know the job: the cluster was restarted, or somebody deleted the job"
        return Status(Phase.LOST, message=words)
    said = details.get("status")
    if said not in TERMINAL:
        return Status(Phase.RUNNING)
    metadata = details.get("metadata") or {}
    forbidden = FORBIDDEN in metadata
    if said == "STOPPED" or forbidden:
        ends = final.processes if final else ()
        return Status(Phase.ENDED, "cancelled", ends, "" if forbidden else str(details.get("message") or ""))
    # Of Ray's word and the supervisor's the worse one counts.
    if said == "SUCCEEDED":
        return final or Status(Phase.ENDED, "completed", (ProcessEnd(_name(metadata), 0),))
    return final if final and final.reason != "completed" else _failed(details)


def final_status(data: bytes | None) -> Status | None:
    """Return what a supervisor's final record says; None if it cannot be read, or is what a job put in its place."""
    try:
        record = json.loads(data or b"")
        ends = tuple(
            ProcessEnd(
                str(end["name"]),
                end["exit_code"],
                end["signal"],
                str(end["host"]),
                bool(end["first"]),
                tolerated=bool(end.get("tolerated")),
            )
            for end in record["processes"]
        )
        return Status(Phase.ENDED, str(record["reason"]), ends, str(record["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _failed(details: Mapping[str, Any]) -> Status:
    code, message = details.get("driver_exit_code"), str(details.get("message") or "")
    kind = str(details.get("error_type") or "no reason given")
    if kind in _LOST:
        return Status(Phase.LOST, message=message or kind)
    if not isinstance(code, int):
        return Status(Phase.ENDED, "error", message=f"Ray could not run the job ({kind}): {message}")
    by = signal.Signals(-code).name if -code in {*signal.Signals} else None
    end = ProcessEnd(_name(details.get("metadata") or {}), code if by is None else None, by, first=True)
    return Status(Phase.ENDED, "failed", (end,), message)


def _name(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get(PROCESS) or "process-0")
