"""Stops the jobs of flow runs whose process has died before it could: a deployment, and hooks for a flow.

A flow run that is cancelled while it has no process (its worker was restarted, its host is gone) stays *Cancelling*
for minutes, and no code of the flow ever runs again. An event says so all the same; this flow answers it. It finds
the jobs by the flow run's id, which is part of every stage's key.

It has to run where the jobs' launcher can be reached: for ``local://`` jobs, on their host. A launcher is the one of
the attempt's record; its credentials are those of the launcher that the reaper is given, or of a saved
`RallypointRayCluster` block of the same host.

``python -m rallypoint.prefect.reaper`` serves it.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import MissingContextError, ObjectNotFound
from prefect.logging import get_logger, get_run_logger

from rallypoint.errors import RallypointError
from rallypoint.prefect.places import LauncherLike, StoreLike, find_launcher, find_place
from rallypoint.prefect.runs import UNREACHABLE, owner_flow_run, root_of
from rallypoint.stages.engine import Engine
from rallypoint.stages.ledger import Ledger, list_stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.schemas.objects import Flow as FlowObject
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.deployments.runner import RunnerDeployment

STATES = ("Cancelling", "Cancelled")
GRACE = timedelta(seconds=15)
_RUN_AGAIN = (StateType.RUNNING, StateType.SCHEDULED, StateType.PENDING, StateType.COMPLETED)


@flow(name="rallypoint-reaper", flow_run_name="reap {flow_run_id}")
async def reap(flow_run_id: str, store: str | None = None, launcher: str | None = None) -> list[str]:
    """Stop the jobs that a flow run has left behind, unless it is running again.

    Args:
        flow_run_id: The flow run; also an event's resource, ``prefect.flow-run.<id>``.
        store: The store, where it is not the default one.
        launcher: The block whose credentials the jobs' launcher wants, where none of its host is saved.

    Returns:
        The ids of the attempts that were stopped.
    """
    return await stop_jobs(UUID(flow_run_id.removeprefix("prefect.flow-run.")), store=store, launcher=launcher)


async def stop_jobs(
    flow_run_id: UUID, *, store: StoreLike | None = None, launcher: LauncherLike | None = None
) -> list[str]:
    """Stop the running attempts of a flow run's stages, unless the flow run is running again or has completed.

    Of an inline subflow, those that belong to it; of the outermost flow run, those of its subflows as well.

    Args:
        flow_run_id: The flow run.
        store: The store, as a task takes it.
        launcher: A launcher, as a task takes it: its credentials are used for jobs on its host.

    Returns:
        The ids of the attempts that were stopped.

    Raises:
        RallypointError: Something could not be stopped; everything else was.
    """
    log = _logger()
    async with get_client() as client:
        try:
            flow_run = await client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            log.info("the flow run %s was deleted: nothing is known of it", flow_run_id)
            return []
        if flow_run.state is not None and flow_run.state.type in _RUN_AGAIN:
            log.info("%s is %s now: its jobs are left alone", flow_run.name, flow_run.state.name)
            return []
        root = await root_of(client, flow_run)
    place = await find_place(store, launcher)
    opened, stopped, problems = place.open_store(), list[str](), list[str]()
    why = f"the flow run {flow_run.name} is {flow_run.state.name if flow_run.state else 'gone'} in Prefect"
    for key in await list_stages(opened):
        if key.parts[0] != str(root.id):
            continue
        last = await Ledger(opened, key).last()
        if last is None or last.outcome is not None:
            continue
        if root.id != flow_run.id and owner_flow_run(last.owner) != str(flow_run.id):
            continue
        try:
            engine = Engine(opened, key, await find_launcher(last.record.launcher, place))
            if await engine.cancel(last.record.number, owner=None, why=why, grace=GRACE):
                stopped.append(last.record.id)
                log.info("%s was stopped: %s", last.record.id, why)
        except (RallypointError, *UNREACHABLE) as error:
            problems.append(f"{last.record.id}: {error}")
    if problems:
        head = f"stopped {len(stopped)} attempts of {flow_run.name}, and not all:"
        raise RallypointError("\n".join((head, *problems)))
    return stopped


def reaper_deployment(
    *,
    name: str = "reaper",
    store: str | None = None,
    launcher: str | None = None,
    states: Sequence[str] = STATES,
    **options: Any,
) -> RunnerDeployment:
    """Return the deployment of `reap` that the states of all flow runs trigger, for ``prefect.serve``.

    Args:
        name: The deployment's name.
        store: The store's URI or block, where it is not the default one of the reaper's own process.
        launcher: The block with the credentials of the jobs' launcher, where no block of its host is saved.
        states: Names of states that end a flow run's jobs. ``"Crashed"`` may be one of them where nobody retries:
            by default the job of a crashed flow run is left for its retry, which reattaches to it.
        **options: Further options of ``flow.to_deployment``, such as ``work_pool_name`` and ``tags``.
    """
    given = {key: value for key, value in {"store": store, "launcher": launcher}.items() if value}
    trigger = DeploymentEventTrigger(
        name=f"rallypoint-{name}",
        expect={f"prefect.flow-run.{state}" for state in states},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        parameters={"flow_run_id": "{{ event.resource.id }}", **given},
    )
    # The parameter's default makes it possible to run the deployment by hand with an id.
    made: Any = reap.to_deployment(name, triggers=[trigger], **options)
    return cast("RunnerDeployment", asyncio.run(made) if asyncio.iscoroutine(made) else made)


def stop_jobs_on_cancellation(flow: FlowObject, flow_run: FlowRun, state: State[Any]) -> None:
    """Stop a flow run's jobs: a hook for ``@flow(on_cancellation=[stop_jobs_on_cancellation])``.

    Prefect calls it after the flow's process has ended, in the runner or a process of its own. It helps where that
    process was killed before it could stop its jobs; a flow run without a runner needs the reaper.
    """
    del flow, state
    stopped = asyncio.run(stop_jobs(flow_run.id))
    if stopped:
        _logger().info("stopped on cancellation: %s", ", ".join(stopped))


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("rallypoint.reaper")


if __name__ == "__main__":
    from prefect import serve

    serve(reaper_deployment())
