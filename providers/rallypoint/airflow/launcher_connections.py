"""Connections that say where jobs run, by their types: each is a launcher's URI, and options beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from rallypoint.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow.sdk import Connection

RAY = "ray"
_OBJECTS = ("headers", "cookies", "runtime_env", "entrypoint_resources", "entrypoint_label_selector", "metadata")
_NUMBERS = ("timeout", "entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory", "stop_grace")
_OTHERS = ("verify", "cert", "dashboard_url")


def launcher_of_connection(connection: Connection) -> tuple[str, dict[str, Any]]:
    """Return the URI of the launcher that a connection names, which holds no secret, and the options beside it.

    Raises:
        AirflowNotFoundException: It is of a type that names no launcher.
        LaunchError: A field is wrong.
    """
    reader = _READERS.get(connection.conn_type or "")
    if reader is None:
        known = ", ".join(repr(kind) for kind in sorted(_READERS))
        msg = f"got the connection {connection.conn_id!r} as a launcher, expected one of the type {known}"
        raise AirflowNotFoundException(msg)
    return reader(connection)


def ray_launcher(connection: Connection) -> tuple[str, dict[str, Any]]:
    """Return the launcher of a Ray cluster: host, port and schema of its dashboard, the token as the password.

    Raises:
        LaunchError: A field is wrong.
    """
    extra = connection.extra_dejson
    host = connection.host or extra.get("address") or ""
    parts = urlsplit(host if "://" in host else f"//{host}")
    scheme = (parts.scheme or connection.schema or "http").lower()
    if not parts.hostname or scheme not in {"http", "https"} or "@" in parts.netloc:
        msg = (
            f"got the host of the connection {connection.conn_id!r}, expected that of a Ray dashboard, such as "
            "ray-head or https://ray.example.com; a token goes into the password"
        )
        raise LaunchError(msg)
    port = connection.port or parts.port or (443 if scheme == "https" else 8265)
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    uri = f"ray-jobs{'+https' if scheme == 'https' else ''}://{name}:{port}{parts.path.rstrip('/')}"
    query = {field: str(extra[field]) for field in ("python", "namespace") if extra.get(field)}
    uri += f"?{urlencode(query)}" if query else ""
    options: dict[str, Any] = {field: extra[field] for field in _OTHERS if extra.get(field) not in {None, ""}}
    options |= {field: _number(connection, field) for field in _NUMBERS if extra.get(field) not in {None, ""}}
    options |= {field: _object(connection, field) for field in _OBJECTS if extra.get(field)}
    if connection.password:
        options["token"] = connection.password
    for field in ("headers", "cookies"):
        for value in options.get(field, {}).values():
            mask_secret(value)
    return uri, options


def _object(connection: Connection, field: str) -> dict[str, Any]:
    """Return a field's JSON object; the form of a connection holds it as text."""
    value: Any = connection.extra_dejson[field]
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _wrong(connection, field, 'a JSON object such as {"X-Name": "value"}')
    return value


def _number(connection: Connection, field: str) -> float:
    value: Any = connection.extra_dejson[field]
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _wrong(connection, field, "a number") from None
    return int(number) if number == int(number) else number


def _wrong(connection: Connection, field: str, expected: str) -> LaunchError:
    return LaunchError(
        f"got a wrong value in the field {field!r} of the connection {connection.conn_id!r}, expected {expected}"
    )


_READERS: Mapping[str, Callable[[Connection], tuple[str, dict[str, Any]]]] = {RAY: ray_launcher}
