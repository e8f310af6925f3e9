"""A DAG with a mistake that can be known while it is read."""

from __future__ import annotations

from airflow.sdk import dag

from rallypoint.airflow.operators import TorchElasticOperator


@dag(schedule=None)
def broken() -> None:
    """Asks for more nodes at the least than at the most."""
    TorchElasticOperator(task_id="train", script="train.py", nnodes="4:1")


broken()
