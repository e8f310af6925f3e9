"""`SparkOperator`: an unchanged PySpark script on a Spark that is made for the task.

With ``spark_conn_id="spark_default"``, a connection of the apache-spark provider, or ``master="yarn"``, the same script
runs there. A jar is ``jar="…/app.jar", main_class="com.example.Main"``.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from rallypoint import Resources
from rallypoint.airflow.operators import SparkOperator


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_spark_operator() -> None:
    """Count words."""
    SparkOperator(
        task_id="count_words",
        script="scripts/count_words.py",  # beside this DAG file
        args=["10000"],
        conf={"spark.sql.shuffle.partitions": 4},
        job_resources=Resources(cpus=2, memory="2GiB"),
        retries=1,
        retry_delay=timedelta(seconds=5),
        deferrable=True,
    )


example_spark_operator()
