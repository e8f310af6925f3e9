"""`RayJobOperator`: a script with a connected Ray, here one that is made for the task and gone with it.

With ``address="10.0.0.5:6379"`` (a cluster that this host belongs to), or with the result of a cluster's set-up task,
the same script uses that cluster.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from rallypoint import Resources
from rallypoint.airflow.operators import RayJobOperator


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_ray_job_operator() -> None:
    """Estimate π with Ray tasks."""
    RayJobOperator(
        task_id="estimate_pi",
        script="scripts/estimate_pi.py",  # beside this DAG file
        args=["--points", "400000"],
        job_resources=Resources(cpus=2),
        retries=1,
        retry_delay=timedelta(seconds=5),
        deferrable=True,
    )


example_ray_job_operator()
