"""Jobs, training and searches on Ray as tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.airflow.links import RayDashboardLink, RayJobLink, StageLink
from rallypoint.airflow.operators.base import StageOperator
from rallypoint.frameworks.ray.job import RayDriverJob, RayJob
from rallypoint.frameworks.ray.train.job import RayTrain
from rallypoint.frameworks.ray.tune.job import RayTune

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow.sdk import BaseOperatorLink

    from rallypoint.frameworks.ray.tune.schedulers import Scheduler


class RayJobOperator(StageOperator):
    """Runs a script, module or function with a connected Ray as a stage.

    Args:
        address: None for a Ray that is made for the attempt, ``"auto"``, the ``"host:port"`` of a cluster's GCS, or the
            result of a RayCluster task.
        dashboard: Whether a Ray that is made for the attempt has a dashboard.
        connect_timeout: Seconds to wait for a cluster.
        **kwargs: `StageOperator`'s.
    """

    job_class: ClassVar[type[RayDriverJob]] = RayJob
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), RayDashboardLink(), RayJobLink())

    def __init__(
        self,
        *,
        address: str | Mapping[str, Any] | None = None,
        dashboard: bool = True,
        connect_timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        options = {"address": address, "dashboard": dashboard, "connect_timeout": connect_timeout}
        super().__init__(job_options={**options, **(kwargs.pop("job_options", None) or {})}, **kwargs)


class RayTrainOperator(RayJobOperator):
    """Runs data-parallel training with Ray Train as a stage.

    The parameters are those of `rallypoint.RayTrain`; everything else is `RayJobOperator`'s. There are two budgets of
    restarts: ``max_failures`` is Ray Train's, within one attempt, and ``retries`` is Airflow's, between attempts.
    """

    job_class = RayTrain

    def __init__(  # noqa: PLR0913 - one keyword per option of Ray Train
        self,
        *,
        trainer: str = "torch",
        num_workers: int | str | tuple[int, int] = 1,
        use_gpu: bool = False,
        resources_per_worker: Mapping[str, float] | None = None,
        accelerator_type: str | None = None,
        placement_strategy: str = "PACK",
        elastic_resize_monitor_interval_s: float = 60.0,
        max_failures: int | str = 0,
        max_preemption_failures: int | str = -1,
        checkpoint_score_attribute: str | None = None,
        checkpoint_score_order: str = "max",
        **kwargs: Any,
    ) -> None:
        options = {
            "trainer": trainer, "num_workers": num_workers, "use_gpu": use_gpu,
            "resources_per_worker": resources_per_worker, "accelerator_type": accelerator_type,
            "placement_strategy": placement_strategy, "max_failures": max_failures,
            "elastic_resize_monitor_interval_s": elastic_resize_monitor_interval_s,
            "max_preemption_failures": max_preemption_failures,
            "checkpoint_score_attribute": checkpoint_score_attribute, "checkpoint_score_order": checkpoint_score_order,
        }  # fmt: skip
        super().__init__(job_options=options, **kwargs)


class RayTuneOperator(RayJobOperator):
    """Searches over the parameters of a training function with Ray Tune, as a stage.

    The parameters are those of `rallypoint.RayTune`; everything else is `RayJobOperator`'s. A retry does not run again
    what has finished.
    """

    job_class = RayTune

    def __init__(  # noqa: PLR0913 - one keyword per option of Ray Tune
        self,
        *,
        space: Mapping[str, Any],
        metric: str = "loss",
        mode: str = "min",
        num_samples: int | str = 10,
        search: str = "random",
        scheduler: Scheduler | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] = (),
        seed: int | str | None = None,
        max_concurrent_trials: int | str | None = None,
        resources_per_trial: Mapping[str, float] | None = None,
        reuse_actors: bool = False,
        time_budget: float | str | None = None,
        max_failures: int | str = 0,
        max_failed_trials: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        options = {
            "space": space, "metric": metric, "mode": mode, "num_samples": num_samples, "search": search,
            "scheduler": scheduler, "points_to_evaluate": points_to_evaluate, "seed": seed,
            "max_concurrent_trials": max_concurrent_trials, "resources_per_trial": resources_per_trial or {"CPU": 1.0},
            "reuse_actors": reuse_actors, "time_budget": time_budget, "max_failures": max_failures,
            "max_failed_trials": max_failed_trials,
        }  # fmt: skip
        super().__init__(job_options=options, **kwargs)
