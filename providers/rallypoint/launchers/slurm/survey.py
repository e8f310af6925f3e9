"""Says what there is on the nodes of a partition, before anything is queued there.

Of every node Slurm says what it has. The interpreter is looked at on those nodes that are free in this moment, by a job
that waits for nothing.
"""

from __future__ import annotations

import json
import pkgutil
import time
from typing import TYPE_CHECKING, Any

from rallypoint.errors import PreflightError
from rallypoint.launchers.base import HostReport
from rallypoint.launchers.slurm.commands import CommandError
from rallypoint.worker import probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.launchers.slurm.address import Address
    from rallypoint.launchers.slurm.queue import Runs

MOST = 16  # nodes whose interpreter is looked at
IMMEDIATE = 20  # seconds in which the look has to begin
_FORMAT = "%N|%o|%c|%G|%t|%E"
_FIELDS = 6
_FREE, _BAD = frozenset({"idle"}), ("down", "drain", "drng", "fail", "maint", "unk", "boot")
_NODE = '\nimport os, time\nprint(json.dumps({"node": os.environ["SLURMD_NODENAME"], "time": time.time()}))\n'


async def survey(commands: Runs, address: Address, python: str, requires: Sequence[str]) -> list[HostReport]:
    """Return what there is on each node of a launcher's partition.

    Args:
        commands: Runs Slurm's commands.
        address: The cluster and the partition.
        python: The interpreter on the nodes.
        requires: Modules whose versions are wanted.

    Raises:
        LaunchError: Slurm does not answer, or has no such partition.
    """
    partition = [f"--partition={address.partition}"] if address.partition else []
    nodes = parse_sinfo(await commands.run(["sinfo", "--Node", "--noheader", f"--format={_FORMAT}", *partition]))
    if not nodes:
        msg = f"got the partition {address.partition!r}, which has no node; see sinfo"
        raise PreflightError(msg)
    free = [name for name, node in nodes.items() if node["state"] in _FREE][:MOST]
    try:
        facts = await _looked_at(commands, address, python, requires, free) if free else {}
        words = ""
    except CommandError as error:
        facts, words = {}, f"Python could not be looked at: {error.words}"
    return [_report(name, node, facts.get(name), words if name in free else "") for name, node in nodes.items()]


def parse_sinfo(text: str) -> dict[str, dict[str, str]]:
    """Return the nodes that sinfo printed, by their names."""
    found = {}
    for line in text.splitlines():
        parts = line.strip().split("|", _FIELDS - 1)
        if len(parts) == _FIELDS:
            name, address, cpus, gres, state, reason = parts
            mark = state[-1:] if state[-1:] in {"*", "~", "#", "%", "$", "@", "!", "^", "-", "+"} else ""
            words = {"address": address, "cpus": cpus, "gres": gres, "state": state.removesuffix(mark)}
            found[name] = words | {"silent": "yes" if mark == "*" else "", "reason": reason}
    return found


def gpus_in(gres: str) -> int:
    """Return how many GPUs are in a list of generic resources: ``gpu:a100:4(S:0-1),accel:2`` has 4."""
    total = 0
    for part in gres.split(","):
        words = part.partition("(")[0].split(":")
        if words[0] == "gpu":
            total += int(words[-1]) if words[-1].isdigit() else 1
    return total


async def _looked_at(
    commands: Runs, address: Address, python: str, requires: Sequence[str], nodes: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    ask = address.ask
    options = {
        "partition": address.partition,
        "account": ask.account,
        "qos": ask.qos,
        "reservation": ask.reservation,
        "nodelist": ",".join(nodes),
        "nodes": str(len(nodes)),
        "ntasks-per-node": "1",
        "immediate": str(IMMEDIATE),
        "job-name": "rallypoint-check",
        "time": "2",
        "chdir": "/",
    }
    code = (pkgutil.get_data(probe.__name__, "probe.py") or b"").decode() + _NODE
    words = [f"--{name}={value}" for name, value in options.items() if value]
    begun = time.time()
    said = await commands.run(["srun", "--label", *words, python, "-c", code, *requires])
    tasks: dict[str, dict[str, Any]] = {}
    for line in said.splitlines():
        number, _, text = line.partition(": ")
        if number.strip().isdigit() and text.startswith("{"):
            tasks.setdefault(number.strip(), {"took": time.time() - begun}).update(json.loads(text))
    return {str(task["node"]): task for task in tasks.values() if "node" in task}


def _report(name: str, node: Mapping[str, str], facts: Mapping[str, Any] | None, words: str) -> HostReport:
    problems = [words] if words else []
    if node["silent"] or node["state"].startswith(_BAD):
        reason = "" if node["reason"] in {"none", ""} else f" ({node['reason']})"
        problems.append(f"Slurm calls it {node['state']}{' and gets no answer' if node['silent'] else ''}{reason}")
    more: dict[str, Any] = {}
    if facts is not None:
        problems += [f"{name} has no {module}" for module in facts["missing"]]
        versions = {module: version for module, version in facts["versions"].items() if version}
        # The job read its clock between then and now.
        late = facts["time"] - time.time()
        skew = late if late > 0 else min(0.0, late + facts["took"])
        more = {"python": facts["python"], "versions": versions, "skew": skew}
    return HostReport(
        host=name,
        address=node["address"],
        cpus=int(node["cpus"]) if node["cpus"].isdigit() else None,
        gpus=gpus_in(node["gres"]),
        problems=tuple(problems),
        **more,
    )
