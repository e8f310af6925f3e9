"""Judges a gang on several nodes: what each node's supervisor says becomes one status, and what is to be done next.

Pure functions, the same for every launcher with several nodes. They live and die together: a node that failed or was
lost ends the others, unless its roles can do without it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.launchers.placement import counts_on, members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.spec.gang import Gang

HOST_LOST = "host lost"  # the reason of a gang that lost a node which it cannot do without
FOLLOWED = "followed"  # the reason of a node that was ended because another one had failed
# What may be forgiven to a node; every other end, such as a cancel, is the whole gang's.
_FAILURES = frozenset({"failed", "terminated", "error"})
# Which node's reason is the gang's, if they differ.
_ORDER = ("cancelled", "lease expired", "stalled", "error", "failed", "terminated", FOLLOWED)


@dataclass(frozen=True, kw_only=True)
class RoleShape:
    """What a role of a placed gang can bear.

    Args:
        count: How many processes of it there are.
        least: How many have to run at the least, while others come and go.
        may_lose: How many may fail for good.
    """

    count: int
    least: int
    may_lose: int = 0

    @property
    def elastic(self) -> bool:
        """Whether its processes may come and go."""
        return self.least < self.count


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A placed gang, as far as the loss of a node goes; JSON, since it travels in a handle.

    Args:
        nodes: The role of each process by its name, node by node.
        roles: The roles by their names.
        anchored: Whether all processes need what the first node holds, such as the rendezvous.
    """

    nodes: tuple[Mapping[str, str], ...]
    roles: Mapping[str, RoleShape]
    anchored: bool

    @classmethod
    def of(cls, gang: Gang, nodes: int) -> Shape:
        """Return the shape of a gang on so many nodes, placed as `place_on` does."""
        counts = counts_on(gang, nodes)
        parts: list[dict[str, str]] = [{} for _ in range(nodes)]
        for number, (role, replica) in enumerate(members(gang, nodes)):
            parts[number % nodes][f"{role.name}-{replica}"] = role.name
        roles = {
            role.name: RoleShape(count=counts[role.name], least=role.least, may_lose=role.may_lose)
            for role in gang.roles
        }
        return cls(nodes=tuple(parts), roles=roles, anchored=any(role.ports for role in gang.roles))

    def part(self, numbers: Sequence[int]) -> Shape:
        """Return the shape of some of the nodes: the others have not come, or are not asked about.

        Args:
            numbers: Their numbers.
        """
        nodes = tuple(self.nodes[number] for number in numbers)
        present = Counter(role for node in nodes for role in node.values())
        roles = {name: replace(role, count=present[name]) for name, role in self.roles.items()}
        return replace(self, nodes=nodes, roles=roles)

    def to_json(self) -> dict[str, Any]:
        """Return the shape as a JSON object."""
        return {
            "nodes": [dict(node) for node in self.nodes],
            "roles": {name: [role.count, role.least, role.may_lose] for name, role in self.roles.items()},
            "anchored": self.anchored,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shape:
        """Return the shape that `to_json` described."""
        roles = {
            name: RoleShape(count=count, least=least, may_lose=may_lose)
            for name, (count, least, may_lose) in value["roles"].items()
        }
        return cls(nodes=tuple(value["nodes"]), roles=roles, anchored=bool(value["anchored"]))


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What is known of one node.

    Args:
        host: What to call it.
        status: What its supervisor says, as the local launcher would read it.
    """

    host: str
    status: Status


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where a gang stands, and what is to be done.

    Args:
        status: Its status. It is running while any node is.
        stop: Why the nodes that still run have to be ended; empty if they go on.
        missed: The nodes that an elastic role goes on without, by number: they may be started again.
    """

    status: Status
    stop: str = ""
    missed: tuple[int, ...] = field(default=())


def merge(shape: Shape, nodes: Sequence[NodeState]) -> Verdict:
    """Return one status of all nodes of a gang.

    Args:
        shape: The gang as it was placed.
        nodes: What is known of each node, in the order of the shape.
    """
    forgiven = _forgiven(shape, nodes)
    running = [node for node in nodes if node.status.phase is Phase.RUNNING]
    broken = [number for number, node in enumerate(nodes) if _is_bad(node.status) and number not in forgiven]
    if running:
        stop = _words(nodes, broken) if broken else ""
        elastic = {number for number in forgiven if _all_roles(shape, number, elastic=True)}
        return Verdict(status=Status(Phase.RUNNING), stop=stop, missed=() if stop else tuple(sorted(elastic)))
    ends = _ends(shape, nodes, forgiven)
    if not broken:
        good = all(_is_fine(node.status) or number in forgiven for number, node in enumerate(nodes))
        reason = "completed" if good else FOLLOWED
        return Verdict(status=Status(Phase.ENDED, reason, ends))
    lost = [number for number in broken if nodes[number].status.phase is Phase.LOST]
    words = [nodes[number].status for number in broken if number not in lost]
    reasons = {status.reason: status.message for status in reversed(words)}
    if "cancelled" not in reasons and lost:
        return Verdict(status=Status(Phase.LOST, HOST_LOST, ends, _words(nodes, lost)))
    reason = min(reasons, key=lambda name: _ORDER.index(name) if name in _ORDER else -1)
    return Verdict(status=Status(Phase.ENDED, reason, ends, reasons[reason]))


def _is_fine(status: Status) -> bool:
    return status.phase is Phase.ENDED and status.reason == "completed"


def _is_bad(status: Status) -> bool:
    """Return whether a node has come to an end that is no success and was not only another one's consequence."""
    return status.phase is Phase.LOST or (status.phase is Phase.ENDED and status.reason not in {"completed", FOLLOWED})


def _all_roles(shape: Shape, number: int, *, elastic: bool) -> bool:
    return all(shape.roles[role].elastic is elastic for role in shape.nodes[number].values())


def _forgiven(shape: Shape, nodes: Sequence[NodeState]) -> set[int]:
    """Return the nodes that the gang can do without.

    Lost ones count first, failures second: a gang that lost a node and went on can still fail by itself, and its cause
    is then the failure.
    """
    spare = {name: role.count - role.least if role.elastic else role.may_lose for name, role in shape.roles.items()}
    for number, node in enumerate(nodes):
        for end in node.status.processes:
            role = shape.nodes[number].get(end.name)
            if end.tolerated and role is not None and not _is_bad(node.status):
                spare[role] -= 1  # its own supervisor has forgiven it already
    bad = [number for number, node in enumerate(nodes) if _is_bad(node.status)]
    forgiven: set[int] = set()
    for number in sorted(bad, key=lambda number: (nodes[number].status.phase is not Phase.LOST, number)):
        status = nodes[number].status
        if status.phase is Phase.ENDED and status.reason not in _FAILURES:
            continue
        if shape.anchored and number == 0:
            continue
        needed: dict[str, int] = {}
        for role in shape.nodes[number].values():
            needed[role] = needed.get(role, 0) + 1
        if all(spare[role] >= count for role, count in needed.items()):
            forgiven.add(number)
            for role, count in needed.items():
                spare[role] -= count
    # A role that may lose processes goes on without them; but of its processes all may not be gone, nor of any role.
    return forgiven if any(number not in forgiven for number in range(len(nodes))) else set()


def _ends(shape: Shape, nodes: Sequence[NodeState], forgiven: set[int]) -> tuple[ProcessEnd, ...]:
    """Return how every process ended; the first of those that failed is the one that died first."""
    found: list[ProcessEnd] = []
    for number, node in enumerate(nodes):
        known = {end.name: end for end in node.status.processes}
        for name in shape.nodes[number]:
            end = known.get(name) or ProcessEnd(name, None, host=node.host)
            tolerated = end.tolerated or (number in forgiven and end.exit_code != 0)
            found.append(replace(end, first=end.first and number not in forgiven, tolerated=tolerated))
    firsts = [end for end in found if end.first]
    if not firsts:
        return tuple(found)
    first = min(firsts, key=lambda end: math.inf if end.ended is None else end.ended)
    return tuple(replace(end, first=end is first) for end in found)


def _words(nodes: Sequence[NodeState], numbers: Sequence[int]) -> str:
    """Return what happened to nodes, in one line."""
    parts = []
    for number in numbers[:8]:
        node = nodes[number]
        if node.status.phase is Phase.LOST:
            parts.append(f"{node.host} was lost" + (f" ({node.status.message})" if node.status.message else ""))
        else:
            first = next((end for end in node.status.processes if end.first), None)
            who = f"{first.name} on {node.host}" if first else node.host
            parts.append(f"{who} ended: {node.status.reason}")
    return "; ".join(parts) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")  # noqa: PLR2004
