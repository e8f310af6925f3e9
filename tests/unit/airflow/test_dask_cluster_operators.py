"""A temporary Dask cluster as set-up and teardown tasks, without a running Airflow."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from rallypoint.airflow.operators import DaskOperator
from rallypoint.airflow.operators.dask_cluster import DaskClusterOperator, dask_cluster
from rallypoint.errors import InvalidJobError


def _shared():
    with DAG("d", schedule=None) as dag, dask_cluster(workers=3, memory_per_worker="1GiB") as cluster:
        DaskOperator(task_id="count", script="a.py", cluster=cluster.address)
    return dag


def test_it_is_set_up_before_what_uses_it_and_torn_down_after():
    dag = _shared()
    assert dag.get_task("count").upstream_task_ids == {"dask_cluster"}
    assert (dag.get_task("dask_cluster").is_setup, dag.get_task("dask_cluster_stop").is_teardown) == (True, True)
    assert dag.get_task("dask_cluster_stop").upstream_task_ids == {"count", "dask_cluster"}


def test_the_dag_can_be_stored():
    assert json.dumps(DagSerialization.to_dict(_shared()))


@pytest.mark.parametrize("options", [{"workers": 0}, {"lease": -1}, {"memory_per_worker": "lots"}])
def test_a_wrong_value_is_an_error_of_the_dag_file(options):
    with pytest.raises(InvalidJobError):
        DaskClusterOperator(task_id="t", **options)
