"""Late flights out of New York City: the stage functions that the example DAGs and flows share.

`preprocess` (Dask) joins the flights of 2013 with weather and planes, `train` (PyTorch) fits a network that tells
which will arrive more than 15 minutes late, and `evaluate` (scikit-learn) holds it against a logistic regression.

A DAG file may import this package in the orchestrator: it loads no framework before a function is called.
"""

from __future__ import annotations

from rallypoint.examples.flights.evaluation import better, evaluate
from rallypoint.examples.flights.preprocessing import preprocess
from rallypoint.examples.flights.training import train

__all__ = ["better", "evaluate", "preprocess", "train"]
