"""Connections that say where jobs run, by their types: each is a launcher's URI, and options beside it."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from rallypoint.errors import LaunchError
from rallypoint.launchers.slurm.address import PLACES, Address, Ask
from rallypoint.launchers.ssh.address import Address as SSHAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow.sdk import Connection

RAY, SLURM, SSH = "ray", "slurm", "ssh"
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


def slurm_launcher(connection: Connection) -> tuple[str, dict[str, Any]]:
    """Return the launcher of a Slurm cluster: the partition is the host, a login node's password the password.

    Raises:
        LaunchError: A field is wrong.
    """
    known = {*PLACES, *(each.name for each in fields(Ask))}
    query = {field: value for field, value in connection.extra_dejson.items() if field in known and value}
    query = {field: shlex.join(value) if isinstance(value, list) else str(value) for field, value in query.items()}
    partition = quote(connection.host or "", safe=",")
    options = {"password": connection.password} if connection.password and query.get("login") else {}
    return Address.from_uri(f"slurm://{partition}?{urlencode(query)}").uri, options


def ssh_launcher(connection: Connection) -> tuple[str, dict[str, Any]]:
    """Return the launcher of SSH hosts: a connection of Airflow's own type, with one host or several.

    Its fields mean what they mean to the SSH provider, but that a host's key is always verified unless
    ``no_host_key_check`` says otherwise. Of its own in the extra: ``root``, ``hosts`` (more about hosts by their names,
    or the path of a file of them), ``python``, ``known_hosts`` and ``lost_after``.

    Raises:
        LaunchError: A field is wrong.
    """
    extra = connection.extra_dejson
    details = extra.get("hosts")
    query = {name: str(extra[name]) for name in ("root", "python", "known_hosts", "lost_after") if extra.get(name)}
    if isinstance(details, str) and details.startswith("/"):
        query["hosts"] = details
    elif details:
        details = _object(connection, "hosts")
    host_names = connection.host or ",".join(details if isinstance(details, dict) else ())
    uri = f"ssh://{quote(host_names, safe=',@:[]')}?{urlencode(query, safe='/')}"
    options: dict[str, Any] = {
        "user": connection.login,
        "port": connection.port,
        "password": connection.password,
        "private_key": extra.get("private_key"),
        "passphrase": extra.get("private_key_passphrase"),
        "client_keys": extra.get("key_file"),
        "hosts": details if isinstance(details, dict) else None,
    }
    if extra.get("conn_timeout"):
        options["connect_timeout"] = _number(connection, "conn_timeout")
    if str(extra.get("no_host_key_check", "")).lower() == "true":
        options["verify_host_keys"] = False
    elif key := extra.get("host_key"):
        words = key if " " in key else f"ssh-rsa {key}"  # as the SSH provider reads it
        options["host_keys"] = "".join(f"{name} {words}\n" for name in _names(host_names))
    for name in ("password", "private_key", "passphrase"):
        if options[name]:
            mask_secret(options[name])
    given = {name: value for name, value in options.items() if value is not None and value != ""}
    return SSHAddress.from_uri(uri, given.get("hosts")).uri, given


def _names(hosts: str) -> list[str]:
    """Return the names of hosts as a file of known hosts has them."""
    found = []
    for text in hosts.split(","):
        name, _, port = text.rpartition("@")[2].partition(":")
        found.append(f"[{name}]:{port}" if port and port != "22" else name)
    return found


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


_READERS: Mapping[str, Callable[[Connection], tuple[str, dict[str, Any]]]] = {
    RAY: ray_launcher,
    SLURM: slurm_launcher,
    SSH: ssh_launcher,
}
