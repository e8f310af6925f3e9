"""What the nodes of a job have to have; where they differ, it is a heterogeneous job: one of several components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rallypoint.launchers.placement import members

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rallypoint.launchers.slurm.address import Ask
    from rallypoint.spec.gang import Gang
    from rallypoint.spec.resources import Resources

_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Need:
    """What a node has to have.

    Args:
        cpus: CPUs; 0 for Slurm's default.
        memory: MiB; 0 for Slurm's default.
        gpus: GPUs.
    """

    cpus: int
    memory: int
    gpus: int

    @classmethod
    def of(cls, processes: Sequence[Resources]) -> Need:
        """Return what the processes of one node need together."""
        memory = sum(each.memory_bytes or 0 for each in processes)
        cpus, gpus = sum(each.cpus or 0 for each in processes), sum(each.gpus for each in processes)
        return cls(math.ceil(cpus), math.ceil(memory / _MEBIBYTE), gpus)


@dataclass(frozen=True)
class Component:
    """Equal nodes of a job, which follow each other.

    Args:
        nodes: How many.
        need: What each of them has to have.
        gres: The generic resources that it asks for, as sbatch takes them; empty for none.
    """

    nodes: int
    need: Need
    gres: str

    def options(self) -> dict[str, str]:
        """Return sbatch's options for it; an empty value stands for none."""
        need = self.need
        return {
            "cpus-per-task": str(need.cpus or ""),
            "mem": f"{need.memory}M" if need.memory else "",
            "gres": self.gres,
        }


def components(gang: Gang, ask: Ask, nodes: tuple[int, int]) -> list[Component]:
    """Return the components of a gang's job: more than one where its nodes need different things.

    Whoever says how many nodes there are (``nodes=``) gets equal ones, with what the fullest needs; so does an elastic
    gang, whose nodes come and go.

    Args:
        gang: The gang.
        ask: What is asked of Slurm.
        nodes: The nodes of the job, and how many the gang may have together with those that join it.
    """
    least, most = nodes
    parts: list[list[Resources]] = [[] for _ in range(most)]
    for number, (role, _) in enumerate(members(gang, most)):
        parts[number % most].append(role.resources)
    needs = [Need.of(part) for part in parts]
    if ask.range_of_nodes is not None or least < most:
        return [_component(least, needs, ask, needs)]
    # Slurm's own default is one CPU.
    groups = [list(equal) for _, equal in groupby(needs, lambda need: (max(1, need.cpus), need.memory, need.gpus))]
    return [_component(len(group), group, ask, needs) for group in groups]


def _component(nodes: int, needs: Sequence[Need], ask: Ask, all_needs: Sequence[Need]) -> Component:
    """Return equal nodes that have what the fullest of some needs."""
    fullest = Need(*(max(getattr(need, name) for need in needs) for name in ("cpus", "memory", "gpus")))
    return Component(nodes, fullest, _gres(fullest, ask, all_needs))


def _gres(need: Need, ask: Ask, needs: Sequence[Need]) -> str:
    """Return what a node asks for: ``gres=`` if given; but nothing if only other nodes are to have GPUs."""
    if ask.gres:
        return ask.gres if need.gpus or not any(each.gpus for each in needs) else ""
    return f"gpu:{need.gpus}" if need.gpus else ""
