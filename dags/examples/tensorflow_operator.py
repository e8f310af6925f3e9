"""`TensorFlowOperator`: a script with a chief, a worker and a parameter server; each process has its ``TF_CONFIG``."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from rallypoint.airflow.operators import TensorFlowOperator


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_tensorflow_operator() -> None:
    """Count with a ClusterCoordinator; other strategies take the same operator."""
    TensorFlowOperator(
        task_id="count",
        script="scripts/count_steps.py",  # beside this DAG file
        args=["--steps", "40"],
        strategy="parameter_server",
        workers=1,
        parameter_servers=1,
        join_timeout=300,  # seconds, with the import of TensorFlow
        retries=2,
        retry_delay=timedelta(seconds=5),
        deferrable=True,
    )


example_tensorflow_operator()
