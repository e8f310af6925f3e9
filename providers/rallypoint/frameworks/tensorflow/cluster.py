"""Who is in a cluster of TensorFlow, and what ``TF_CONFIG`` tells each process. Standard library only.

The terms are those of "Distributed training with TensorFlow": a task is one process, and has a type and an index.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHIEF, WORKER, SERVER, EVALUATOR = "chief", "worker", "ps", "evaluator"


@dataclass(frozen=True)
class Task:
    """One process, such as worker 1.

    Args:
        type: ``chief``, ``worker``, ``ps`` or ``evaluator``.
        index: Its number among those of its type.
    """

    type: str
    index: int

    @classmethod
    def parse(cls, name: str) -> Task:
        """Return the task of a gang's process, such as ``worker-1``."""
        kind, _, index = name.rpartition("-")
        return cls(kind, int(index))

    @property
    def name(self) -> str:
        """How the gang calls it."""
        return f"{self.type}-{self.index}"


@dataclass(frozen=True)
class Member:
    """Where a process of the gang is.

    Args:
        address: ``host:port``, as the others reach it.
        host: The name of its host.
    """

    address: str
    host: str


@dataclass(frozen=True)
class Cluster:
    """Every process of the gang that TensorFlow connects.

    Args:
        members: By name, in the gang's order.
        ranks: The names of those that run the user's code and train, rank 0 first.
    """

    members: Mapping[str, Member]
    ranks: Sequence[str]

    def config(self, task: Task) -> str:
        """Return the text of ``TF_CONFIG`` for a process.

        An evaluator is a task that is not in the cluster: the others never connect to it.
        """
        addresses: dict[str, list[str]] = {}
        for name, member in self.members.items():
            kind = Task.parse(name).type
            if kind != EVALUATOR:
                addresses.setdefault(kind, []).append(member.address)
        config: dict[str, Any] = {"cluster": addresses, "task": {"type": task.type, "index": task.index}}
        return json.dumps({**config, "rpc_layer": "grpc"})

    def on_host_of(self, name: str, among: Sequence[str]) -> tuple[int, int]:
        """Return which one a process is of those on its host, from 0, and how many those are.

        Args:
            name: The process.
            among: The processes that count.
        """
        here = [each for each in among if self.members[each].host == self.members[name].host]
        return here.index(name), len(here)


def rank_variables(name: str, ranks: Sequence[str]) -> dict[str, str]:
    """Return ``RANK`` and ``WORLD_SIZE`` of a process.

    Those that run the user's code and train are the world. Others have ranks behind it, so that none is taken for
    rank 0, whose word counts.
    """
    if name in ranks:
        return {"RANK": str(list(ranks).index(name)), "WORLD_SIZE": str(len(ranks))}
    return {"RANK": str(len(ranks)), "WORLD_SIZE": str(len(ranks) + 1)}
