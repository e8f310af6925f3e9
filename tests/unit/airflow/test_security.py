"""Secrets of a task: nothing that Airflow stores, renders or shows holds their values."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.serialization.serialized_objects import DagSerialization

from rallypoint.airflow.hooks import RallypointHook
from rallypoint.airflow.operators import TorchElasticOperator
from rallypoint.airflow.triggers import StageTrigger
from rallypoint.stages.place import Place

SECRET = "hunter2-is-a-secret"


@pytest.fixture
def operator(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    with DAG("d", schedule=None):
        return TorchElasticOperator(
            task_id="t", script="/a.py", env={"A": "{{ 1 }}"}, secrets={"TOKEN": "env:MY_TOKEN"}
        )


def test_a_tasks_fields_hold_references_also_after_the_secrets_were_read(operator):
    assert operator.job().secrets == {"TOKEN": SECRET}
    operator.render_template_fields({})
    rendered = {name: getattr(operator, name) for name in operator.template_fields}
    assert "secrets" not in rendered
    assert SECRET not in repr(rendered) + repr(vars(operator))


def test_a_serialised_dag_holds_no_secret(operator):
    operator.job()
    text = json.dumps(DagSerialization.to_dict(operator.dag))
    assert '"t"' in text
    assert SECRET not in text


def test_a_trigger_is_stored_with_ids_alone():
    values = {"stage": ["d", "r", "t"], "attempt": 1, "owner": "x", "store": "s3://b", "rallypoint_conn_id": "c"}
    _, stored = StageTrigger(**values, poll_interval=1.0, deadline=None).serialize()
    assert stored == {**values, "poll_interval": 1.0, "deadline": None, "launcher_conn_id": None}


def test_a_place_shows_no_credentials():
    place = Place(store="s3://b", launcher="local:///r", store_options={"aws_secret_access_key": SECRET})
    assert SECRET not in f"{place}{place!r}{SimpleNamespace(place=place)!r}"


def test_a_secret_that_a_job_prints_is_masked_in_the_tasks_own_log(operator):
    from airflow.sdk.log import redact

    operator.job()
    assert SECRET not in str(redact(f"the job printed {SECRET}"))


@pytest.mark.parametrize("conn_type", ["postgres", "aws", ""])
async def test_a_connection_of_another_type_is_refused(monkeypatch, conn_type):
    extra = {"store": "/somewhere"}
    monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({"conn_type": conn_type, "password": SECRET, "extra": extra}))
    for ask in (RallypointHook("db").get_conn, RallypointHook("db").aget_place):
        with pytest.raises(AirflowNotFoundException, match="expected one of the type 'rallypoint'") as raised:
            await result if hasattr(result := ask(), "__await__") else result
        assert SECRET not in str(raised.value)
