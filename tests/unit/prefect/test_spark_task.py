"""``@spark_task``: what a flow's reader is told, and what job a call becomes."""

from __future__ import annotations

import inspect
import json

import pytest

from rallypoint import SparkJob
from rallypoint.errors import InvalidJobError
from rallypoint.prefect import spark_task


@spark_task(master="local[2]", driver_memory="1g", conf={"spark.sql.shuffle.partitions": 4})
def features(spark, day: str, *, limit: int = 10) -> dict:
    return {"day": day, "limit": limit, "master": spark.sparkContext.master}


def test_a_call_gives_everything_but_the_session():
    assert list(inspect.signature(features).parameters) == ["day", "limit"]
    job = features.job("2026-11-24")
    assert isinstance(job, SparkJob)
    assert dict(job.code.kwargs) == {"day": "2026-11-24", "limit": 10}
    (role,) = job.roles()
    settings = json.loads(role.argv[3])
    assert settings["master"] == "local[2]"
    assert settings["conf"] == {"spark.sql.shuffle.partitions": "4", "spark.driver.memory": "1024m"}


def test_an_option_may_be_set_for_one_call_of_the_task():
    other = features.with_options(master="yarn", queue="ml")
    assert (other.job("x").master, features.job("x").master) == ("yarn", "local[2]")


def test_a_wrong_option_is_told_where_the_task_is_made():
    with pytest.raises(InvalidJobError, match=r"SparkJob\(driver_memory=…\): got 'lots'"):
        spark_task(driver_memory="lots")(features.recipe.call)
