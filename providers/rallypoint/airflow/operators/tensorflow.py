"""TensorFlow under a strategy of ``tf.distribute`` as a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.airflow.links import StageLink, TensorBoardLink
from rallypoint.airflow.operators.base import StageOperator
from rallypoint.frameworks.tensorflow.job import TensorFlowJob

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow.sdk import BaseOperatorLink

    from rallypoint.frameworks.tensorflow.job import CloudTPU
    from rallypoint.spec.resources import Resources


class TensorFlowOperator(StageOperator):
    """Runs TensorFlow as a stage: one process, or all those of a strategy of several.

    The parameters are those of `rallypoint.TensorFlowJob`; everything else is `StageOperator`'s.
    """

    job_class = TensorFlowJob
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), TensorBoardLink())

    def __init__(  # noqa: PLR0913 - one keyword per option of the job
        self,
        *,
        strategy: str = "default",
        workers: int | str | None = None,
        chief: bool | None = None,
        parameter_servers: int | str | None = None,
        evaluator: bool = False,
        evaluator_grace: float = 30.0,
        gpus: int | Sequence[int] | None = None,
        task_resources: Mapping[str, Resources] | None = None,
        memory_growth: bool = True,
        logical_devices: int | str | None = None,
        keras: str = "3",
        communication: str = "auto",
        collective_timeout: float | None = None,
        join_timeout: float = 300.0,
        tpu: CloudTPU | None = None,
        xla_flags: Sequence[str] = (),
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        options = {
            "strategy": strategy, "workers": workers, "chief": chief, "parameter_servers": parameter_servers,
            "evaluator": evaluator, "evaluator_grace": evaluator_grace, "gpus": gpus,
            "task_resources": task_resources or {}, "memory_growth": memory_growth, "logical_devices": logical_devices,
            "keras": keras, "communication": communication, "collective_timeout": collective_timeout,
            "join_timeout": join_timeout, "tpu": tpu, "xla_flags": xla_flags, "jit_compile": jit_compile,
        }  # fmt: skip
        super().__init__(job_options=options, **kwargs)

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Leave the check for later where the strategy is a template: which of the others fit depends on it."""
        if "strategy" in options:
            super()._check_job(options, env)
