"""The job that a gang becomes: how many nodes, which request to sbatch, and what its batch script finds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rallypoint.errors import PreflightError
from rallypoint.launchers.nodes import Shape
from rallypoint.launchers.placement import Node, place_on
from rallypoint.launchers.slurm.components import Component, components
from rallypoint.launchers.supervised import GRACE
from rallypoint.spec.shipment import ARCHIVE
from rallypoint.worker import context
from rallypoint.worker.slurm_folder import PLACEMENTS, SETTINGS, SHAPE

if TYPE_CHECKING:
    from rallypoint.launchers.slurm.address import Ask
    from rallypoint.spec.gang import Gang

SCRIPT_NAME = "job.sh"
SETUP, ARCHIVE_PATH = "RALLYPOINT_SETUP", "RALLYPOINT_ARCHIVE"
# The same for every job: what differs comes as arguments and variables, so nothing has to be quoted.
SCRIPT = b"""#!/bin/bash
trap "" USR1 USR2  # until the last line's program listens for them
if [ -n "${RALLYPOINT_SETUP:-}" ]; then . "$RALLYPOINT_SETUP" || exit 1; fi
export PYTHONPATH="$RALLYPOINT_ARCHIVE"
exec "$@"
"""
MEETING_TIMEOUT = 600.0  # seconds within which the first node has to say where it is
_MARGIN = 15.0  # of the warning's seconds, those in which the records are written and the job is put back


def node_range(gang: Gang, ask: Ask) -> tuple[int, int]:
    """Return the least and the largest number of nodes that a gang may have.

    Raises:
        PreflightError: More nodes are asked for than it has processes, or a range that is none of the gang's.
    """
    most = sum(role.replicas for role in gang.roles)
    # With a second role beside it, more nodes would be other places for the processes that already run.
    least = gang.roles[0].least if len(gang.roles) == 1 else most
    wanted = ask.range_of_nodes
    if wanted is None:
        return least, most
    if wanted[1] > most:
        msg = f"got nodes={ask.nodes!r} for a gang of {most} processes, expected no more nodes than processes"
        raise PreflightError(msg)
    if wanted[0] < wanted[1] and (least == most or wanted[0] < least):
        expected = "one number" if least == most else f"one number, or a range within {least}-{most}"
        msg = f"got nodes={ask.nodes!r} for a gang of {gang.name}, expected {expected}"
        raise PreflightError(msg)
    return wanted


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A gang, and the job that it becomes.

    Args:
        gang: The gang.
        attempt: The attempt's id.
        folder: The attempt's folder.
        partition: The partition; empty for the cluster's default.
        ask: What the job asks of Slurm.
        python: The interpreter on the nodes.

    Raises:
        PreflightError: So many nodes are none for this gang.
    """

    gang: Gang
    attempt: str
    folder: str
    partition: str
    ask: Ask
    python: str

    @property
    def nodes(self) -> tuple[int, int]:
        """The nodes of the job, and how many the gang may have together with those that join it."""
        return node_range(self.gang, self.ask)

    @property
    def components(self) -> list[Component]:
        """The nodes of the job, by what they have to have."""
        return components(self.gang, self.ask, self.nodes)

    @property
    def together(self) -> bool:
        """Whether the gang needs every one of its processes."""
        return all(not role.elastic and not role.may_lose for role in self.gang.roles)

    @property
    def runs_again(self) -> int:
        """How often the job may go back into the queue. A service that came back would have another address."""
        return 0 if self.gang.service else self.ask.requeue

    @property
    def grows(self) -> bool:
        """Whether nodes may join the gang while it runs: those beyond its job's own, and for one that is lost."""
        return len(self.gang.roles) == 1 and self.gang.roles[0].elastic and self.nodes[1] > self.gang.roles[0].least

    def placements(self) -> dict[str, Any]:
        """Return the processes of every node that the gang may have."""
        node = Node(run_dir=self.folder, python=self.python, address=None)
        return {"nodes": place_on(self.gang, attempt=self.attempt, nodes=[node] * self.nodes[1])}

    def shape(self) -> dict[str, Any]:
        """Return what the loss of a node means."""
        return Shape.of(self.gang, self.nodes[1]).to_json()

    def settings(self) -> dict[str, Any]:
        """Return what the launcher tells its half in the job."""
        return {
            "v": 1,
            "together": self.together,
            "requeue": self.runs_again,
            "grace": max(self.ask.notice - _MARGIN, self.ask.notice / 2),
            "failed_grace": GRACE,
            "meeting_timeout": MEETING_TIMEOUT,
            "requires": list(self.gang.requires),
            "pickled_by": self.gang.pickled_by,
            "needs_files": list(self.gang.needs_files),
            "components": [{"nodes": each.nodes, "cpus": each.need.cpus} for each in self.components],
            "grows": {"most": self.nodes[1], "request": self.growth()} if self.grows else None,
        }

    def files(self) -> dict[str, bytes]:
        """Return what lies in the attempt's folder, in the order in which it is written: the script comes last."""
        records = {
            PLACEMENTS: self.placements(),
            SHAPE: self.shape(),
            SETTINGS: self.settings(),
            "gang.json": self.gang.to_json(),
        }
        return {
            **self.gang.files,
            **{name: json.dumps(value).encode() for name, value in records.items()},
            SCRIPT_NAME: SCRIPT,
        }

    def sbatch(self) -> list[str]:
        """Return the command that submits the job, as an argument list."""
        first = [f"--output={self.folder}/slurm-%j.log", f"--signal=B:USR1@{self.ask.notice}"]
        words = ["sbatch", "--parsable"]
        for number, component in enumerate(self.components):
            words += [":"] if number else first
            words += [*self._options(component), *([] if self.together else ["--no-kill"]), *self.ask.sbatch]
        return [*words, *self._job(), "batch", self.folder]

    def growth(self) -> dict[str, list[str]]:
        """Return how the job itself submits one more node: options of sbatch, and the job without its arguments."""
        (component,) = self.components
        options = [*self._options(replace(component, nodes=1)), f"--output={self.folder}/more-%A-%a.log"]
        return {"options": [*options, *self.ask.sbatch], "job": self._job()}

    def _options(self, component: Component) -> list[str]:
        ask = self.ask
        options = {
            "job-name": self.attempt,
            "comment": self.folder,
            "chdir": f"{self.folder}/work",
            "open-mode": "append",
            "nodes": str(component.nodes),
            "ntasks-per-node": "1",
            "partition": self.partition,
            "account": ask.account,
            "qos": ask.qos,
            "constraint": ask.constraint,
            "time": ask.time,
            "reservation": ask.reservation,
            "export": "ALL",  # of an environment that holds nothing but what the job is to have
            **component.options(),
        }
        words = [f"--{name}={value}" for name, value in options.items() if value]
        return [*words, "--requeue" if self.runs_again else "--no-requeue"]

    def _job(self) -> list[str]:
        return [f"{self.folder}/{SCRIPT_NAME}", self.python, "-m", "rallypoint.worker.slurm"]

    def environment(self, path: str) -> dict[str, str]:
        """Return the variables of the job beside those of Slurm's commands, its secrets among them.

        Args:
            path: Where commands are looked for, on the host that submits.
        """
        python = PurePath(self.python)
        return {
            **{name: secret.reveal() for name, secret in self.gang.secrets.items()},
            "PATH": f"{python.parent}:{path}" if python.is_absolute() else path,
            context.ATTEMPT_ID: self.attempt,
            context.RUN_DIR: self.folder,
            ARCHIVE_PATH: f"{self.folder}/{ARCHIVE}",
            **({SETUP: self.ask.setup} if self.ask.setup else {}),
        }
