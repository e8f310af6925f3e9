"""A temporary Spark cluster, shared by two tasks between its set-up and its teardown."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag

from rallypoint.airflow.operators.spark import SparkOperator
from rallypoint.airflow.operators.spark_cluster import spark_cluster


def count(spark: Any, rows: int) -> dict[str, Any]:
    """Return how many rows the executors count, and for which master."""
    return {"rows": spark.range(rows).repartition(4).count(), "master": spark.sparkContext.master}


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_spark_cluster() -> None:
    """The teardown runs also when `count` fails; clearing `count` clears it and the set-up with it."""
    small = {"driver_memory": "512m", "executor_memory": "512m"}
    with spark_cluster(workers=2, memory_per_worker="512MiB") as cluster:
        first = SparkOperator(
            task_id="count", python_callable=count, op_kwargs={"rows": 1000}, master=cluster.address, **small
        )
        second = SparkOperator(
            task_id="count_more", python_callable=count, op_kwargs={"rows": 2000}, master=cluster.address, **small
        )
        first >> second


example_spark_cluster()
