"""The example's own stages on little data, with no retry of their own, so that a test can clear what failed."""

from __future__ import annotations

from airflow.sdk import dag, task

from rallypoint.examples import flights as stages


@dag(schedule=None)
def small_flights() -> None:
    """Preprocess and train."""
    data = task.dask(task_id="preprocess", deferrable=True)(stages.preprocess)(fraction=0.05)
    task.torch(task_id="train", nproc_per_node=2, deferrable=True)(stages.train)(data["train"], epochs=40)


small_flights()
