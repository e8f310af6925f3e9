"""Which failures a retry cannot help: Prefect's ``retry_condition_fn``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.errors import (
    DuplicateStageError,
    InvalidEntryError,
    InvalidJobError,
    PreflightError,
    StageCancelledError,
    StageUserError,
)
from rallypoint.prefect.runs import StageLeftError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

FATAL = (
    DuplicateStageError, InvalidEntryError, InvalidJobError, PreflightError, StageCancelledError, StageLeftError,
    StageUserError,
)  # fmt: skip


def retry_condition(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry can help: not with an error of the user's code, nor against somebody's cancellation.

    It is what `StageTask` uses unless it is given another ``retry_condition_fn``, which may call this one. A failure
    that is retried waits for the task's ``retry_delay_seconds``: Prefect lets a condition not choose the delay.
    """
    del task, task_run
    return not isinstance(state.data, FATAL)
