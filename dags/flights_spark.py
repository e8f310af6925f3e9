"""Flight delays in Spark: the features of `flights` in SQL, boosted trees and a logistic regression of MLlib."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task

from rallypoint.examples import flights as stages


@dag(
    schedule=None,
    render_template_as_native_obj=True,  # the numbers of the form below stay numbers
    tags=["rallypoint", "example"],
    doc_md=__doc__,
    params={
        "master": Param("local[2]", type="string", description="Spark's master, such as spark://host:7077"),
        "folds": Param(2, type="integer", minimum=2, maximum=10, description="Folds of the cross-validation"),
        "iterations": Param(40, type="integer", minimum=1, description="Trees, and steps of the regression"),
        "margin": Param(0.005, type="number", description="How far below the baseline's AUC the best model's may be"),
        "fraction": Param(1.0, type="number", exclusiveMinimum=0, maximum=1, description="Share of the flights to use"),
    },
)
def flights_spark() -> None:
    """Predict which flights arrive more than 15 minutes late."""
    retry: dict[str, Any] = {"retries": 1, "retry_delay": timedelta(seconds=5), "deferrable": True}
    spark: dict[str, Any] = {
        "master": "{{ params.master }}",
        "driver_memory": "3g",
        "conf": {"spark.sql.shuffle.partitions": 8},
        **retry,
    }
    settings: dict[str, Any] = {"folds": "{{ params.folds }}", "iterations": "{{ params.iterations }}"}

    features = task.spark(task_id="features", **spark)(stages.spark_features)
    trees = task.spark(task_id="train_gbt", **spark)(stages.train_spark)
    regression = task.spark(task_id="train_logistic", **spark)(stages.train_spark)
    compare = task.python_job(task_id="compare", deferrable=True)(stages.compare_spark)

    data = features(fraction="{{ params.fraction }}")
    trained = [
        trees(train_uri=data["train"], test_uri=data["test"], model="gbt", **settings),
        regression(train_uri=data["train"], test_uri=data["test"], model="logistic", **settings),
    ]
    trained[0] >> trained[1]  # one after the other: on one machine they share its cores
    compare(trained, data["train"], data["test"], margin="{{ params.margin }}")


flights_spark()
