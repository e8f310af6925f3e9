"""Which hosts an attempt uses: decided once, and written on every host that answers before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError
from rallypoint.launchers.nodes import Shape
from rallypoint.launchers.placement import Node, log_store, place_on
from rallypoint.spec.gang import Macro

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.spec.gang import Gang


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A gang on its hosts.

    Args:
        hosts: The host of each node, by name.
        shape: The gang as it is placed on them.
        stall: Seconds without a word from any process after which the gang counts as hung; None never.
        specs: What each node's supervisor reads; the run folder, the interpreter and its address are filled in there.
        secrets: The names of the variables that are written down nowhere.
        python: The interpreter that the gang names; None is each host's.
    """

    hosts: tuple[str, ...]
    shape: Shape
    specs: tuple[Mapping[str, Any], ...]
    stall: float | None = None
    secrets: tuple[str, ...] = field(default=())
    python: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return {
            "v": 1,
            "hosts": list(self.hosts),
            "shape": self.shape.to_json(),
            "specs": [dict(spec) for spec in self.specs],
            "stall": self.stall,
            "secrets": list(self.secrets),
            "python": self.python,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` described."""
        return cls(
            hosts=tuple(value["hosts"]),
            shape=Shape.from_json(value["shape"]),
            specs=tuple(value["specs"]),
            stall=value["stall"],
            secrets=tuple(value["secrets"]),
            python=value["python"],
        )


def chosen(gang: Gang, hosts: Sequence[str], silent: Mapping[str, str]) -> list[str]:
    """Return the hosts that a gang is to use, the first one first.

    A gang of fixed size takes as many as it has processes, of those that answer. An elastic one takes the others, too:
    they join when they come.

    Args:
        gang: The gang.
        hosts: Every host of the launcher, in order.
        silent: Those that do not answer, and why.

    Raises:
        LaunchError: Too few answer.
    """
    answering = [host for host in hosts if host not in silent]
    needed = min(len(hosts), sum(role.least for role in gang.roles))
    why = "; ".join(list(silent.values())[:8])
    if 2 * len(answering) < len(hosts):
        msg = f"{len(answering)} of {len(hosts)} hosts answer, expected half of them at the least: {why}"
        raise LaunchError(msg)
    if len(answering) < needed:
        msg = f"{len(answering)} of {len(hosts)} hosts answer, expected {needed} for this {gang.name} job: {why}"
        raise LaunchError(msg)
    if not any(role.elastic for role in gang.roles):
        return answering[:needed]
    most = min(len(hosts), sum(role.replicas for role in gang.roles))
    return [*answering, *(host for host in hosts if host in silent)][:most]


def planned(gang: Gang, attempt: str, hosts: Sequence[str], *, first: str, ports: Mapping[str, int]) -> Plan:
    """Return the plan of a gang on hosts.

    Args:
        gang: The gang.
        attempt: The attempt's id.
        hosts: The hosts of its nodes.
        first: The address of the first one.
        ports: Free ports there.
    """
    nodes = [
        Node(run_dir=Macro.RUN_DIR, python=Macro.PYTHON, address=None if number else first)
        for number in range(len(hosts))
    ]
    # One node of several may be silent for good reason, such as one that has no rank 0: who polls sees all of them.
    watched_here = len(hosts) == 1
    uri = log_store(gang)
    logs = {"logs": {"uri": uri, "python": Macro.PYTHON}} if uri else {}
    specs = [{**spec, **logs} for spec in place_on(gang, attempt=attempt, nodes=nodes, ports=ports)]
    return Plan(
        hosts=tuple(hosts),
        shape=Shape.of(gang, len(hosts)),
        specs=tuple(spec if watched_here else {**spec, "stall_timeout": None} for spec in specs),
        stall=None if watched_here else gang.stall_timeout,
        secrets=tuple(sorted(gang.secrets)),
        python=gang.python,
    )
