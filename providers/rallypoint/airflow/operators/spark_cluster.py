"""Temporary Spark standalone clusters, more workers for a running one, and Connect servers, as set-up and teardown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.airflow.operators.cluster import Cluster, ServiceOperator
from rallypoint.frameworks.spark.cluster import SparkCluster, SparkWorkers
from rallypoint.frameworks.spark.connect_server import SparkConnectServer
from rallypoint.spec.service import DEFAULT_LEASE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk.definitions.xcom_arg import XComArg


class _SparkServiceOperator(ServiceOperator):
    """What the operators share: the parameters of `rallypoint.frameworks.spark.cluster.SparkDaemons`."""

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        options: Mapping[str, Any],
        conf: Mapping[str, Any] | None = None,
        secret_conf: Mapping[str, str] | None = None,
        start_timeout: float = 120.0,
        spark_home: str | None = None,
        java_home: str | None = None,
        lease: float | None = DEFAULT_LEASE,
        **kwargs: Any,
    ) -> None:
        shared = {
            "conf": conf or {}, "secret_conf": secret_conf or {}, "start_timeout": start_timeout,
            "spark_home": spark_home, "java_home": java_home, "lease": lease,
        }  # fmt: skip
        super().__init__(service_options={**shared, **options}, **kwargs)

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        # The values of the secrets are not known while the DAG file is read.
        self.job_class(env=env, secrets=dict.fromkeys(self.secrets, "checked later"), **options)


class _SparkNodesOperator(_SparkServiceOperator):
    """What the operators of workers share: the parameters of `rallypoint.frameworks.spark.cluster.SparkNodes`."""

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        workers: int,
        options: Mapping[str, Any],
        cores_per_worker: int = 1,
        memory_per_worker: str | int = "1GiB",
        daemon_memory: str | int = "512MiB",
        max_restarts: int = 3,
        **kwargs: Any,
    ) -> None:
        shared = {
            "workers": workers, "cores_per_worker": cores_per_worker, "memory_per_worker": memory_per_worker,
            "daemon_memory": daemon_memory, "max_restarts": max_restarts,
        }  # fmt: skip
        super().__init__(options={**shared, **options}, **kwargs)


class SparkClusterOperator(_SparkNodesOperator):
    """Starts a temporary Spark standalone cluster.

    The parameters are those of `rallypoint.SparkCluster`; everything else is `ServiceOperator`'s.

    Returns:
        The address object ``{"master": "spark://…", "ui": …, "rest": …, "workers": …, …}``, as XCom.
    """

    job_class = SparkCluster

    def __init__(self, *, workers: int = 2, rest: bool = True, **kwargs: Any) -> None:
        super().__init__(workers=workers, options={"rest": rest}, **kwargs)


class SparkWorkersOperator(_SparkNodesOperator):
    """Adds workers to a running Spark standalone cluster.

    The parameters are those of `rallypoint.SparkWorkers`; everything else is `ServiceOperator`'s.

    Returns:
        The address object, as XCom; who names it keeps these workers and the cluster alive.
    """

    job_class = SparkWorkers

    def __init__(self, *, cluster: Mapping[str, Any] | XComArg, workers: int = 1, **kwargs: Any) -> None:
        super().__init__(workers=workers, options={"cluster": cluster}, **kwargs)

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        later = {"master": "spark://checked-later:1", "ui": "http://checked-later"}
        super()._check_job({"cluster": later, **options}, env)


class SparkConnectServerOperator(_SparkServiceOperator):
    """Starts a temporary Spark Connect server.

    The parameters are those of `rallypoint.SparkConnectServer`; everything else is `ServiceOperator`'s.

    Returns:
        The address object ``{"remote": "sc://…", "ui": …, …}``, as XCom.
    """

    job_class = SparkConnectServer

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        master: str | Mapping[str, Any] | XComArg | None = None,
        driver_memory: str = "1g",
        executor_memory: str | None = None,
        executor_cores: int | str | None = None,
        total_executor_cores: int | str | None = None,
        packages: str | Sequence[str] = (),
        jars: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        own = {
            "master": master, "driver_memory": driver_memory, "executor_memory": executor_memory,
            "executor_cores": executor_cores, "total_executor_cores": total_executor_cores,
            "packages": packages if isinstance(packages, str) else list(packages),
            "jars": jars if isinstance(jars, str) else list(jars),
        }  # fmt: skip
        super().__init__(options=own, **kwargs)


def spark_cluster(*, task_id: str = "spark_cluster", **kwargs: Any) -> Cluster:
    """Return a temporary Spark standalone cluster as a pair of tasks.

    ::

        with spark_cluster(workers=2) as cluster:
            train(...)  # runs after the set-up; the teardown runs after it, also if it fails

    Args:
        task_id: The set-up's id; the teardown's is the same with ``_stop``.
        **kwargs: `SparkClusterOperator`'s.
    """
    return Cluster(SparkClusterOperator(task_id=task_id, **kwargs))


def spark_workers(cluster: Cluster, *, task_id: str = "spark_workers", **kwargs: Any) -> Cluster:
    """Return further workers of a cluster as a pair of tasks; the tasks within its ``with`` have them.

    Args:
        cluster: The cluster that they join.
        task_id: The set-up's id; the teardown's is the same with ``_stop``.
        **kwargs: `SparkWorkersOperator`'s.
    """
    return Cluster(SparkWorkersOperator(task_id=task_id, cluster=cluster.address, **kwargs))


def spark_connect(*, task_id: str = "spark_connect", **kwargs: Any) -> Cluster:
    """Return a temporary Spark Connect server as a pair of tasks.

    Args:
        task_id: The set-up's id; the teardown's is the same with ``_stop``.
        **kwargs: `SparkConnectServerOperator`'s.
    """
    return Cluster(SparkConnectServerOperator(task_id=task_id, **kwargs))
