"""Which store and launcher a task uses: its connection's, the configuration's, or a folder in Airflow's home."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from rallypoint.airflow.launcher_connections import launcher_of_connection
from rallypoint.errors import InvalidJobError, StoreError
from rallypoint.stages.place import Place, local_launcher, with_python

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow.sdk import Connection

DEFAULT_CONN_ID = "rallypoint_default"
SECTION = "rallypoint"


def place_of(connection: Connection | None, credentials: Connection | None, runs_on: Connection | None = None) -> Place:
    """Return the place that a connection names; what it leaves out comes from ``[rallypoint]`` in the configuration.

    Args:
        connection: A connection of type ``rallypoint``; None for the configuration alone.
        credentials: The connection of type ``aws`` that it names, for an ``s3://`` store.
        runs_on: The connection that says where jobs run, of a type such as ``ray``; None for what the first one says.

    Raises:
        AirflowNotFoundException: `runs_on` names no launcher.
        StoreError: The store's URI or credentials are wrong.
        LaunchError: A field of `runs_on` is wrong.
    """
    from rallypoint.stages.store import Store  # noqa: PLC0415 - DAG files import this module

    extra = connection.extra_dejson if connection else {}
    home = os.environ.get("AIRFLOW_HOME") or str(Path.home() / "airflow")
    store = extra.get("store") or conf.get(SECTION, "store", fallback="") or f"{home}/rallypoint"
    opened = Store.open(store, options=_aws_options(credentials) or None)
    if runs_on is not None:
        uri, options = launcher_of_connection(runs_on)
        return Place(store=opened.uri, launcher=uri, store_options=_aws_options(credentials), launcher_options=options)
    launcher = extra.get("launcher") or conf.get(SECTION, "launcher", fallback="")
    python = extra.get("python")
    if launcher:
        launcher = with_python(launcher, python)
    else:
        launcher = local_launcher(str(opened.local_path or f"{home}/rallypoint"), python=python)
    return Place(store=opened.uri, launcher=launcher, store_options=_aws_options(credentials))


def credentials_id(connection: Connection | None) -> str | None:
    """Return the id of the connection that holds the store's credentials, if one is named."""
    value = connection.extra_dejson.get("aws_conn_id") if connection else None
    return str(value) if value else None


def launcher_id(connection: Connection | None, asked: str | None) -> str | None:
    """Return the id of the connection that says where jobs run: the task's own, or the one that the place names."""
    value = asked or (connection.extra_dejson.get("launcher_conn_id") if connection else None)
    return str(value) if value else None


def is_default_missing(conn_id: str, error: Exception) -> bool:
    """Return whether the error only says that nobody made the default connection, which nobody has to."""
    return conn_id == DEFAULT_CONN_ID and isinstance(error, AirflowNotFoundException)


def resolve_secrets(references: Mapping[str, str]) -> dict[str, str]:
    """Return the values of secrets that a task names by reference.

    Args:
        references: ``variable:NAME``, ``connection:ID`` (its URI) or ``env:NAME`` (of the worker), by the name of the
            environment variable that the job gets. References, not values, because Airflow stores and shows a task's
            arguments.

    Raises:
        InvalidJobError: A reference is of another kind, or names nothing.
    """
    return {name: _secret(name, reference) for name, reference in references.items()}


def check_references(references: Mapping[str, str]) -> None:
    """Raise `InvalidJobError` for a secret that is no reference, without reading any."""
    for name, reference in references.items():
        if str(reference).partition(":")[0] not in _READERS:
            raise _bad_reference(name, "a value that is no reference")


def _secret(name: str, reference: str) -> str:
    kind, _, which = reference.partition(":")
    if kind not in _READERS:
        raise _bad_reference(name, "a value that is no reference")
    value = _READERS[kind](which)
    if value is None:
        raise _bad_reference(name, reference)
    mask_secret(value)  # a job may print it, and the task's log repeats what rank 0 prints
    return value


def _bad_reference(name: str, got: str) -> InvalidJobError:
    expected = '"variable:NAME", "connection:ID" or "env:NAME" of something that exists'
    return InvalidJobError("secrets", name, got=got, expected=expected)


def _variable(name: str) -> str | None:
    from airflow.sdk import Variable  # noqa: PLC0415 - read in a task only

    value: Any = Variable.get(name, default=None)
    return None if value is None else str(value)


def _connection(conn_id: str) -> str | None:
    from airflow.sdk import Connection  # noqa: PLC0415 - read in a task only

    try:
        return str(Connection.get(conn_id).get_uri())
    except AirflowNotFoundException:
        return None


_READERS: dict[str, Callable[[str], str | None]] = {
    "variable": _variable,
    "connection": _connection,
    "env": os.environ.get,
}


def _aws_options(connection: Connection | None) -> dict[str, str]:
    if connection is None:
        return {}
    extra = connection.extra_dejson
    if extra.get("role_arn"):
        msg = (
            f"the connection {connection.conn_id!r} assumes a role, which a Rallypoint store does not do from a "
            "connection: leave aws_conn_id out and let boto3's chain (AWS_PROFILE, instance role) assume it"
        )
        raise StoreError(msg)
    options = {
        "aws_access_key_id": connection.login,
        "aws_secret_access_key": connection.password,
        "aws_session_token": extra.get("aws_session_token"),
        "region": extra.get("region_name"),
        "endpoint_url": extra.get("endpoint_url"),
    }
    return {name: str(value) for name, value in options.items() if value}
