"""Runs a job as a stage without a decorated function: a script, a module, or any job object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect.context import FlowRunContext, TaskRunContext

from rallypoint.prefect.options import sort_options
from rallypoint.prefect.tasks import stage_task

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from rallypoint.spec.job import Job


def run_stage(job: Job, *, name: str, **options: Any) -> Any:
    """Run a job as a stage and return its result; a retry of the flow run continues it.

    In a flow it is a task of that name, with Prefect's task options; in a task it runs in that task. Outside of a flow
    run its key is ``local`` and the name: a second call of that name reattaches to a job that still runs, continues
    one that failed, and runs again if the work has changed or it is given ``rerun=True``.

    Args:
        job: The job.
        name: The stage's name, of which there may be one in a flow run.
        **options: Those of `StageOptions`, and ``assets`` and ``secrets``; in a flow those of Prefect's task, too.

    Raises:
        InvalidJobError: An option is not known, or its value is wrong.
        StageFailedError: The job did not succeed.
        DuplicateStageError: Another stage of this flow run has the same name.
    """
    task = stage_task(job, name=name, **_named(job, name, options))
    return task() if _is_node() else task.fn()


async def arun_stage(job: Job, *, name: str, **options: Any) -> Any:
    """Do the same as `run_stage` without blocking the event loop."""
    task = stage_task(job, name=name, **_named(job, name, options))
    if _is_node():
        return await task.aio()
    return await cast("Coroutine[Any, Any, Any]", task.asynchronous().fn())


def _is_node() -> bool:
    """Return whether this is the code of a flow, where a stage is a node of its own."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is None or flow.flow_run is None:
        return False
    return task is None or task.task_run.flow_run_id != flow.flow_run.id


def _named(job: Job, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the stage's own name: within a task, it is not the task's."""
    sort_options(type(job), options)
    return {"stage_name": lambda: name, **options}
