"""Spark's temporary clusters and Connect servers as set-up and teardown tasks, without a running Airflow."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from rallypoint.airflow.operators import PythonJobOperator
from rallypoint.airflow.operators.spark_cluster import (
    SparkClusterOperator,
    SparkConnectServerOperator,
    SparkWorkersOperator,
    spark_cluster,
    spark_connect,
    spark_workers,
)
from rallypoint.errors import InvalidJobError

REF = {"store": "file:///store", "stage": ["d", "r", "spark_cluster"], "attempt": 1, "lease": 900}
ADDRESS = {"master": "spark://127.0.0.1:1", "ui": "http://127.0.0.1:2", "service": REF, "uses": []}


def _shared():
    with (
        DAG("d", schedule=None) as dag,
        spark_cluster(workers=3) as cluster,
        spark_workers(cluster) as more,
        spark_connect(master=more.address) as connect,
    ):
        PythonJobOperator(task_id="train", script="a.py", uses=[connect.address])
    return dag


def test_each_service_is_set_up_before_what_uses_it_and_torn_down_after():
    dag = _shared()
    assert dag.get_task("spark_workers").upstream_task_ids == {"spark_cluster"}
    assert "spark_workers" in dag.get_task("spark_connect").upstream_task_ids
    assert dag.get_task("train").upstream_task_ids >= {"spark_connect"}
    for name in ("spark_cluster", "spark_workers", "spark_connect"):
        assert dag.get_task(name).is_setup
        assert dag.get_task(f"{name}_stop").is_teardown
        assert name in dag.get_task(f"{name}_stop").upstream_task_ids


def test_the_dag_can_be_stored():
    assert json.dumps(DagSerialization.to_dict(_shared()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SparkClusterOperator(task_id="t", workers=0),
        lambda: SparkClusterOperator(task_id="t", lease=-1),
        lambda: SparkClusterOperator(task_id="t", memory_per_worker="lots"),
        lambda: SparkClusterOperator(task_id="t", secrets={"TOKEN": "hunter2"}),
        lambda: SparkWorkersOperator(task_id="t", cluster={"master": "here"}),
        lambda: SparkConnectServerOperator(task_id="t", master="sc://a"),
        lambda: SparkConnectServerOperator(task_id="t", driver_memory="2"),
    ],
)
def test_a_wrong_parameter_is_answered_while_the_dag_file_is_read(make):
    with DAG("d"), pytest.raises(InvalidJobError, match="expected"):
        make()


def test_the_parameters_reach_the_job(monkeypatch):
    monkeypatch.setenv("SPARK_SECRET", "hunter2")
    with DAG("d"):
        cluster = SparkClusterOperator(
            task_id="t", workers=3, cores_per_worker=2, rest=False, conf={"spark.authenticate": True}, lease=60,
            secrets={"S": "env:SPARK_SECRET"}, secret_conf={"spark.authenticate.secret": "S"}, python="/p",
        )  # fmt: skip
        more = SparkWorkersOperator(task_id="m", cluster=ADDRESS, workers=2)
        connect = SparkConnectServerOperator(task_id="c", master=str(ADDRESS), jars="/a.jar,/b.jar")
    job = cluster.job()
    assert (job.workers, job.cores_per_worker, job.rest, job.lease, job.python) == (3, 2, False, 60, "/p")
    assert (job.conf, job.secret_conf) == ({"spark.authenticate": True}, {"spark.authenticate.secret": "S"})
    assert (more.job().cluster, more.job().workers) == (ADDRESS, 2)
    assert connect.job().master == ADDRESS
    assert connect.job().services()[0].stage == ("d", "r", "spark_cluster")
