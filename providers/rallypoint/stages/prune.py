"""What ``rallypoint prune`` and its tasks remove: of old attempts, and of the configs of deployed applications."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from rallypoint.stages import deploy_retention, retention

if TYPE_CHECKING:
    from rallypoint.stages.retention import Policy
    from rallypoint.stages.store import Store

Removal: TypeAlias = retention.Going | deploy_retention.GoingVersions | deploy_retention.GoingPackages


async def survey(store: Store, policy: Policy, *, stage: str = "", now: float | None = None) -> list[Removal]:
    """Return what would go, changing nothing.

    Args:
        store: The store.
        policy: What is kept.
        stage: A key, or the end of one: only stages of that name, and no applications; all by default.
        now: Seconds since the epoch; this moment by default.

    Raises:
        StageNotFoundError: No stage has that name.
        StoreError: The store cannot be read.
    """
    stages = await retention.survey(store, policy, stage=stage, now=now)
    return [*stages, *([] if stage else await deploy_retention.survey_deploys(store, policy, now=now))]


async def remove(store: Store, going: Removal) -> int:
    """Remove one thing that `survey` found, in its order, and return how many bytes that were.

    Returns:
        0 if it was to go as a whole, and has been started again since.

    Raises:
        StoreError: The store cannot be written.
        LaunchError: An attempt's files cannot be removed.
    """
    if isinstance(going, retention.Going):
        return await retention.remove(store, going)
    return await deploy_retention.remove_deploys(store, going)
