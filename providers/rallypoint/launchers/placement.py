"""Places a gang: roles × replicas become processes on one or several nodes, and macros their values.

A *node* is what one supervisor holds together: this machine, a host that is reached by SSH, a task of a Slurm job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rallypoint.spec.gang import Gang, Macro, Role, fill
from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Node:
    """Where one part of a gang runs.

    Args:
        run_dir: The folder of this node's record, files and logs, as the node sees it.
        python: The interpreter of its processes.
        address: Its address as the other nodes reach it; None if only its supervisor knows.
    """

    run_dir: str
    python: str
    address: str | None = LOOPBACK


def place(gang: Gang, *, attempt: str, run_dir: str, python: str) -> dict[str, Any]:
    """Return the processes of a gang on one host, as the supervisor reads them.

    An elastic role runs its least number of replicas: one machine is one node. Ports stay macros, because the
    supervisor picks them in the moment of the start.
    """
    return place_on(gang, attempt=attempt, nodes=[Node(run_dir=run_dir, python=python)])[0]


def place_on(
    gang: Gang, *, attempt: str, nodes: Sequence[Node], ports: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Return the processes of every node of a gang, as its supervisor reads them.

    The first process is on the first node. An address that only a supervisor knows, and ports that nobody has picked
    yet, stay macros, which the supervisors fill in.

    Args:
        gang: The gang.
        attempt: The attempt's id.
        nodes: The nodes; those beyond one for each process stay empty.
        ports: Free ports of the first node; None leaves them to its supervisor.
    """
    wanted = [port for role in gang.roles for port in role.ports]
    host = nodes[0].address
    common = {
        "attempt": attempt,
        "host": Macro.HOST if host is None else host,
        **{f"port.{name}": Macro.port(name) if ports is None else str(ports[name]) for name in wanted},
    }
    counts = counts_on(gang, len(nodes))
    parts: list[list[dict[str, Any]]] = [[] for _ in nodes]
    for number, (role, replica) in enumerate(members(gang, len(nodes))):
        node = nodes[number % len(nodes)]
        count = counts[role.name]
        mine = common | {
            "python": node.python,
            "run_dir": node.run_dir,
            "address": Macro.ADDRESS if node.address is None else node.address,
            "replica": str(replica),
            "nodes": f"{role.least}:{count}" if count > role.least else str(count),
        }
        parts[number % len(nodes)].append(_process(role, replica, mine))
    return [
        {
            "v": 1,
            "attempt": attempt,
            "address": node.address,
            "processes": processes,
            "ports": wanted if ports is None else [],
            "may_lose": {role.name: role.may_lose for role in gang.roles if role.may_lose},
            "stall_timeout": gang.stall_timeout,
            "events_dir": events_folder(processes[0]["env"]) if processes else None,
            "lease": _lease(gang, processes[0]["env"]) if processes else None,
        }
        for node, processes in zip(nodes, parts, strict=True)
    ]


def counts_on(gang: Gang, nodes: int) -> dict[str, int]:
    """Return how many processes each role has on so many nodes: an elastic one as many as there are nodes."""
    return {role.name: max(role.least, min(role.replicas, nodes)) for role in gang.roles}


def members(gang: Gang, nodes: int) -> list[tuple[Role, int]]:
    """Return the processes of a gang on so many nodes, in order: they are dealt to the nodes like cards."""
    counts = counts_on(gang, nodes)
    return [(role, replica) for role in gang.roles for replica in range(counts[role.name])]


def _process(role: Role, replica: int, values: Mapping[str, str]) -> dict[str, Any]:
    name, run_dir = f"{role.name}-{replica}", values["run_dir"]
    env = {key: fill(value, values) for key, value in role.env.items()}
    env |= {
        context.PROCESS: name,
        context.ATTEMPT_ID: values["attempt"],
        context.LOGS_DIR: f"{run_dir}/logs",
        "PYTHONUNBUFFERED": "1",
    }
    argv = [fill(word, values) for word in role.argv]
    return {"name": name, "argv": argv, "env": env, "cwd": f"{run_dir}/work", "role": role.name}


def _lease(gang: Gang, env: Mapping[str, str]) -> dict[str, Any] | None:
    uri = env.get(context.LEASE_URI)
    return {"uri": uri, "seconds": gang.lease} if uri and gang.lease else None


def log_store(gang: Gang) -> str | None:
    """Return the bucket prefix that keeps a gang's logs; None if the store is a folder, or it has none."""
    return next((uri for role in gang.roles if (uri := role.env.get(context.LOGS_URI))), None)


def events_folder(env: Mapping[str, str]) -> str | None:
    """Return the folder that a process's events go to; None if that is a bucket, or it has none.

    It is in the folder of the attempt's record, so a host that does not see its parent does not share the store.
    """
    uri = env.get(context.EVENTS_URI, "")
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else None
