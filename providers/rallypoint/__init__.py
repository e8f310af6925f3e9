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
    from rallypoint.frameworks.dask.cluster import DaskCluster
    from rallypoint.frameworks.dask.job import DaskClusterClass, DaskJob
    from rallypoint.frameworks.python.job import PythonJob
    from rallypoint.frameworks.ray.cluster import RayCluster, RayWorkers
    from rallypoint.frameworks.ray.job import RayJob
    from rallypoint.frameworks.ray.serve.job import RayServe, RayServeRollback, RayServeUndeploy
    from rallypoint.frameworks.ray.serve.question import ServeProbe
    from rallypoint.frameworks.ray.train.job import RayTrain
    from rallypoint.frameworks.ray.tune import search
    from rallypoint.frameworks.ray.tune.job import RayTune
    from rallypoint.frameworks.spark.cluster import SparkCluster, SparkWorkers
    from rallypoint.frameworks.spark.connect_server import SparkConnectServer
    from rallypoint.frameworks.spark.hive import Hive
    from rallypoint.frameworks.spark.job import SparkJob
    from rallypoint.frameworks.spark.ml.job import SparkMLPipeline
    from rallypoint.frameworks.tensorflow.job import CloudTPU, TensorFlowJob
    from rallypoint.frameworks.tensorflow.serving.job import TFServingDeploy, TFServingProbe, TFServingSignature
    from rallypoint.frameworks.torch.job import TorchElastic
    from rallypoint.spec.entry import Function, Jar, Module, Script
    from rallypoint.spec.failure import FailureRule, Kind
    from rallypoint.spec.resources import Resources
    from rallypoint.worker.stage import Stage, stage

__version__ = "0.1.0"

_HOMES = {
    "CloudTPU": "rallypoint.frameworks.tensorflow.job",
    "DaskCluster": "rallypoint.frameworks.dask.cluster",
    "DaskClusterClass": "rallypoint.frameworks.dask.job",
    "DaskJob": "rallypoint.frameworks.dask.job",
    "FailureRule": "rallypoint.spec.failure",
    "Function": "rallypoint.spec.entry",
    "Hive": "rallypoint.frameworks.spark.hive",
    "Jar": "rallypoint.spec.entry",
    "Kind": "rallypoint.spec.failure",
    "Module": "rallypoint.spec.entry",
    "PythonJob": "rallypoint.frameworks.python.job",
    "RallypointError": "rallypoint.errors",
    "RayCluster": "rallypoint.frameworks.ray.cluster",
    "RayJob": "rallypoint.frameworks.ray.job",
    "RayServe": "rallypoint.frameworks.ray.serve.job",
    "RayServeRollback": "rallypoint.frameworks.ray.serve.job",
    "RayServeUndeploy": "rallypoint.frameworks.ray.serve.job",
    "RayTrain": "rallypoint.frameworks.ray.train.job",
    "RayTune": "rallypoint.frameworks.ray.tune.job",
    "RayWorkers": "rallypoint.frameworks.ray.cluster",
    "Resources": "rallypoint.spec.resources",
    "Script": "rallypoint.spec.entry",
    "ServeProbe": "rallypoint.frameworks.ray.serve.question",
    "SparkCluster": "rallypoint.frameworks.spark.cluster",
    "SparkConnectServer": "rallypoint.frameworks.spark.connect_server",
    "SparkJob": "rallypoint.frameworks.spark.job",
    "SparkMLPipeline": "rallypoint.frameworks.spark.ml.job",
    "SparkWorkers": "rallypoint.frameworks.spark.cluster",
    "Stage": "rallypoint.worker.stage",
    "StageFailedError": "rallypoint.errors",
    "TFServingDeploy": "rallypoint.frameworks.tensorflow.serving.job",
    "TFServingProbe": "rallypoint.frameworks.tensorflow.serving.job",
    "TFServingSignature": "rallypoint.frameworks.tensorflow.serving.job",
    "TensorFlowJob": "rallypoint.frameworks.tensorflow.job",
    "TorchElastic": "rallypoint.frameworks.torch.job",
    "search": "rallypoint.frameworks.ray.tune",
    "stage": "rallypoint.worker.stage",
}

__all__ = [
    "CloudTPU",
    "DaskCluster",
    "DaskClusterClass",
    "DaskJob",
    "FailureRule",
    "Function",
    "Hive",
    "Jar",
    "Kind",
    "Module",
    "PythonJob",
    "RallypointError",
    "RayCluster",
    "RayJob",
    "RayServe",
    "RayServeRollback",
    "RayServeUndeploy",
    "RayTrain",
    "RayTune",
    "RayWorkers",
    "Resources",
    "Script",
    "ServeProbe",
    "SparkCluster",
    "SparkConnectServer",
    "SparkJob",
    "SparkMLPipeline",
    "SparkWorkers",
    "Stage",
    "StageFailedError",
    "TFServingDeploy",
    "TFServingProbe",
    "TFServingSignature",
    "TensorFlowJob",
    "TorchElastic",
    "__version__",
    "search",
    "stage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'rallypoint' has no attribute {name!r}; it has {', '.join(__all__)}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
