"""Face 2, Prefect 3: tasks whose function runs in a job, blocks, artifacts, assets and a reaper.

====================  =========================================================================
``tasks``             ``@torch_task``, ``@ray_tune_task`` and the like; `stage_task` for scripts and modules
``running``           `run_stage` and `arun_stage`, in a flow and outside of one
``services``          `service` and `aservice`: a temporary cluster for one flow run
``blocks``            `RallypointStore`, `RallypointLauncher`, `RallypointRayCluster`, `RallypointSSHHosts`
``retries``           `retry_condition`: what a retry cannot help is not retried
``reaper``            stops the jobs of cancelled flow runs whose process is gone
``guard``             stops the job of a cancelled run whose task runner has ended the waiting process
``trying``            one try of a stage, from start to end
``runs``              which run this is, and what its state says about its jobs
``showing``           the artifacts
``assets``            the events that tell of assets, once for each success
====================  =========================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    # Prefect's servers and workers load this package for its blocks, so that these are found where it looks for them.
    from rallypoint.prefect.blocks import (
        RallypointLauncher,
        RallypointRayCluster,
        RallypointSSHHosts,
        RallypointStore,
    )
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "prefect":
        raise
    msg = "rallypoint.prefect needs Prefect 3: pip install 'rallypoint[prefect]'"
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from rallypoint.prefect.options import StageOptions
    from rallypoint.prefect.reaper import reaper_deployment, stop_jobs_on_cancellation
    from rallypoint.prefect.retries import retry_condition
    from rallypoint.prefect.running import arun_stage, run_stage
    from rallypoint.prefect.services import aservice, service
    from rallypoint.prefect.tasks import (
        StageTask,
        dask_task,
        python_task,
        ray_task,
        ray_train_task,
        ray_tune_task,
        spark_task,
        stage_task,
        tensorflow_task,
        torch_task,
    )

_HOMES = {
    "StageOptions": "options",
    "StageTask": "tasks",
    "aservice": "services",
    "arun_stage": "running",
    "dask_task": "tasks",
    "python_task": "tasks",
    "ray_task": "tasks",
    "ray_train_task": "tasks",
    "ray_tune_task": "tasks",
    "reaper_deployment": "reaper",
    "retry_condition": "retries",
    "run_stage": "running",
    "service": "services",
    "spark_task": "tasks",
    "stage_task": "tasks",
    "stop_jobs_on_cancellation": "reaper",
    "tensorflow_task": "tasks",
    "torch_task": "tasks",
}

__all__ = [
    "RallypointLauncher",
    "RallypointRayCluster",
    "RallypointSSHHosts",
    "RallypointStore",
    "StageOptions",
    "StageTask",
    "arun_stage",
    "aservice",
    "dask_task",
    "python_task",
    "ray_task",
    "ray_train_task",
    "ray_tune_task",
    "reaper_deployment",
    "retry_condition",
    "run_stage",
    "service",
    "spark_task",
    "stage_task",
    "stop_jobs_on_cancellation",
    "tensorflow_task",
    "torch_task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'rallypoint.prefect' has no attribute {name!r}; it has {', '.join(__all__)}"
        raise AttributeError(msg)
    return getattr(import_module(f"rallypoint.prefect.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
