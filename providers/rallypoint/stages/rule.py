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


def decide(
    last: State,
    intent: Intent,
    *,
    changed: tuple[str, ...] = (),
    resume: Resume = Resume.IF_SAME_WORK,
) -> Decision:
    """Return what to do with a stage, given its last attempt and what is wanted.

    Args:
        last: Where the last attempt stands.
        intent: What the orchestrator wants.
        changed: The parts of the job's fingerprint that differ from the last attempt's.
        resume: When checkpoints may be used.

    Returns:
        The decision. See "The five promises" in DESIGN, promise 2: its table is this function's test.
    """
    if last is State.NONE:
        return Decision(Action.LAUNCH, why="first attempt")
    if last is State.SUCCEEDED:
        if intent is Intent.CONTINUE:
            return Decision(Action.RETURN, why="an earlier attempt succeeded: its result is returned, nothing runs")
        return Decision(Action.LAUNCH, why="run again after a success: from scratch, in a new generation")
    going = last in (State.LIVE, State.PENDING)
    if intent is Intent.CONTINUE and last is State.LIVE:
        return Decision(Action.REATTACH, why="the job of an earlier try is still there: reattached")
    keep, why = _may_resume(changed, resume)
    if intent is Intent.CONTINUE and last is State.PENDING and keep:
        return Decision(Action.FINISH_LAUNCH, why="an earlier try ended before its launch was known: finishing it")
    stopped = "the running attempt is stopped; " if going else f"the last attempt {_HOW[last]}; "
    return Decision(Action.LAUNCH, stop_first=going, from_checkpoint=keep, why=stopped + why)


_HOW = {State.FAILED: "failed", State.CANCELLED: "was cancelled", State.LOST: "was lost"}


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
