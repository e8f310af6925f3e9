"""Removes what old attempts have left, from a task."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from rallypoint.airflow.hooks import RallypointHook
from rallypoint.airflow.place import DEFAULT_CONN_ID
from rallypoint.errors import RallypointError
from rallypoint.stages.prune import remove, survey
from rallypoint.stages.retention import Policy
from rallypoint.stages.store import Store

if TYPE_CHECKING:
    from datetime import timedelta

log = logging.getLogger(__name__)


def prune_store(
    *,
    older_than: timedelta,
    keep_generations: int = 2,
    forget_stages: bool = False,
    rallypoint_conn_id: str = DEFAULT_CONN_ID,
) -> int:
    """Do what ``rallypoint prune`` does in the store of a connection.

    Of a Ray Serve application the newest configs stay, as many as its `keep_versions` says, whatever their age. A task
    with the local launcher has to run on the host whose run folders are to be removed.

    Args:
        older_than: How long ago an attempt must have ended.
        keep_generations: How many of a stage's newest generations stay, whatever their age.
        forget_stages: Also remove stages as a whole, with result and last checkpoint, once all of it is older. Every
            DAG run has stages of its own, whose one generation is their newest: only this removes them. It also removes
            the history of applications on clusters that were made for a run.
        rallypoint_conn_id: The connection of the store.

    Returns:
        How many bytes were removed.

    Raises:
        RallypointError: The store cannot be read, or something could not be removed; the rest was.
    """
    place = RallypointHook(rallypoint_conn_id).get_conn()
    store = Store.open(place.store, options=place.store_options or None)
    policy = Policy(older_than=older_than, keep_generations=keep_generations, forget_stages=forget_stages)
    return asyncio.run(_prune(store, policy))


async def _prune(store: Store, policy: Policy) -> int:
    freed, problems = 0, []
    for going in await survey(store, policy):
        try:
            size = await remove(store, going)
        except RallypointError as error:
            problems.append(f"{going.name}: {error}")
            continue
        freed += size
        if size:
            log.info("%s: removed %s bytes", going.name, f"{size:,}")
        if going.problem:
            problems.append(f"{going.name}: {going.problem}")
    if problems:
        raise RallypointError(f"removed {freed:,} bytes, and not all that is old:\n" + "\n".join(problems))
    return freed
