"""Places a gang on one host: roles × replicas become processes, and macros their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rallypoint.spec.gang import Gang, fill
from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK = "127.0.0.1"


def place(gang: Gang, *, attempt: str, run_dir: str, python: str) -> dict[str, Any]:
    """Return the processes of a gang on one host, as the supervisor reads them.

    An elastic role runs its least number of replicas: one machine is one node. Ports stay macros, because the
    supervisor picks them in the moment of the start.
    """
    ports = [port for role in gang.roles for port in role.ports]
    values = {
        "python": python,
        "run_dir": run_dir,
        "attempt": attempt,
        "host": LOOPBACK,
        **{f"port.{port}": f"${{rallypoint:port.{port}}}" for port in ports},
    }
    processes: list[dict[str, Any]] = []
    for role in gang.roles:
        for replica in range(role.least):
            name = f"{role.name}-{replica}"
            mine = values | {"replica": str(replica), "nodes": str(role.least)}
            env = {key: fill(value, mine) for key, value in role.env.items()}
            env |= {
                context.PROCESS: name,
                context.ATTEMPT_ID: attempt,
                context.LOGS_DIR: f"{run_dir}/logs",
                "PYTHONUNBUFFERED": "1",
            }
            argv = [fill(word, mine) for word in role.argv]
            processes.append({"name": name, "argv": argv, "env": env, "cwd": f"{run_dir}/work", "role": role.name})
    return {
        "v": 1,
        "attempt": attempt,
        "processes": processes,
        "ports": ports,
        "may_lose": {role.name: role.may_lose for role in gang.roles if role.may_lose},
        "stall_timeout": gang.stall_timeout,
        "events_dir": _events_dir(processes[0]["env"]),
        "lease": _lease(gang, processes[0]["env"]),
    }


def _lease(gang: Gang, env: Mapping[str, str]) -> dict[str, Any] | None:
    uri = env.get(context.LEASE_URI)
    return {"uri": uri, "seconds": gang.lease} if uri and gang.lease else None


def _events_dir(env: Mapping[str, str]) -> str | None:
    uri = env.get(context.EVENTS_URI, "")
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else None
