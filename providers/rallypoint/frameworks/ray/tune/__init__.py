"""Ray Tune: a search over the parameters of a training function, as a stage."""

from __future__ import annotations

from rallypoint.frameworks.ray.tune import search

__all__ = ["search"]
