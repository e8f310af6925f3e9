"""Operators that run a distributed job as a stage: one base, and a few lines per framework."""

from __future__ import annotations

from rallypoint.airflow.operators.base import StageOperator
from rallypoint.airflow.operators.dask import DaskOperator
from rallypoint.airflow.operators.torch import TorchElasticOperator

__all__ = ["DaskOperator", "StageOperator", "TorchElasticOperator"]
