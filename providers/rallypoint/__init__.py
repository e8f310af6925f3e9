"""Rallypoint: distributed ML jobs as stages of Airflow DAGs and Prefect flows.

A retry of a stage from the orchestrator's UI continues the job, and nothing ever runs twice.

Importing this package costs nothing: the names below are loaded when they are first used, because DAG files import
it in the orchestrator and because it travels with every job, where only the standard library may be there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rallypoint.errors import RallypointError, StageFailedError
    from rallypoint.frameworks.dask.job import DaskCluster, DaskJob
    from rallypoint.frameworks.torch.job import TorchElastic
    from rallypoint.spec.entry import Function, Module, Script
    from rallypoint.spec.failure import FailureRule, Kind
    from rallypoint.spec.resources import Resources
    from rallypoint.worker.stage import Stage, stage

__version__ = "0.1.0"

_HOMES = {
    "DaskCluster": "rallypoint.frameworks.dask.job",
    "DaskJob": "rallypoint.frameworks.dask.job",
    "FailureRule": "rallypoint.spec.failure",
    "Function": "rallypoint.spec.entry",
    "Kind": "rallypoint.spec.failure",
    "Module": "rallypoint.spec.entry",
    "RallypointError": "rallypoint.errors",
    "Resources": "rallypoint.spec.resources",
    "Script": "rallypoint.spec.entry",
    "Stage": "rallypoint.worker.stage",
    "StageFailedError": "rallypoint.errors",
    "TorchElastic": "rallypoint.frameworks.torch.job",
    "stage": "rallypoint.worker.stage",
}

__all__ = [
    "DaskCluster",
    "DaskJob",
    "FailureRule",
    "Function",
    "Kind",
    "Module",
    "RallypointError",
    "Resources",
    "Script",
    "Stage",
    "StageFailedError",
    "TorchElastic",
    "__version__",
    "stage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'rallypoint' has no attribute {name!r}; it has {', '.join(__all__)}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
