"""Elastic PyTorch training as a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.airflow.links import StageLink, TensorBoardLink
from rallypoint.airflow.operators.base import StageOperator
from rallypoint.frameworks.torch.job import TorchElastic

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from airflow.sdk import BaseOperatorLink


class TorchElasticOperator(StageOperator):
    """Runs elastic PyTorch training (``torchrun``) as a stage.

    The parameters are those of `rallypoint.TorchElastic`; everything else is `StageOperator`'s. There are two budgets
    of restarts: ``max_restarts`` is torchrun's, within one attempt, and ``retries`` is Airflow's, between attempts.
    """

    job_class = TorchElastic
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), TensorBoardLink())

    def __init__(  # noqa: PLR0913 - one keyword per option of torchrun
        self,
        *,
        nnodes: str | int = "1",
        nproc_per_node: str | int = "auto",
        max_restarts: int | str = 0,
        monitor_interval: float = 0.1,
        rdzv_backend: str = "c10d",
        rdzv_endpoint: str | None = None,
        rdzv_conf: Mapping[str, str] | None = None,
        rdzv_timeout: float = 600.0,
        start_method: str = "spawn",
        **kwargs: Any,
    ) -> None:
        options = {
            "nnodes": nnodes, "nproc_per_node": nproc_per_node, "max_restarts": max_restarts,
            "monitor_interval": monitor_interval, "rdzv_backend": rdzv_backend, "rdzv_endpoint": rdzv_endpoint,
            "rdzv_conf": rdzv_conf or {}, "rdzv_timeout": rdzv_timeout, "start_method": start_method,
        }  # fmt: skip
        super().__init__(job_options=options, **kwargs)
