"""Hive tables as stages see them: an embedded metastore and its warehouse folder outlive the stage that made them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rallypoint import Function
from rallypoint.frameworks.spark.hive import Hive
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SMALL = {"spark.sql.shuffle.partitions": 2, "spark.ui.enabled": "false"}

DAG_FILE = """
def make(spark):
    spark.sql("CREATE TABLE late (carrier STRING, minutes INT) STORED AS PARQUET")
    spark.sql("INSERT INTO late VALUES ('UA', 20), ('AA', 35), ('UA', 5)")
    return {"catalog": spark.conf.get("spark.sql.catalogImplementation")}


def read(spark):
    rows = spark.sql("SELECT carrier, sum(minutes) AS total FROM late GROUP BY carrier ORDER BY carrier").collect()
    location = spark.sql("DESCRIBE FORMATTED late").filter("col_name = 'Location'").first().data_type
    return {"rows": [list(row) for row in rows], "location": location}


def missing(spark):
    spark.table("late")
"""


@pytest.fixture
def dag(as_dag_file):
    return as_dag_file(DAG_FILE, "tables")


async def test_a_table_that_one_stage_makes_is_read_by_another(store, launcher, dag, tmp_path, jobs_left):
    async def run(name, function, hive):
        engine = Engine(store, StageKey(("hive", "r1", name)), launcher)
        job = SparkJob(Function(function), master="local[2]", hive=hive, conf=SMALL)
        started = await engine.start(job, Request(owner="try-1"))
        return [update async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.2))][-1].outcome

    shared = Hive(folder=str(tmp_path / "hive"))
    made = await run("make", dag.make, shared)
    assert made.state is State.SUCCEEDED, made.failure.render()
    assert made.result == {"catalog": "hive"}
    assert list((tmp_path / "hive" / "warehouse" / "late").glob("part-*"))

    read = await run("read", dag.read, shared)
    assert read.state is State.SUCCEEDED, read.failure.render()
    assert read.result["rows"] == [["AA", 35], ["UA", 25]]
    assert read.result["location"] == f"file:{tmp_path}/hive/warehouse/late"

    # The default is a metastore of the stage's own, so there it is not.
    other = await run("other", dag.missing, hive=True)
    assert "TABLE_OR_VIEW_NOT_FOUND" in other.failure.message
    assert list(store.local_path.rglob("hive/metastore_db"))
    assert jobs_left() == {}
