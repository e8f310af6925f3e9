"""Spark in a real Airflow: the flights pipeline in SQL and MLlib, and a training that is cleared after a kill."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FEW = {"fraction": 0.1, "iterations": 10, "master": "local[2]"}


def test_the_flights_pipeline_on_spark_goes_on_where_its_driver_was_killed(airflow):
    run = airflow.start("flights_spark", FEW)
    snapshot = airflow.wait_for_step("flights_spark", run, "train_gbt", 3)  # two fitted stages, and a cell
    (driver,) = snapshot.view.processes.values()
    os.kill(driver.pid, signal.SIGKILL)
    airflow.api.wait_for_run("flights_spark", run, timeout=400)
    trees = airflow.api.xcom("flights_spark", run, "train_gbt")
    assert trees["kept"] >= 3
    assert trees["kept"] + trees["fitted"] == 2 + 2 * 2 + 1  # the stages, the cells, and the best on all rows
    log = airflow.api.log("flights_spark", run, "train_gbt")
    assert "continuing from its last checkpoint" in log
    assert airflow.jobs_alive(snapshot.entry.record.id) == []
    verdict = airflow.api.xcom("flights_spark", run, "compare")
    assert verdict["passed"] is True
    assert set(verdict["models"]) == {"gbt", "logistic"}
