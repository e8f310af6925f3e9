"""The job of data-parallel training with Ray Train."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.frameworks.ray.job import RayDriverJob

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.spec.gang import Gang

TRAINERS = {"torch": "torch", "tensorflow": "tensorflow", "xgboost": "xgboost"}  # and the module that each needs
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_RANGE = re.compile(r"^\s*[\[(]?\s*(\d+)\s*[,:]\s*(\d+)\s*[\])]?\s*$")
_UNLIMITED = -1


@dataclass(frozen=True, kw_only=True)
class RayTrain(RayDriverJob):
    """Data-parallel training with Ray Train: the entry runs on every worker, as ``train_loop_per_worker``.

    The code may use ``rallypoint.stage()`` as it would under torchrun (``rank``, ``world_size``, ``local_rank``,
    ``save_checkpoint``, ``latest_checkpoint``, ``report``), or ``ray.train.report`` and ``ray.train.get_checkpoint``;
    either way a lost worker, a lost node and a retry of the stage continue from the last checkpoint. With
    ``trainer="torch"`` Ray has initialised ``torch.distributed`` before the code runs: it must not do so again.

    There are two budgets of restarts. Ray Train's (`max_failures`) restarts the workers within one attempt; the
    orchestrator's (``retries``) starts a new attempt.

    The result is what the entry returns on rank 0; if that is nothing, the last metrics and the checkpoint's URI.

    Args:
        trainer: ``"torch"``, ``"tensorflow"`` or ``"xgboost"``: what joins the workers.
        num_workers: How many workers, or ``(min, max)`` for a group that shrinks and grows with the cluster.
        use_gpu: Whether each worker has a GPU.
        resources_per_worker: What each worker asks of Ray, such as ``{"CPU": 2}``; one CPU by default, and one GPU with
            `use_gpu`.
        accelerator_type: The accelerator that a worker's node must have, as Ray calls it.
        placement_strategy: ``"PACK"``, ``"SPREAD"``, ``"STRICT_PACK"`` or ``"STRICT_SPREAD"``.
        elastic_resize_monitor_interval_s: Seconds between two looks at whether an elastic group can grow.
        max_failures: How often Ray Train restarts the workers within one attempt; -1 for ever.
        max_preemption_failures: How often it does so after a node was taken away, beside `max_failures`; -1 for ever.
            Needs a Ray Train that knows it.
        checkpoint_score_attribute: The metric by which reported checkpoints are kept; the newest ones by default. How
            many is `keep_checkpoints`.
        checkpoint_score_order: ``"max"`` or ``"min"``.

    Raises:
        InvalidJobError: A value is wrong.

    The parameters are those of ``ScalingConfig``, ``FailureConfig`` and ``CheckpointConfig`` in the documentation of
    Ray Train.
    """

    kind: ClassVar[str] = "ray-train"

    trainer: str = "torch"
    num_workers: int | str | tuple[int, int] = 1
    use_gpu: bool = False
    resources_per_worker: Mapping[str, float] | None = None
    accelerator_type: str | None = None
    placement_strategy: str = "PACK"
    elastic_resize_monitor_interval_s: float = 60.0
    max_failures: int | str = 0
    max_preemption_failures: int | str = _UNLIMITED
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: str = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainer not in TRAINERS:
            raise self.invalid("trainer", self.trainer, f"one of {', '.join(TRAINERS)}")
        least, most = self.workers
        if not 1 <= least <= most:
            raise self.invalid("num_workers", self.num_workers, "1 or more, or (min, max) with 1 ≤ min ≤ max")
        if not isinstance(self.use_gpu, bool):
            raise self.invalid("use_gpu", self.use_gpu, "True or False")
        if self.resources_per_worker is not None:
            object.__setattr__(self, "resources_per_worker", self.amounts("resources_per_worker"))
        if self.placement_strategy not in STRATEGIES:
            raise self.invalid("placement_strategy", self.placement_strategy, f"one of {', '.join(STRATEGIES)}")
        if self.checkpoint_score_order not in {"max", "min"}:
            raise self.invalid("checkpoint_score_order", self.checkpoint_score_order, '"max" or "min"')
        for name in ("max_failures", "max_preemption_failures"):
            object.__setattr__(self, name, self.whole(name, _UNLIMITED))
        interval = self.seconds("elastic_resize_monitor_interval_s")
        object.__setattr__(self, "elastic_resize_monitor_interval_s", interval)
        if self.address is None and self.resources.cpus is not None and self.resources.cpus < self.least_cpus():
            expected = f"{self.least_cpus():g} or more, which {least} workers ask of the Ray that is made for them"
            raise self.invalid("resources.cpus", self.resources.cpus, expected)

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the largest number of workers."""
        value: object = self.num_workers
        if isinstance(value, list | tuple) and len(value) == 2 and all(type(each) is int for each in value):  # noqa: PLR2004 - a pair
            return value[0], value[1]
        text = str(value).strip()
        if match := _RANGE.match(text):
            return int(match[1]), int(match[2])
        if isinstance(value, bool) or not text.isdigit():
            raise self.invalid("num_workers", value, "a whole number, or (min, max) for an elastic group")
        return int(text), int(text)

    def least_cpus(self) -> float:
        """Return the CPUs of the smallest group of workers."""
        return self.workers[0] * (self.resources_per_worker or {}).get("CPU", 1.0)

    def plan(self) -> Gang:
        """Return the gang; its Python must have the trainer's framework too."""
        return replace(super().plan(), requires=(*self.requires, TRAINERS[self.trainer]))

    def settings(self) -> dict[str, Any]:
        """Return what the driver has to know."""
        least, most = self.workers
        elastic = self.num_workers if not isinstance(self.num_workers, str) else _RANGE.match(self.num_workers)
        is_range = isinstance(elastic, list | tuple | re.Match)
        scaling: dict[str, Any] = {
            "num_workers": [least, most] if is_range else least,
            "use_gpu": self.use_gpu,
            "resources_per_worker": dict(self.resources_per_worker) if self.resources_per_worker else None,
            "accelerator_type": self.accelerator_type,
            "placement_strategy": self.placement_strategy,
            "elastic_resize_monitor_interval_s": self.elastic_resize_monitor_interval_s,
        }
        return {
            **super().settings(),
            "trainer": self.trainer,
            "scaling": scaling,
            "failure": {"max_failures": self.max_failures, "max_preemption_failures": self.max_preemption_failures},
            "checkpoint": {
                "num_to_keep": self.keep_checkpoints,
                "checkpoint_score_attribute": self.checkpoint_score_attribute,
                "checkpoint_score_order": self.checkpoint_score_order,
            },
        }
