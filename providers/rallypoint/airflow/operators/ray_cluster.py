"""Temporary Ray clusters, and more workers for a running one, as set-up and teardown tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.airflow.links import RayDashboardLink, StageLink
from rallypoint.airflow.operators.cluster import Cluster, ServiceOperator
from rallypoint.frameworks.ray.cluster import RayCluster, RayWorkers
from rallypoint.spec.service import DEFAULT_LEASE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from airflow.sdk import BaseOperatorLink
    from airflow.sdk.definitions.xcom_arg import XComArg


class _RayNodesOperator(ServiceOperator):
    """What both operators share: the parameters of `rallypoint.frameworks.ray.cluster.RayNodes`."""

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        workers: int,
        options: Mapping[str, Any],
        cpus_per_worker: int = 1,
        gpus_per_worker: int = 0,
        memory: str | int | None = None,
        object_store_memory: str | int | None = None,
        custom_resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        start_timeout: float = 180.0,
        max_restarts: int = 3,
        lease: float | None = DEFAULT_LEASE,
        **kwargs: Any,
    ) -> None:
        shared = {
            "workers": workers, "cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker,
            "memory": memory, "object_store_memory": object_store_memory, "custom_resources": custom_resources or {},
            "labels": labels or {}, "start_timeout": start_timeout, "max_restarts": max_restarts, "lease": lease,
        }  # fmt: skip
        super().__init__(service_options={**shared, **options}, **kwargs)


class RayClusterOperator(_RayNodesOperator):
    """Starts a temporary Ray cluster.

    The parameters are those of `rallypoint.RayCluster`; everything else is `ServiceOperator`'s.

    Returns:
        The address object ``{"address": …, "dashboard_url": …, "client": …, "workers": …, …}``, as XCom.
    """

    job_class = RayCluster
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), RayDashboardLink())

    def __init__(self, *, workers: int = 2, head_cpus: int = 0, **kwargs: Any) -> None:
        super().__init__(workers=workers, options={"head_cpus": head_cpus}, **kwargs)


class RayWorkersOperator(_RayNodesOperator):
    """Adds worker nodes to a running Ray cluster.

    The parameters are those of `rallypoint.RayWorkers`; everything else is `ServiceOperator`'s.

    Returns:
        The address object, as XCom; who names it keeps these workers and the cluster alive.
    """

    job_class = RayWorkers

    def __init__(
        self, *, cluster: Mapping[str, Any] | XComArg, workers: int = 1, drain: float = 10.0, **kwargs: Any
    ) -> None:
        super().__init__(workers=workers, options={"cluster": cluster, "drain": drain}, **kwargs)

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        later = {"address": "checked-later:1", "dashboard_url": "http://checked-later"}
        super()._check_job({"cluster": later, **options}, env)


def ray_cluster(*, task_id: str = "ray_cluster", **kwargs: Any) -> Cluster:
    """Return a temporary Ray cluster as a pair of tasks.

    ::

        with ray_cluster(workers=2) as cluster:
            train(...)  # runs after the set-up; the teardown runs after it, also if it fails

    Args:
        task_id: The set-up's id; the teardown's is the same with ``_stop``.
        **kwargs: `RayClusterOperator`'s.
    """
    return Cluster(RayClusterOperator(task_id=task_id, **kwargs))


def ray_workers(cluster: Cluster, *, task_id: str = "ray_workers", **kwargs: Any) -> Cluster:
    """Return further worker nodes of a cluster as a pair of tasks; the tasks within its ``with`` have them.

    Args:
        cluster: The cluster that they join.
        task_id: The set-up's id; the teardown's is the same with ``_stop``.
        **kwargs: `RayWorkersOperator`'s.
    """
    return Cluster(RayWorkersOperator(task_id=task_id, cluster=cluster.address, **kwargs))
