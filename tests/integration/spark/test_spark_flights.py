"""The flights example on Spark: its SQL makes the columns that pandas makes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rallypoint import Function
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

DAG_FILE = """
def compare(spark, month):
    import tempfile
    from pathlib import Path

    import numpy as np

    from rallypoint.examples.flights import preprocessing, spark_preprocessing
    from rallypoint.examples.flights.features import COLUMNS, NUMERIC

    folder = tempfile.mkdtemp()
    spark_preprocessing._unpack(folder)
    spark_preprocessing.read_tables(spark, Path(folder).as_uri())
    months = range(month, month + 1)
    whole = spark_preprocessing.features_frame(spark, months)
    # A flight has one place in its airport's day, by which both can be put in one order.
    order = ["day", "origin", "departures_before"]
    ours = whole.toPandas().sort_values(order, ignore_index=True)
    expected = preprocessing.flights_frame(months).compute(scheduler="sync").sort_values(order, ignore_index=True)
    different = {}
    for name in COLUMNS:
        if name in NUMERIC:
            same = np.isclose(ours[name], expected[name], rtol=1e-4, atol=1e-4, equal_nan=True)
        else:
            same = (ours[name].fillna("") == expected[name].fillna("")).to_numpy()
        if not same.all():
            different[name] = int((~same).sum())
    part = spark_preprocessing.features_frame(spark, months, 0.1).toPandas()
    return {"columns": list(ours.columns) == list(COLUMNS), "rows": [len(ours), len(expected)],
            "different": different, "share": len(part) / len(ours)}
"""


async def test_the_features_in_sql_are_those_of_pandas(engine, as_dag_file):
    module = as_dag_file(DAG_FILE, "comparing")
    conf = {"spark.sql.shuffle.partitions": 4, "spark.ui.enabled": "false"}
    job = SparkJob(Function(module.compare, (1,)), master="local[2]", conf=conf)
    started = await engine.start(job, Request(owner="try-1"))
    outcome = [update async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.2))][-1].outcome
    assert outcome.state is State.SUCCEEDED, outcome.failure.render()
    assert outcome.result["columns"] is True
    assert outcome.result["rows"] == [26398, 26398]  # the flights of January that landed
    assert outcome.result["different"] == {}
    assert outcome.result["share"] == pytest.approx(0.1, abs=0.01)
