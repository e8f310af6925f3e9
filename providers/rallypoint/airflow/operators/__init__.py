"""Operators that run a distributed job as a stage: one base, and a few lines per framework."""

from __future__ import annotations

from rallypoint.airflow.operators.base import StageOperator
from rallypoint.airflow.operators.dask import DaskOperator
from rallypoint.airflow.operators.python import PythonJobOperator
from rallypoint.airflow.operators.ray import RayJobOperator, RayTrainOperator, RayTuneOperator
from rallypoint.airflow.operators.ray_serve import (
    RayServeOperator,
    RayServeRollbackOperator,
    RayServeUndeployOperator,
)
from rallypoint.airflow.operators.spark import SparkOperator
from rallypoint.airflow.operators.tensorflow import TensorFlowOperator
from rallypoint.airflow.operators.tf_serving import TFServingDeployOperator
from rallypoint.airflow.operators.torch import TorchElasticOperator

__all__ = [
    "DaskOperator",
    "PythonJobOperator",
    "RayJobOperator",
    "RayServeOperator",
    "RayServeRollbackOperator",
    "RayServeUndeployOperator",
    "RayTrainOperator",
    "RayTuneOperator",
    "SparkOperator",
    "StageOperator",
    "TFServingDeployOperator",
    "TensorFlowOperator",
    "TorchElasticOperator",
]
