"""The connection type ``slurm``: what its fields become, and what its *Test* button says."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import Connection

from rallypoint.airflow.launcher_connections import launcher_of_connection
from rallypoint.airflow.slurm_hook import SlurmHook
from rallypoint.errors import LaunchError
from rallypoint.launchers.registry import open_launcher


def slurm(host="gpu", password=None, **extra):
    return Connection(conn_id="cluster", conn_type="slurm", host=host, password=password, extra=json.dumps(extra))


@pytest.mark.parametrize(
    ("connection", "uri"),
    [
        (slurm(root="/shared/runs"), "slurm://gpu?root=/shared/runs"),
        (slurm("", root="/shared/runs", time=""), "slurm://?root=/shared/runs"),
        (
            slurm("gpu,spot", root="/shared/runs", account="physics", requeue="3", sbatch="--licenses=m --exclusive"),
            "slurm://gpu,spot?root=/shared/runs&account=physics&requeue=3&sbatch=--licenses%3Dm+--exclusive",
        ),
        (
            slurm(root="/shared/runs", sbatch=["--licenses=m"], password="ignored"),
            "slurm://gpu?root=/shared/runs&sbatch=--licenses%3Dm",
        ),
    ],
)
def test_a_connection_is_a_launchers_uri(connection, uri):
    assert open_launcher(*launcher_of_connection(connection)).uri == uri


def test_the_password_is_the_login_nodes_and_in_no_uri():
    connection = slurm(root="/shared", login="ml@login1:2222", known_hosts="/etc/hosts.keys", password="t0p")
    uri, options = launcher_of_connection(connection)
    assert uri == "slurm://gpu?root=/shared&login=ml%40login1:2222&known_hosts=/etc/hosts.keys"
    assert options == {"password": "t0p"}
    launcher = open_launcher(uri, options)
    assert launcher.address.login_node.hosts[0].user == "ml"
    assert "t0p" not in repr(launcher.address)
    assert launcher_of_connection(slurm(root="/shared", password="t0p"))[1] == {}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"root": "runs"},
        {"root": "/r", "time": "soon"},
        {"root": "/r", "sbatch": "-N2"},
        {"root": "/r", "login": "a,b"},
    ],
)
def test_a_wrong_field_is_named(extra):
    with pytest.raises(LaunchError, match="got"):
        launcher_of_connection(slurm(**extra))


def test_the_test_button_says_what_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here
    monkeypatch.setenv(
        "AIRFLOW_CONN_SLURM_DEFAULT", json.dumps({"conn_type": "slurm", "host": "gpu", "extra": {"root": "/shared"}})
    )
    good, words = SlurmHook().test_connection()
    assert not good
    assert "sinfo" in words
