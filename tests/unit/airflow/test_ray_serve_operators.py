"""The operators of Ray Serve: what a DAG file is told, and what a connection of type ``ray`` gives the job."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import BaseHook, Connection

from rallypoint import RayServe, RayServeRollback, RayServeUndeploy, ServeProbe
from rallypoint.airflow.operators import RayServeOperator, RayServeRollbackOperator, RayServeUndeployOperator
from rallypoint.errors import InvalidJobError

URL = "http://127.0.0.1:8265"
WHERE = {"task_id": "t", "name": "flights", "dashboard_url": URL}


def test_a_deploy_becomes_its_job():
    operator = RayServeOperator(
        **WHERE,
        import_path="m:app",
        app_args={"model": "file:///m"},
        probe=ServeProbe(expect={"ok": True}),
        env={"A": "1"},
        keep_versions=5,
    )
    job = operator.job()
    assert isinstance(job, RayServe)
    assert job.keep_versions == 5
    assert (job.args, job.probe, job.env) == ({"model": "file:///m"}, ServeProbe(expect={"ok": True}), {"A": "1"})
    links = [link.name for link in operator.operator_extra_links]
    assert links == ["Rallypoint stage", "Ray Serve application", "Ray job"]


def test_a_rollback_and_a_removal_become_theirs():
    rollback = RayServeRollbackOperator(**WHERE, version="{{ params.version }}")
    rollback.job_options = {**rollback.job_options, "version": "3"}
    wanted = RayServeRollback(name="flights", dashboard_url=URL, version=3)
    assert (rollback.job().kind, rollback.job().settings()) == (wanted.kind, wanted.settings())
    undeploy = RayServeUndeployOperator(**WHERE).job()
    assert undeploy.settings() == RayServeUndeploy(name="flights", dashboard_url=URL).settings()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"import_path": "no path"}, "import_path"),
        ({"dashboard_url": None}, "exactly one of dashboard_url= and ray_conn_id="),
        ({"ray_conn_id": "ray_default"}, "exactly one of dashboard_url= and ray_conn_id="),
        ({"secrets": {"HF_TOKEN": "hf_value"}}, "variable:NAME"),
        ({"replica_secrets": ["HF_TOKEN"]}, "a list of names among secrets="),
    ],
)
def test_what_is_wrong_is_told_while_the_dag_file_is_read(wrong, message):
    with pytest.raises(InvalidJobError, match=message):
        RayServeOperator(**{**WHERE, "import_path": "m:app", **wrong})


def test_what_an_earlier_task_returns_is_left_for_later():
    RayServeOperator(
        task_id="t",
        name="{{ params.name }}",
        dashboard_url="{{ ti.xcom_pull('cluster') }}",
        import_path="m:app",
        app_args={"model": "{{ ti.xcom_pull('train')['model'] }}"},
        secrets={"HF_TOKEN": "variable:hf_token"},
        replica_secrets=["HF_TOKEN"],
    )


def test_a_rendered_address_object_is_read():
    operator = RayServeOperator(**{**WHERE, "dashboard_url": "{{ ti.xcom_pull('cluster') }}"}, import_path="m:app")
    operator.job_options = {**operator.job_options, "dashboard_url": str({"dashboard_url": URL})}
    assert operator.job().dashboard_url == URL


def test_a_connection_gives_address_token_and_headers_as_secrets(monkeypatch):
    extra = {"headers": {"X-Team": "ml"}, "cookies": {"session": "1"}, "verify": "/etc/ca.pem"}
    connection = Connection(
        conn_id="ray_prod", conn_type="ray", host="ray.example.com", schema="https", port=443, password="t0p",
        extra=json.dumps(extra),
    )  # fmt: skip
    monkeypatch.setattr(BaseHook, "get_connection", lambda conn_id: connection)
    job = RayServeOperator(task_id="t", name="flights", ray_conn_id="ray_prod", import_path="m:app").job()
    assert (job.dashboard_url, job.ca_file) == ("https://ray.example.com:443", "/etc/ca.pem")
    assert job.secrets["RAY_AUTH_TOKEN"] == "t0p"
    assert json.loads(job.secrets["RAY_JOB_HEADERS"]) == {"X-Team": "ml", "Cookie": "session=1"}
    assert "t0p" not in json.dumps(job.settings())
