"""The connection type ``ray``: fields become a launcher's URI and options, and no secret leaves the options."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from rallypoint.airflow import place as places
from rallypoint.airflow.hooks import RallypointHook
from rallypoint.airflow.launcher_connections import launcher_of_connection
from rallypoint.airflow.ray_hook import RayHook
from rallypoint.errors import LaunchError
from rallypoint.launchers.registry import open_launcher


def ray(host="ray-head", extra=None, **fields):
    return Connection(conn_id="cluster", conn_type="ray", host=host, extra=json.dumps(extra or {}), **fields)


@pytest.mark.parametrize(
    ("connection", "uri"),
    [
        (ray(), "ray-jobs://ray-head:8265"),
        (ray(port=80), "ray-jobs://ray-head:80"),
        (ray(schema="https"), "ray-jobs+https://ray-head:443"),
        (ray("https://ray.example.com/team"), "ray-jobs+https://ray.example.com:443/team"),
        (ray("http://ray-head:9000"), "ray-jobs://ray-head:9000"),
        (ray(None, {"address": "http://ray-head:8265"}), "ray-jobs://ray-head:8265"),
        (
            ray(extra={"python": "python3", "namespace": "prod"}),
            "ray-jobs://ray-head:8265?python=python3&namespace=prod",
        ),
    ],
)
def test_a_connection_names_a_cluster(connection, uri):
    assert open_launcher(*launcher_of_connection(connection)).uri == uri


def test_fields_that_a_form_holds_as_text_become_options():
    extra = {
        "headers": '{"X-Team": "ml"}',
        "verify": "false",
        "timeout": "5",
        "runtime_env": '{"pip": ["a"]}',
        "cookies": "",
    }
    uri, options = launcher_of_connection(ray(extra=extra, password="t0ken"))
    launcher = open_launcher(uri, options)
    assert launcher._access.headers == {"X-Team": "ml"}
    assert (launcher._access.token, launcher._access.verify, launcher._access.timeout) == ("t0ken", False, 5)
    assert launcher._ask.runtime_env == {"pip": ["a"]}
    assert "t0ken" not in uri


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        (ray(""), "expected that of a Ray dashboard"),
        (ray("ftp://ray-head"), "expected that of a Ray dashboard"),
        (ray("http://me:hunter2@ray-head"), "a token goes into the password"),
        (ray(extra={"headers": "X: hunter2"}), "'headers' of the connection 'cluster', expected a JSON object"),
        (ray(extra={"timeout": "hunter2"}), "'timeout' of the connection 'cluster', expected a number"),
    ],
)
def test_a_wrong_field_is_named(connection, words):
    with pytest.raises(LaunchError, match=words) as refused:
        launcher_of_connection(connection)
    assert "hunter2" not in str(refused.value)


def test_a_connection_of_another_type_is_no_launcher():
    with pytest.raises(AirflowNotFoundException, match="expected one of the type 'ray'"):
        launcher_of_connection(Connection(conn_id="db", conn_type="postgres", host="db"))


@pytest.fixture
def connections(monkeypatch, tmp_path):
    """Connections by their ids, as the hooks find them."""
    known = {
        "store": Connection(
            conn_id="store", conn_type="rallypoint", extra=json.dumps({"store": f"file://{tmp_path}/s"})
        ),
        "both": Connection(
            conn_id="both",
            conn_type="rallypoint",
            extra=json.dumps({"store": f"file://{tmp_path}/s", "launcher_conn_id": "cluster"}),
        ),
        "cluster": ray(password="t0ken"),
        "other": ray("other-head"),
    }

    async def aget(cls, conn_id):
        return known[conn_id]

    for hook in (RallypointHook, RayHook):
        monkeypatch.setattr(hook, "get_connection", classmethod(lambda cls, conn_id: known[conn_id]))
        monkeypatch.setattr(hook, "aget_connection", classmethod(aget))
    return known


@pytest.mark.parametrize(
    ("conn_id", "on", "launcher", "token"),
    [
        ("store", None, "local://", None),
        ("both", None, "ray-jobs://ray-head:8265", "t0ken"),
        ("store", "cluster", "ray-jobs://ray-head:8265", "t0ken"),
        ("both", "other", "ray-jobs://other-head:8265", None),
    ],
)
async def test_a_place_runs_on_the_cluster_that_the_task_or_its_connection_names(
    connections, conn_id, on, launcher, token
):
    place = RallypointHook(conn_id, on).get_conn()
    assert place == await RallypointHook(conn_id, on).aget_place()
    assert place.launcher.startswith(launcher)
    assert place.launcher_options.get("token") == token
    assert "t0ken" not in repr(place)


def test_the_test_button_says_what_is_wrong(connections):
    connections["cluster"].host, connections["cluster"].port = "127.0.0.1", 1
    ok, message = RayHook("cluster").test_connection()
    assert not ok
    assert "the Ray dashboard at http://127.0.0.1:1 does not answer" in message


def test_a_default_place_has_no_options(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    assert places.place_of(None, None).launcher_options == {}
