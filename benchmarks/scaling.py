"""What a stage costs as its ranks grow in number (1, 2, 8), beside bare ``torchrun`` of the same script and size.

``start``  until rank 0 has done the first step, from the call of `Engine.start` or the start of torchrun's process
``loss``   from the SIGKILL of the last rank until the first step after torchrun has restarted the ranks, in one attempt
``join``   of a second agent to an elastic training of half the ranks: from the start of the agent (on the side of the
           stage, of its supervisor) until the first step of the whole world. The stage's runs on a private Slurm of two
           nodes on this machine, of which one is kept back at first; the row ``node to step`` has what Slurm and the
           launcher add. Without Slurm, or not as root, this part is left out, and the table says so.

All ranks share this machine's cores, so eight of them say what the overhead is, and nothing of how training scales. The
two sides run in turns, and each has the same pause between its steps, in which newcomers can import torch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psutil
from _common import (
    HERE,
    TORCHRUN_ENV,
    Report,
    console,
    engine,
    load,
    median,
    spread,
    torchrun,
    training,
    wait_for,
    wait_for_quiet,
)

from rallypoint.launchers.slurm import SlurmLauncher
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store

sys.path.insert(0, str(HERE.parent / "devtools"))
from airflow_processes import free_ports
from slurm_cluster import SlurmCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SIZES = (1, 2, 8)
RESTARTS = 3
PAUSE = 0.05  # seconds between two steps
SLOW = 600.0  # seconds that one of these may take on a busy machine
# The first agent of an elastic training waits so long for others; torchrun's own 30 s would be most of the figure.
RENDEZVOUS = {"last_call_timeout": "1"}


class Steps:
    """What rank 0 of a training has written down: `scripts/train.py`.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notes: list[dict[str, Any]] = []
        self._read = 0  # bytes of the file
        self.args = ["--plain", "--epochs", "1000000", "--steps", "1", "--pause", str(PAUSE), "--record", str(path)]

    def first(self, world: int, *, but: int | None = None) -> float:
        """Return when ranks had done their first step, in seconds since the epoch, as soon as they have.

        Args:
            world: How many ranks they are.
            but: The process id of the rank 0 that is not meant, of the ranks before.
        """
        return wait_for(partial(self._first, world, but), f"a step of {world} ranks", seconds=SLOW)

    def _first(self, world: int, but: int | None) -> float | None:
        self._read_on()
        begun: set[int] = set()
        for note in self._notes:
            if note["world"] == world and note["pid"] != but:
                if note["pid"] in begun:
                    return float(note["t"])
                begun.add(note["pid"])  # its first line says only that it is about to begin
        return None

    def rank_0(self) -> int:
        """Return the process id of the first rank 0."""
        return int(self._notes[0]["pid"])

    def _read_on(self) -> None:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")  # the last line may be half written
            self._read += len(whole) + 1 if whole else 0
            self._notes += [json.loads(line) for line in whole.splitlines()]

    def rank(self, number: int) -> int:
        """Return the process id of a rank."""
        return wait_for(partial(self._rank, number), f"rank {number}", seconds=SLOW)

    def _rank(self, number: int) -> int | None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = str(self.path) in process.cmdline()
                if mine and process.environ().get("RANK") == str(number):
                    return process.pid
        return None


def lose_rank(steps: Steps, ranks: int) -> float:
    """Kill the last rank, and return the seconds until the restarted ranks have done their first step."""
    before, pid = steps.rank_0(), steps.rank(ranks - 1)
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    return steps.first(ranks, but=before) - killed


# Start and loss ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def agent(steps: Steps, ranks: int, *options: str) -> Iterator[float]:
    """Run an agent of bare torchrun for as long as the ``with`` block lasts; yields when it was started."""
    words = torchrun(steps.args, ranks=ranks, options=[f"--max-restarts={RESTARTS}", *options])
    env = os.environ | TORCHRUN_ENV | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as a stage has it
    began = time.time()
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield began
        finally:
            process.terminate()  # it ends its ranks
            process.wait(60)


def bare(folder: Path, ranks: int) -> dict[str, float]:
    """Return the seconds of start and loss of bare torchrun."""
    steps = Steps(folder / "steps.jsonl")
    with agent(steps, ranks, "--standalone") as began:
        return {"start": steps.first(ranks) - began, "loss": lose_rank(steps, ranks)}


def stage(folder: Path, ranks: int) -> dict[str, float]:
    """Return the seconds of start and loss of a stage on the local launcher."""
    steps, began = Steps(folder / "steps.jsonl"), time.time()
    job = training(steps.args, ranks=ranks, max_restarts=RESTARTS)

    async def measure() -> dict[str, float]:
        one = engine(folder, "scaling")
        started = await one.start(job, Request(owner="try-1"))
        try:
            first = await asyncio.to_thread(steps.first, ranks)
            return {"start": first - began, "loss": await asyncio.to_thread(lose_rank, steps, ranks)}
        finally:
            number = started.attempt.record.number
            await one.cancel(number, owner=None, why="it is measured", grace=timedelta(seconds=10))

    return asyncio.run(measure())


# Join ----------------------------------------------------------------------------------------------------------------


