"""Spark in a real Airflow: the flights pipeline in SQL and MLlib on a standalone cluster, its driver killed once."""

from __future__ import annotations

import os
import signal

import pytest
import spark_head

from rallypoint.launchers.local import LocalLauncher
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A master and a worker, which are there before the DAG and after it; `tests/integration/spark` has two."""
    root = tmp_path_factory.mktemp("spark")
    engine = Engine(Store.open(root / "store"), StageKey(("spark", "r1", "cluster")), LocalLauncher(root / "runs"))
    with spark_head.spark_cluster(engine, workers=1, lease=3600) as running:
        yield running


def test_the_flights_pipeline_on_a_cluster_goes_on_where_its_driver_was_killed(airflow, cluster):
    # How good two trees of a twentieth of the rows are is not what is asked here.
    few = {"fraction": 0.05, "iterations": 2, "margin": 0.3, "master": cluster.master}
    run = airflow.start("flights_spark", few)
    airflow.api.wait_for_task("flights_spark", run, "features", "success", timeout=400)
    # Two fitted stages and a cell, which is hundreds of small tasks of Spark's.
    found = lambda: [each for each in airflow.attempts("flights_spark", run, "train_gbt") if (each.view.step or 0) >= 3]  # noqa: E731 - an argument with a name
    (snapshot,) = airflow.api.wait_until(lambda: found() or None, "a cell of train_gbt", timeout=400)
    (driver,) = snapshot.view.processes.values()
    os.kill(driver.pid, signal.SIGKILL)
    airflow.api.wait_for_run("flights_spark", run, timeout=600)
    trees = airflow.api.xcom("flights_spark", run, "train_gbt")
    assert trees["kept"] >= 3
    assert trees["kept"] + trees["fitted"] == 2 + 2 * 2 + 1  # the stages, the cells, and the best on all rows
    log = airflow.api.log("flights_spark", run, "train_gbt")
    assert "continuing from its last checkpoint" in log
    assert airflow.jobs_alive(snapshot.entry.record.id) == []
    verdict = airflow.api.xcom("flights_spark", run, "compare")
    assert verdict["passed"] is True
    assert set(verdict["models"]) == {"gbt", "logistic"}
    # Both trainings and the features are applications of the cluster; so is the one that lost its driver.
    ended = [each["name"].split("/")[-1] for each in cluster.state()["completedapps"]]
    assert sorted(ended) == ["features", "train_gbt", "train_gbt", "train_logistic"]
