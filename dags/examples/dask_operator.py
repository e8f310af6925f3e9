"""`DaskOperator`: a script that calls ``Client()`` without arguments, on a local cluster of two workers."""

from __future__ import annotations

from airflow.sdk import dag

from rallypoint import Resources
from rallypoint.airflow.operators import DaskOperator


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_dask_operator() -> None:
    """Count words of numbers; give ``cluster="tcp://…"`` to use a running scheduler instead."""
    DaskOperator(
        task_id="count",
        script="scripts/count_digits.py",
        args=["200"],
        job_resources=Resources(cpus=2, memory="2GiB"),
        deferrable=True,
    )


example_dask_operator()
