"""What a retry does: one pure function, the same for Airflow and Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """Where the last attempt of a stage stands."""

    NONE = "none"  # there was none
    PENDING = "pending"  # its intent is written, and nothing was launched, or not yet
    LIVE = "live"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # gone without a final word


class Intent(StrEnum):
    """What the orchestrator wants of the stage."""

    CONTINUE = "continue"  # an automatic retry, a crashed worker's next try, every retry in Prefect
    RERUN = "rerun"  # a person cleared this stage, or asked for it


class Resume(StrEnum):
    """When an earlier attempt's checkpoints may be used."""

    IF_SAME_WORK = "if_same_work"
    ALWAYS = "always"
    NEVER = "never"


class Action(StrEnum):
    """What to do."""

    LAUNCH = "launch"  # a new attempt
    FINISH_LAUNCH = "finish_launch"  # launch the attempt whose intent is written; launching twice is once
    REATTACH = "reattach"
    RETURN = "return"  # the result is there


@dataclass(frozen=True)
class Decision:
    """What to do, and why.

    Args:
        action: What to do.
        stop_first: Whether the last attempt has to be stopped before.
        from_checkpoint: Whether a new attempt stays in the generation, and so continues from its last checkpoint.
        why: One line for the task's log.
    """

    action: Action
    stop_first: bool = False
    from_checkpoint: bool = False
    why: str = ""


def wanted(
    asked: Intent, *, cleared: bool = False, forgotten: bool = False, service: bool = False, changed: bool = False
) -> Intent:
    """Return what is wanted of a stage that has an attempt.

    A clear asks for a rerun, but for a service that did not change: an orchestrator clears a set-up task together with
    any task between it and its teardown. So the clear says that one user of the service is to run again, and others
    may be using it in this moment.

    Args:
        asked: What the try itself asks for.
        cleared: Whether the orchestrator counts more explicit re-runs than when the last attempt started.
        forgotten: Whether a person asked for this stage by name to run again.
        service: Whether the stage's job is a service.
        changed: Whether the job's fingerprint differs from the last attempt's.
    """
    if forgotten or (cleared and (changed or not service)):
        return Intent.RERUN
    return asked


def decide(
    last: State,
    intent: Intent,
    *,
    changed: tuple[str, ...] = (),
    resume: Resume = Resume.IF_SAME_WORK,
    service: bool = False,
) -> Decision:
    """Return what to do with a stage, given its last attempt and what is wanted.

    Args:
        last: Where the last attempt stands.
        intent: What the orchestrator wants.
        changed: The parts of the job's fingerprint that differ from the last attempt's.
        resume: When checkpoints may be used.
        service: Whether the stage's job is a service, which has no checkpoints and never succeeds: live, it is ready or
            about to be.

    Returns:
        The decision. See "The five promises" in DESIGN, promise 2: its table is this function's test.
    """
    if last is State.NONE:
        return Decision(Action.LAUNCH, why="first attempt")
    return _decide_service(last, intent, changed) if service else _decide_job(last, intent, changed, resume)


def _decide_job(last: State, intent: Intent, changed: tuple[str, ...], resume: Resume) -> Decision:
    if last is State.SUCCEEDED and intent is Intent.CONTINUE:
        return Decision(Action.RETURN, why="an earlier attempt succeeded: its result is returned, nothing runs")
    if last is State.SUCCEEDED:
        return Decision(Action.LAUNCH, why="run again after a success: from scratch, in a new generation")
    going = last in (State.LIVE, State.PENDING)
    if intent is Intent.CONTINUE and last is State.LIVE:
        return Decision(Action.REATTACH, why="the job of an earlier try is still there: reattached")
    keep, why = _may_resume(changed, resume)
    if intent is Intent.CONTINUE and last is State.PENDING and keep:
        return Decision(Action.FINISH_LAUNCH, why="an earlier try ended before its launch was known: finishing it")
    stopped = "the running attempt is stopped; " if going else f"the last attempt {_HOW[last]}; "
    return Decision(Action.LAUNCH, stop_first=going, from_checkpoint=keep, why=stopped + why)


_HOW = {
    State.FAILED: "failed",
    State.CANCELLED: "was cancelled",
    State.LOST: "was lost",
    State.SUCCEEDED: "succeeded",
}


def _decide_service(last: State, intent: Intent, changed: tuple[str, ...]) -> Decision:
    if intent is Intent.CONTINUE and last is State.LIVE:
        return Decision(Action.REATTACH, why="the service of an earlier try is still there: reattached")
    if intent is Intent.CONTINUE and last is State.PENDING and not changed:
        return Decision(Action.FINISH_LAUNCH, why="an earlier try ended before its launch was known: finishing it")
    if last in (State.LIVE, State.PENDING):
        words = f", because it changed: {', '.join(changed)}" if changed else ""
        return Decision(Action.LAUNCH, stop_first=True, why=f"the running service is stopped, a new one starts{words}")
    how = "was stopped" if last is State.CANCELLED else _HOW[last]
    return Decision(Action.LAUNCH, why=f"the last service {how}: a new one starts")


def _may_resume(changed: tuple[str, ...], resume: Resume) -> tuple[bool, str]:
    if resume is Resume.NEVER:
        return False, 'from scratch, as resume="never" says'
    if changed and resume is Resume.IF_SAME_WORK:
        return False, f"from scratch, because the work changed: {', '.join(changed)}"
    return True, "continuing from its last checkpoint"


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Return which parts of a fingerprint differ, as words for the log."""
    words = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            words.append(f"{name} was removed")
        elif name not in before:
            words.append(f"{name} was added")
        elif before[name] != now[name]:
            shown = f" ({before[name]} → {now[name]})" if name == "entry" else ""
            words.append(f"{name} changed{shown}")
    return tuple(words)
