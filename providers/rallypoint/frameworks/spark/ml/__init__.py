"""MLlib as a stage: pipelines and cross-validations whose retry fits only what is missing."""

from __future__ import annotations

from rallypoint.frameworks.spark.ml.metrics import evaluator
from rallypoint.frameworks.spark.ml.pipeline import FittedPipeline, fit_pipeline, load_pipeline
from rallypoint.frameworks.spark.ml.tables import read_table, save_table

__all__ = ["FittedPipeline", "evaluator", "fit_pipeline", "load_pipeline", "read_table", "save_table"]
