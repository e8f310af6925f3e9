"""`TorchElasticOperator`: an unchanged ``torchrun`` script as a stage."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from rallypoint.airflow.operators import TorchElasticOperator


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_torch_operator() -> None:
    """Train a line with DistributedDataParallel on two processes."""
    TorchElasticOperator(
        task_id="train",
        script="scripts/fit_line.py",  # beside this DAG file
        args=["--epochs", "3"],
        nproc_per_node=2,
        max_restarts=1,  # torchrun's own: within one attempt, in seconds
        retries=2,  # Airflow's: a new attempt, from the last checkpoint
        retry_delay=timedelta(seconds=5),
        stall_timeout=600,
        deferrable=True,
    )


example_torch_operator()
