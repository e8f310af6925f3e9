"""Tells Prefect of the assets that a stage has made: once for each success, whichever try sees it.

Prefect's own ``@materialize`` says nothing for a task that was cached or has crashed, so that after a retry what waits
for the asset may never start. Here the try that returns the stage's result announces it, unless an earlier one did.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from prefect.assets import Asset
from prefect.context import AssetContext, FlowRunContext, TaskRunContext
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.events.filters import EventFilter, EventIDFilter
from prefect.events.related import related_resources_from_run_context

from rallypoint.stages.claims import announced, is_announced

if TYPE_CHECKING:
    import logging

    from prefect.client.orchestration import PrefectClient

    from rallypoint.stages.attempt import Attempt
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.outcome import Outcome

SUCCEEDED = "prefect.asset.materialization.succeeded"
REFERENCED = "prefect.asset.referenced"
_NAMESPACE = uuid.UUID("8f0bb6c7-8f5b-4f4e-9d0a-3f0f5f9b7c11")  # of the events' ids; any constant
_CONFIRM = 10.0  # seconds until an event that was sent has to be readable


async def announce_assets(  # noqa: PLR0913, PLR0917 - what the try has found out
    client: PrefectClient,
    engine: Engine,
    attempt: Attempt,
    outcome: Outcome,
    assets: tuple[Any, ...],
    log: logging.Logger,
) -> None:
    """Emit the materialisation of each asset, unless it was emitted for this success before.

    An event's id comes from the attempt and the asset, the server is asked for it first, and that it has arrived is
    written beside the attempt: a process that dies between two of these steps leaves the event to the next try, and
    none is sent twice.

    Args:
        client: Prefect's client.
        engine: The stage's engine.
        attempt: The attempt that has succeeded.
        outcome: How it ended; its metrics and artifacts become the event's payload.
        assets: Keys such as ``s3://models/churn``, or `prefect.assets.Asset` objects.
        log: The run's log.
    """
    made = [asset if isinstance(asset, Asset) else Asset(key=str(asset)) for asset in assets]
    _track(made)
    number = attempt.record.number
    for asset in made:
        if await is_announced(engine.store, engine.key, number, asset.key):
            continue
        events = await _events(client, engine, attempt, outcome, asset)
        if not await _arrived(client, events[-1]):
            async with get_events_client() as sender:
                for event in events:
                    await sender.emit(event)
            if not await _confirmed(client, events[-1]):
                log.warning("the server has not confirmed that %s was made: a retry says it again", asset.key)
                continue
            log.info("asset %s announced", asset.key)
        await announced(engine.store, engine.key, number, asset.key)


async def _events(
    client: PrefectClient, engine: Engine, attempt: Attempt, outcome: Outcome, asset: Asset
) -> list[Event]:
    record = attempt.record
    context = AssetContext.get()
    upstream = sorted((context.upstream_assets | context.direct_asset_dependencies), key=_key) if context else []
    run = await related_resources_from_run_context(client)
    related = [RelatedResource(AssetContext.asset_as_related(each)) for each in upstream]
    related.append(RelatedResource(AssetContext.related_materialized_by(record.kind)))
    artifacts = {str(item["name"]): item["uri"] for item in outcome.artifacts}
    payload: dict[str, Any] = {
        "stage": engine.key.text,
        "attempt": record.id,
        "metrics": dict(outcome.metrics),
        "artifacts": artifacts,
        "uri": next(reversed(artifacts.values()), ""),
    }
    made = Event(
        id=uuid.uuid5(_NAMESPACE, f"{engine.store.uri} {record.id} {asset.key}"),
        occurred=cast("Any", datetime.now(UTC)),  # Prefect makes its own type of it
        event=SUCCEEDED,
        resource=Resource(AssetContext.asset_as_resource(asset)),
        related=[*run, *related],
        payload=payload,
    )
    referenced = [
        Event(
            id=uuid.uuid5(made.id, each.key),
            occurred=made.occurred,
            event=REFERENCED,
            resource=Resource(AssetContext.asset_as_resource(each)),
            related=list(run),
        )
        for each in upstream
    ]
    return [*referenced, made]


def _track(assets: list[Asset]) -> None:
    """Make these the assets that tasks after this one depend on."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is not None and task is not None:
        flow.task_run_assets[task.task_run.id] = set(assets)


async def _confirmed(client: PrefectClient, event: Event) -> bool:
    deadline = asyncio.get_running_loop().time() + _CONFIRM
    while asyncio.get_running_loop().time() < deadline:
        if await _arrived(client, event):
            return True
        await asyncio.sleep(0.3)
    return False


async def _arrived(client: PrefectClient, event: Event) -> bool:
    """Return whether the server holds an event of this id."""
    wanted = EventFilter(id=EventIDFilter(id=[event.id]))
    return bool((await client.read_events(filter=wanted, limit=1)).events)


def _key(asset: Asset) -> str:
    return asset.key
