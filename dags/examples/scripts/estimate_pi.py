"""Estimates π by throwing points at a square, in Ray tasks; Ray is initialised when this script starts."""

from __future__ import annotations

import argparse
import random

import ray

import rallypoint

parser = argparse.ArgumentParser()
parser.add_argument("--points", type=int, default=400_000)
parser.add_argument("--tasks", type=int, default=8)
given = parser.parse_args()


@ray.remote
def hits(seed: int, points: int) -> int:
    """Return how many random points of the unit square lie within the quarter of a circle."""
    rng = random.Random(seed)  # noqa: S311 - no cryptography
    return sum(rng.random() ** 2 + rng.random() ** 2 <= 1 for _ in range(points))


stage = rallypoint.stage()
waiting = [hits.remote(seed, given.points // given.tasks) for seed in range(given.tasks)]
inside = 0
for done in range(1, given.tasks + 1):
    ready, waiting = ray.wait(waiting)
    inside += ray.get(ready[0])
    stage.report(step=done, total=given.tasks, unit="task")
stage.result({"pi": 4 * inside / (given.points // given.tasks * given.tasks)})