def bare_join(folder: Path, ranks: int) -> dict[str, float]:
    """Return the seconds that a second agent of bare torchrun needs to join."""
    steps, half = Steps(folder / "steps.jsonl"), ranks // 2
    conf = ",".join(f"{name}={value}" for name, value in RENDEZVOUS.items())
    common = ["--nnodes=1:2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_ports(1)[0]}"]
    common += ["--rdzv-id=scaling", "--local-addr=127.0.0.1"]
    with agent(steps, half, *common, f"--rdzv-conf=is_host=true,{conf}"):
        steps.first(half)
        with agent(steps, half, *common, f"--rdzv-conf=is_host=false,{conf}") as began:
            return {"join": steps.first(ranks) - began}


def stage_join(slurm: SlurmCluster, folder: Path, ranks: int) -> dict[str, float]:
    """Return the seconds that a second node needs to join a stage on Slurm."""
    steps, half, root = Steps(folder / "steps.jsonl"), ranks // 2, folder / "runs"
    place = urlencode({"root": str(root), "conf": slurm.conf, "python": sys.executable})
    job = training(steps.args, ranks=half, nnodes="1:2", max_restarts=RESTARTS, rdzv_conf=RENDEZVOUS)
    slurm.command("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=kept back")

    async def measure() -> dict[str, float]:
        launcher = SlurmLauncher.from_uri(f"slurm://main?{place}")
        one = Engine(Store.open(folder / "store"), StageKey(("benchmark", "join")), launcher)
        started = await one.start(job, Request(owner="try-1"))
        try:
            await asyncio.to_thread(steps.first, half)
            slurm.command("scontrol", "update", "NodeName=n2", "State=RESUME")
            resumed = time.time()
            whole = await asyncio.to_thread(steps.first, ranks)
            record = root / started.attempt.record.id / "i0" / "nodes" / "1.1" / "started.json"
            began = json.loads(record.read_text(encoding="utf-8"))["t"]
            return {"join": whole - began, "node to step": whole - resumed}
        finally:
            number = started.attempt.record.number
            await one.cancel(number, owner=None, why="it is measured", grace=timedelta(seconds=10))

    found = asyncio.run(measure())
    slurm.cancel_all()
    return found


# The report ----------------------------------------------------------------------------------------------------------


def in_turns(rounds: int, sides: dict[str, Callable[[Path], dict[str, float]]], what: str) -> dict[str, Any]:
    """Run both sides in turns, and return what each of their parts took, and in which ratio."""
    found: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    loads = []
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            folder = Path(tempfile.mkdtemp(prefix="rallypoint-benchmark-"))
            try:
                wait_for_quiet()
                for part, seconds in sides[side](folder).items():
                    found[side].setdefault(part, []).append(seconds)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        loads.append(load())
        console.print(f"{what}, round {number + 1}: {_last_ones(found)}, load {loads[-1]}")
    pairs = {
        part: list(zip(seconds, found["torchrun"][part], strict=True))
        for part, seconds in found["stage"].items()
        if part in found["torchrun"]
    }
    return {
        "stage_s": found["stage"],
        "torchrun_s": found["torchrun"],
        "ratio": {part: median(one / other for one, other in both) for part, both in pairs.items()},
        "difference_s": {part: median(one - other for one, other in both) for part, both in pairs.items()},
        "load": loads,
    }


def _last_ones(found: dict[str, dict[str, list[float]]]) -> str:
    sides = ((side, ", ".join(f"{part} {s[-1]:.1f} s" for part, s in parts.items())) for side, parts in found.items())
    return "; ".join(f"{side} {words}" for side, words in sides)


def show(report: Report, ranks: int, found: dict[str, Any]) -> None:
    """Add the rows of one measurement."""
    for part, seconds in found["stage_s"].items():
        what = f"{part}, {ranks} rank{'s' * (ranks > 1)}"
        if part in found["ratio"]:
            report.row(f"{what}: stage / torchrun", f"{found['ratio'][part]:.2f}")
            report.row("  stage - torchrun, s", f"{found['difference_s'][part]:.2f}")
            report.row("  torchrun, s", spread(found["torchrun_s"][part]))
        report.row("  stage, s" if part in found["ratio"] else f"{what}, on Slurm, s", spread(seconds))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the two smaller sizes")
    parser.add_argument("--rounds", type=int, help="3, with --quick 1")
    parser.add_argument("--sizes", type=int, nargs="+", help="1 2 8, with --quick 1 2")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    sizes = options.sizes or (SIZES[:2] if options.quick else SIZES)
    report = Report("scaling", quick=options.quick)
    try:
        measure_joins(report, [n for n in sizes if n > 1], rounds)
        measure_starts(report, sizes, rounds)
    finally:
        report.finish()  # what one part measured is kept if the other one fails


def measure_starts(report: Report, sizes: Sequence[int], rounds: int) -> None:
    """Measure starts, and the loss of a rank."""
    found: dict[str, Any] = {}
    for n in sizes:
        sides = {"stage": partial(stage, ranks=n), "torchrun": partial(bare, ranks=n)}
        found[str(n)] = in_turns(rounds, sides, f"{n} ranks")
        show(report, n, found[str(n)])
    report.data("start_and_loss", found)


def measure_joins(report: Report, sizes: Sequence[int], rounds: int) -> None:
    """Measure how long a second agent needs to join."""
    if why := SlurmCluster.why_not():
        report.row("join of a second agent", f"not measured: {why}")
        return
    found: dict[str, Any] = {}
    with SlurmCluster() as slurm:
        for n in sizes:
            sides = {"stage": partial(stage_join, slurm, ranks=n), "torchrun": partial(bare_join, ranks=n)}
            found[str(n)] = in_turns(rounds, sides, f"join to {n} ranks")
            show(report, n, found[str(n)])
    report.data("join", found)


if __name__ == "__main__":
    main()
