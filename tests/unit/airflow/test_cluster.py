"""Temporary clusters as set-up and teardown tasks, without a running Airflow."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization

from rallypoint.airflow.operators import DaskOperator
from rallypoint.airflow.operators.cluster import StopClusterOperator
from rallypoint.airflow.operators.ray_cluster import RayClusterOperator, RayWorkersOperator, ray_cluster, ray_workers
from rallypoint.errors import InvalidJobError

REF = {"store": "file:///store", "stage": ["d", "r", "ray_cluster"], "attempt": 1, "lease": 900}
ADDRESS = {"address": "127.0.0.1:1", "dashboard_url": "http://127.0.0.1:2", "service": REF, "uses": []}


def _shared():
    with DAG("d", schedule=None) as dag, ray_cluster(workers=3) as cluster:
        train = DaskOperator(task_id="train", script="a.py", uses=[cluster.address])
        DaskOperator(task_id="evaluate", script="b.py", uses=[cluster.address]).set_upstream(train)
    return dag


def test_tasks_within_run_between_the_set_up_and_the_teardown():
    dag = _shared()
    start, stop = dag.get_task("ray_cluster"), dag.get_task("ray_cluster_stop")
    assert (start.is_setup, stop.is_teardown) == (True, True)
    assert start.downstream_task_ids >= {"train", "ray_cluster_stop"}
    assert stop.upstream_task_ids == {"evaluate", "ray_cluster"}


def test_a_cleared_task_is_cleared_with_its_cluster():
    dag = _shared()
    cleared = dag.partial_subset("train", include_upstream=False, include_downstream=False)
    assert set(cleared.task_ids) == {"train", "ray_cluster", "ray_cluster_stop"}


def test_added_workers_come_after_their_cluster_and_go_before_it():
    with DAG("d", schedule=None) as dag, ray_cluster() as cluster, ray_workers(cluster) as more:
        DaskOperator(task_id="train", script="a.py", uses=[more.address])
    assert dag.get_task("ray_workers").upstream_task_ids == {"ray_cluster"}
    assert dag.get_task("train").upstream_task_ids >= {"ray_workers"}
    assert "ray_workers_stop" in dag.get_task("train").downstream_task_ids
    assert "ray_cluster" in dag.get_task("ray_cluster_stop").upstream_task_ids


def test_the_dag_can_be_stored():
    assert json.dumps(DagSerialization.to_dict(_shared()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RayClusterOperator(task_id="t", workers=0),
        lambda: RayClusterOperator(task_id="t", lease=-1),
        lambda: RayClusterOperator(task_id="t", env={"RALLYPOINT_X": "1"}),
        lambda: RayClusterOperator(task_id="t", secrets={"TOKEN": "hunter2"}),
        lambda: RayWorkersOperator(task_id="t", cluster={"address": "here"}),
        lambda: StopClusterOperator(task_id="t", cluster=ADDRESS, grace=-1),
    ],
)
def test_a_wrong_parameter_is_answered_while_the_dag_file_is_read(make):
    with DAG("d"), pytest.raises(InvalidJobError, match="expected"):
        make()


def test_the_parameters_reach_the_job():
    with DAG("d"):
        operator = RayClusterOperator(
            task_id="t", workers=3, cpus_per_worker=2, head_cpus=1, labels={"pool": "a"}, lease=60, python="/p"
        )
        more = RayWorkersOperator(task_id="m", cluster=ADDRESS, workers=2, drain=3)
    job = operator.job()
    assert (job.workers, job.cpus_per_worker, job.head_cpus, job.labels) == (3, 2, 1, {"pool": "a"})
    assert (job.lease, job.python) == (60, "/p")
    assert (more.job().cluster, more.job().workers, more.job().drain) == (ADDRESS, 2, 3)


@pytest.mark.parametrize("rendered", [ADDRESS, json.dumps(ADDRESS), str(ADDRESS)], ids=["native", "json", "text"])
def test_a_task_keeps_the_services_that_it_uses_however_a_template_renders_them(rendered):
    with DAG("d"):
        operator = DaskOperator(task_id="t", script="/a.py", uses=[rendered])
    assert [list(ref.stage) for ref in operator.job().services()] == [REF["stage"]]


def test_a_teardown_looks_where_its_set_up_started_the_cluster():
    with DAG("d"), ray_cluster(rallypoint_conn_id="store", launcher_conn_id="hosts") as cluster:
        pass
    assert (cluster.stop.rallypoint_conn_id, cluster.stop.launcher_conn_id) == ("store", "hosts")


@pytest.mark.parametrize("cluster", [None, "", {}, {"address": "127.0.0.1:1"}])
def test_a_teardown_without_a_cluster_fails_and_is_not_retried(cluster):
    with DAG("d"):
        stop = StopClusterOperator(task_id="t", cluster=cluster)
    with pytest.raises(AirflowFailException, match="the address object"):
        stop.execute({"ti": SimpleNamespace()})


def test_a_teardown_of_another_store_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "rallypoint.airflow.operators.base.RallypointHook",
        lambda conn_id, launcher_conn_id: SimpleNamespace(get_conn=lambda: SimpleNamespace(store=f"file://{tmp_path}")),
    )
    with DAG("d"):
        stop = StopClusterOperator(task_id="t", cluster=ADDRESS)
    with pytest.raises(AirflowFailException, match=r"record is in file:///store, expected the store file://"):
        stop.execute({"ti": SimpleNamespace()})
