"""Flight delays in Spark as a Prefect flow: the pipeline of `dags/flights_spark.py`, over the same functions."""

from __future__ import annotations

from typing import Any

from prefect import flow, serve

from rallypoint.examples import flights as stages
from rallypoint.prefect import python_task, reaper_deployment, spark_task

_OPTIONS: dict[str, Any] = {
    "retries": 1,
    "driver_memory": "3g",
    "conf": {"spark.sql.shuffle.partitions": 8},
}
features = spark_task(name="features", **_OPTIONS)(stages.spark_features)
train = spark_task(name="train", **_OPTIONS)(stages.train_spark)
compare = python_task(name="compare")(stages.compare_spark)


@flow(name="flights-spark")
def flights_spark(
    master: str | dict[str, Any] = "local[2]",
    fraction: float = 1.0,
    folds: int = 2,
    iterations: int = 40,
    margin: float = 0.005,
) -> dict[str, Any]:
    """Predict which flights arrive more than 15 minutes late.

    Args:
        master: Spark's master, such as ``spark://host:7077``, or the address object of a `rallypoint.SparkCluster`.
        fraction: Share of the flights to use.
        folds: Folds of the cross-validation.
        iterations: Trees, and steps of the regression.
        margin: How far below the baseline's ROC-AUC the best model's may be.
    """
    data = features.with_options(master=master)(fraction=fraction)
    trained = [
        train.with_options(name=f"train-{model}", master=master)(
            train_uri=data["train"], test_uri=data["test"], model=model, folds=folds, iterations=iterations
        )
        for model in ("gbt", "logistic")  # one after the other: on one machine they share its cores
    ]
    return dict(compare(trained, data["train"], data["test"], margin=margin))


if __name__ == "__main__":
    serve(flights_spark.to_deployment("flights-spark"), reaper_deployment())
