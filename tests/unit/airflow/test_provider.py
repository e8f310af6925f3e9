"""What Rallypoint tells Airflow about itself."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import entry_points
from importlib.resources import files

import jsonschema
import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

import rallypoint.airflow
from rallypoint.airflow import place as places
from rallypoint.airflow.links import DaskDashboardLink, StageLink, TensorBoardLink
from rallypoint.airflow.provider_info import get_provider_info
from rallypoint.errors import StoreError


def load(path: str):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_description_is_what_airflow_wants():
    schema = json.loads((files("airflow") / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_everything_that_is_named_can_be_imported():
    info = get_provider_info()
    for kind in ("operators", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
    named = [entry["class-name"] for entry in info["task-decorators"]]
    named += info["extra-links"] + [entry["hook-class-name"] for entry in info["connection-types"]]
    named += [entry["plugin-class"] for entry in info["plugins"]]
    assert all(load(path) for path in named)


@pytest.mark.parametrize("group", ["apache_airflow_provider", "airflow.plugins"])
def test_airflow_finds_the_entry_points(group):
    assert any(entry.value.startswith("rallypoint.airflow.") and entry.load() for entry in entry_points(group=group))


@pytest.mark.parametrize("found", ["3.2.2", "2.11.0"])
def test_an_older_airflow_is_a_clear_error(monkeypatch, found):
    monkeypatch.setattr(rallypoint.airflow, "version", lambda _: found)
    with pytest.raises(ImportError, match=rf"got Apache Airflow {found}, expected 3\.3 or later"):
        rallypoint.airflow._check_version()


class Instance:
    dag_id, run_id, task_id, map_index = "d", "manual__2026-11-23T00:00:00+00:00", "t", -1


class Operator:
    rallypoint_conn_id = "rallypoint_default"


def test_the_links_need_nothing_that_a_deferral_would_lose():
    page = "/rallypoint/stages/d/manual__2026-11-23T00%3A00%3A00%2B00%3A00/t/-1"
    assert StageLink().get_link(Operator(), ti_key=Instance()) == page
    assert DaskDashboardLink().get_link(Operator(), ti_key=Instance()) == f"{page}/links/Dask%20dashboard"
    assert TensorBoardLink().get_link(Operator(), ti_key=Instance()) == f"{page}/tensorboard"


def test_a_place_without_a_connection_is_in_airflows_home(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    place = places.place_of(None, None)
    assert place.store == f"file://{tmp_path}/rallypoint"
    assert place.launcher == f"local://{tmp_path}/rallypoint/runs"


def test_a_connection_names_store_launcher_and_python():
    extra = {"store": "/srv/store", "launcher": "local:///srv/runs", "python": "/opt/py/bin/python"}
    place = places.place_of(Connection(conn_id="c", conn_type="rallypoint", extra=json.dumps(extra)), None)
    assert place.store == "file:///srv/store"
    assert place.launcher == "local:///srv/runs?python=/opt/py/bin/python"


def test_an_aws_connection_gives_the_stores_credentials_and_they_are_not_shown():
    connection = Connection(conn_id="c", conn_type="rallypoint", extra=json.dumps({"store": "s3://bucket/x"}))
    aws = Connection(
        conn_id="a",
        conn_type="aws",
        login="AKIAEXAMPLE",
        password="hunter2",
        extra=json.dumps({"region_name": "eu-central-1", "endpoint_url": "http://127.0.0.1:9"}),
    )
    place = places.place_of(connection, aws)
    assert place.store_options["aws_secret_access_key"] == "hunter2"
    assert place.store_options["endpoint_url"] == "http://127.0.0.1:9"
    assert "hunter2" not in repr(place)


def test_an_aws_connection_that_assumes_a_role_is_refused_with_a_way_out():
    connection = Connection(conn_id="c", conn_type="rallypoint", extra=json.dumps({"store": "s3://bucket/x"}))
    aws = Connection(conn_id="a", conn_type="aws", extra=json.dumps({"role_arn": "arn:aws:iam::1:role/x"}))
    with pytest.raises(StoreError, match="boto3's chain"):
        places.place_of(connection, aws)


def test_only_the_default_connection_may_be_missing():
    missing = AirflowNotFoundException("no such connection")
    assert places.is_default_missing("rallypoint_default", missing)
    assert not places.is_default_missing("another", missing)
    assert not places.is_default_missing("rallypoint_default", ValueError("broken"))
