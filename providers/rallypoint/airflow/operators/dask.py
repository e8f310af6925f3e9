"""Dask processing as a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.airflow.links import DaskDashboardLink, StageLink
from rallypoint.airflow.operators.base import StageOperator
from rallypoint.frameworks.dask.job import DaskClusterClass, DaskJob

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from airflow.sdk import BaseOperatorLink
    from airflow.sdk.definitions.xcom_arg import XComArg


class DaskOperator(StageOperator):
    """Runs a function or script with a connected Dask `Client` as a stage.

    Args:
        cluster: None for a local cluster, the address of a running scheduler, the result of a
            `rallypoint.airflow.operators.dask_cluster.DaskClusterOperator`, or a `rallypoint.DaskClusterClass`.
        connect_timeout: Seconds to wait for a scheduler.
        **kwargs: `StageOperator`'s.
    """

    job_class = DaskJob
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), DaskDashboardLink())

    def __init__(
        self,
        *,
        cluster: str | Mapping[str, Any] | XComArg | DaskClusterClass | None = None,
        connect_timeout: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(job_options={"cluster": cluster, "connect_timeout": connect_timeout}, **kwargs)
