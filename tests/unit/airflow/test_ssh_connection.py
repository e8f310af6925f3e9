"""A connection of Airflow's own type ``ssh`` as a launcher: fields mean the same, and no secret leaves the options."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import Connection

from rallypoint.airflow.launcher_connections import launcher_of_connection
from rallypoint.errors import LaunchError
from rallypoint.launchers.registry import open_launcher

ROOT = {"root": "/runs"}


def ssh(host="h1", extra=None, **fields):
    return Connection(
        conn_id="hosts", conn_type="ssh", host=host, extra=json.dumps({**ROOT, **(extra or {})}), **fields
    )


@pytest.mark.parametrize(
    ("connection", "uri"),
    [
        (ssh(), "ssh://h1?root=/runs"),
        (ssh("h1,h2:2222"), "ssh://h1,h2:2222?root=/runs"),
        (ssh(extra={"python": "/opt/py", "lost_after": 30}), "ssh://h1?root=/runs&python=/opt/py&lost_after=30"),
        (ssh(None, {"hosts": {"a": {}, "b": {"port": 22}}}), "ssh://a,b:22?root=/runs"),
    ],
)
def test_a_connection_names_hosts(connection, uri):
    assert open_launcher(*launcher_of_connection(connection)).uri == uri


def test_credentials_are_options_and_in_no_uri():
    extra = {"private_key": "-----BEGIN", "private_key_passphrase": "phrase", "key_file": "/keys/id", "conn_timeout": 5}
    uri, options = launcher_of_connection(ssh(extra=extra, login="ml", password="hunter2", port=2222))
    launcher = open_launcher(uri, options)
    access = launcher._access
    assert (access.user, access.port, access.password, access.connect_timeout) == ("ml", 2222, "hunter2", 5)
    assert (access.private_key, access.passphrase, access.client_keys) == ("-----BEGIN", "phrase", ("/keys/id",))
    shown = uri + repr(launcher) + repr(access)
    assert not [word for word in ("hunter2", "-----BEGIN", "phrase") if word in shown]


@pytest.mark.parametrize(
    ("extra", "keys", "verified"),
    [
        ({}, None, True),
        ({"host_key": "AAAA"}, "h1 ssh-rsa AAAA\n[h2]:2222 ssh-rsa AAAA\n", True),
        ({"host_key": "ssh-ed25519 AAAA"}, "h1 ssh-ed25519 AAAA\n[h2]:2222 ssh-ed25519 AAAA\n", True),
        ({"no_host_key_check": "false"}, None, True),
        ({"no_host_key_check": True}, None, False),
    ],
)
def test_the_keys_of_hosts_are_verified_unless_it_says_otherwise(extra, keys, verified):
    access = open_launcher(*launcher_of_connection(ssh("ml@h1,h2:2222", extra)))._access
    assert (access.host_keys, access.verify_host_keys) == (keys, verified)


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        (ssh(extra={"root": ""}), "expected the absolute path of a folder"),
        (ssh(""), "expected at least one"),
        (ssh(extra={"conn_timeout": "soon"}), "'conn_timeout' of the connection 'hosts', expected a number"),
        (ssh(extra={"hosts": "{"}), "'hosts' of the connection 'hosts', expected a JSON object"),
        (ssh(extra={"hosts": {"h1": {"colour": 1}}}), "got the host h1 'colour'"),
    ],
)
def test_a_wrong_field_is_named(connection, words):
    with pytest.raises(LaunchError, match=words):
        launcher_of_connection(connection)
