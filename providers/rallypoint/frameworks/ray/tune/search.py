"""The vocabulary of a search, as ``rallypoint.search``: domains of parameters, and schedulers."""

from __future__ import annotations

from rallypoint.frameworks.ray.tune.schedulers import Asha, HyperBand, MedianStopping, PopulationBased
from rallypoint.frameworks.ray.tune.space import (
    choice,
    grid,
    lograndint,
    loguniform,
    normal,
    randint,
    uniform,
)

__all__ = [
    "Asha",
    "HyperBand",
    "MedianStopping",
    "PopulationBased",
    "choice",
    "grid",
    "lograndint",
    "loguniform",
    "normal",
    "randint",
    "uniform",
]
