"""A temporary Dask cluster, shared by two tasks between its set-up and its teardown."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag

from rallypoint.airflow.operators.dask import DaskOperator
from rallypoint.airflow.operators.dask_cluster import dask_cluster


def count(client: Any, upto: int) -> dict[str, Any]:
    """Return what the workers add up, and how many they are."""
    parts = client.map(sum, [range(start, min(start + 100, upto)) for start in range(0, upto, 100)])
    return {"total": client.submit(sum, parts).result(), "workers": len(client.scheduler_info()["workers"])}


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_dask_cluster() -> None:
    """The teardown runs also when `count` fails; clearing `count` clears it and the set-up with it."""
    with dask_cluster(workers=2, memory_per_worker="512MiB") as cluster:
        first = DaskOperator(task_id="count", python_callable=count, op_kwargs={"upto": 1000}, cluster=cluster.address)
        second = DaskOperator(
            task_id="count_more", python_callable=count, op_kwargs={"upto": 2000}, cluster=cluster.address
        )
        first >> second


example_dask_cluster()
