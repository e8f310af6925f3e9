"""``@spark_task``: a function with a Spark session, here a local one of two threads.

Run it with ``python flows/examples/spark_table.py``.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from rallypoint.prefect import spark_task


@spark_task(master="local[2]", driver_memory="1g", conf={"spark.sql.shuffle.partitions": 4}, retries=1)
def tails(spark: Any, rows: int = 1000) -> dict[str, Any]:
    """Count by last digit and return the counts; the caller gives no session."""
    counts = spark.range(rows).selectExpr("id % 10 AS digit").groupBy("digit").count().orderBy("digit")
    return {"counts": [row["count"] for row in counts.collect()]}


@flow(name="example-spark")
def pipeline(rows: int = 1000) -> dict[str, Any]:
    """Count."""
    return tails(rows=rows)


if __name__ == "__main__":
    print(pipeline())  # noqa: T201 - for who runs it
