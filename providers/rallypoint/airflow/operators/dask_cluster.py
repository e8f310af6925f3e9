"""Temporary Dask clusters as set-up and teardown tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.airflow.links import DaskDashboardLink, StageLink
from rallypoint.airflow.operators.cluster import Cluster, ServiceOperator
from rallypoint.frameworks.dask.cluster import DaskCluster
from rallypoint.spec.service import DEFAULT_LEASE

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.sdk import BaseOperatorLink


class DaskClusterOperator(ServiceOperator):
    """Starts a temporary Dask cluster.

    The parameters are those of `rallypoint.DaskCluster`; everything else is `ServiceOperator`'s.

    Returns:
        The address object ``{"address": "tcp://…", "dashboard_url": …, "workers": …, …}``, as XCom.
    """

    job_class = DaskCluster
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), DaskDashboardLink())

    def __init__(
        self,
        *,
        workers: int = 2,
        threads_per_worker: int = 1,
        memory_per_worker: str | int | None = None,
        start_timeout: float = 120.0,
        lease: float | None = DEFAULT_LEASE,
        **kwargs: Any,
    ) -> None:
        options = {
            "workers": workers, "threads_per_worker": threads_per_worker, "memory_per_worker": memory_per_worker,
            "start_timeout": start_timeout, "lease": lease,
        }  # fmt: skip
        super().__init__(service_options=options, **kwargs)


def dask_cluster(*, task_id: str = "dask_cluster", **kwargs: Any) -> Cluster:
    """Return a temporary Dask cluster as a pair of tasks.

    ::

        with dask_cluster(workers=2) as cluster:
            process(...)  # runs after the set-up; the teardown runs after it, also if it fails

    Args:
        task_id: The set-up's id; the teardown's is the same with ``_stop``.
        **kwargs: `DaskClusterOperator`'s.
    """
    return Cluster(DaskClusterOperator(task_id=task_id, **kwargs))
