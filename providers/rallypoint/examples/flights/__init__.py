"""Late flights out of New York City: the stage functions that the example DAGs and flows share.

`preprocess` (Dask) joins the flights of 2013 with weather and planes, `train` (PyTorch) fits a network that tells
which will arrive more than 15 minutes late, a sweep (Ray Tune, `SWEEP`) looks for better settings of it, and `evaluate`
(scikit-learn) holds the `better` of both models against a logistic regression. Ray Serve answers with it
(`examples.flights.serving`), and `smoke` asks for real flights. `train_tensorflow` and `compare_tensorflow` do the
training with TensorFlow. `spark_features`, `train_spark` and `compare_spark` do all of it with Spark.

A DAG file may import this package in the orchestrator: it loads no framework before a function is called.
"""

from __future__ import annotations

from rallypoint.examples.flights.evaluation import better, evaluate
from rallypoint.examples.flights.preprocessing import preprocess
from rallypoint.examples.flights.serving import smoke
from rallypoint.examples.flights.spark_preprocessing import spark_features
from rallypoint.examples.flights.spark_training import compare_spark, train_spark
from rallypoint.examples.flights.tensorflow_training import compare_tensorflow, train_tensorflow
from rallypoint.examples.flights.training import train
from rallypoint.examples.flights.tuning import SWEEP

__all__ = [
    "SWEEP",
    "better",
    "compare_spark",
    "compare_tensorflow",
    "evaluate",
    "preprocess",
    "smoke",
    "spark_features",
    "train",
    "train_spark",
    "train_tensorflow",
]
