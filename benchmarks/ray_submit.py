"""Measures a stage on a Ray cluster against ``ray job submit`` itself, in one run: until the code runs, until the end.

Both submit the same script to the same cluster by turns. ``ray job submit`` is the command that a shell operator
would call: it starts a Python that imports Ray, and waits for the end. A stage is submitted from a process that is
there already, as Airflow's worker is, and writes its record before; a stage from a fresh process is shown beside.

Run it on a quiet machine: ``python benchmarks/ray_submit.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from _common import Report, console, finish, spread, wait_for_quiet

from rallypoint import PythonJob, Script
from rallypoint.launchers.registry import open_launcher
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "devtools"))
from ray_head import RayHead

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 12
_SCRIPT = "import sys, time\nwith open(sys.argv[1], 'w') as file:\n    file.write(repr(time.time()))\n"
_FRESH = "--one-stage"  # how this module calls itself for a stage from a fresh process


class Bench:
    """One cluster, one script, and a store.

    Args:
        folder: Where the script, its answers and the store are.
        dashboard: The cluster's dashboard.
    """

    def __init__(self, folder: Path, dashboard: str) -> None:
        self.folder = folder
        self.dashboard = dashboard
        self.script = folder / "job.py"
        self.script.write_text(_SCRIPT, encoding="utf-8")

    def ray_submit(self, name: str) -> tuple[float, float]:
        """Submit with Ray's command line; return the seconds until the code ran, and until the command ended."""
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "job", "submit", "--address", self.dashboard, "--", sys.executable, str(self.script)]
        began = time.time()
        subprocess.run([*command, str(self._answer(name))], check=True, capture_output=True)
        return self._ran(name) - began, time.time() - began

    def stage(self, name: str) -> tuple[float, float]:
        """Run a stage from this process; return the same."""
        began = time.time()
        asyncio.run(self.run_stage(name))
        return self._ran(name) - began, time.time() - began

    def fresh_stage(self, name: str) -> tuple[float, float]:
        """Run a stage from a process that is started for it; return the same."""
        command = [sys.executable, __file__, _FRESH, str(self.folder), self.dashboard, name]
        began = time.time()
        subprocess.run(command, check=True, capture_output=True)
        return self._ran(name) - began, time.time() - began

    async def run_stage(self, name: str) -> None:
        """Start a stage and follow it to its end, as an operator does."""
        launcher = open_launcher(self.dashboard.replace("http://", "ray-jobs://"))
        engine = Engine(Store.open(self.folder / "store"), StageKey(("benchmark", name)), launcher)
        job = PythonJob(Script(str(self.script), (str(self._answer(name)),)))
        outcome = await finish(engine, await engine.start(job, Request(owner="benchmark")))
        if outcome.state is not State.SUCCEEDED:
            raise RuntimeError(f"the stage {name} ended as {outcome.state}: {outcome.failure}")

    def _answer(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def _ran(self, name: str) -> float:
        return float(self._answer(name).read_text(encoding="utf-8"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it works")
    rounds = 2 if parser.parse_args().quick else ROUNDS
    report = Report("ray_submit", quick=rounds < ROUNDS)
    with RayHead(num_cpus=2) as cluster, tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), cluster.dashboard_url)
        ways: dict[str, Callable[[str], tuple[float, float]]] = {
            "ray job submit": bench.ray_submit,
            "stage": bench.stage,
            "stage, fresh process": bench.fresh_stage,
        }
        for number, way in enumerate(ways.values()):
            way(f"warm-{number}")
        wait_for_quiet()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(rounds):
            for kind, (name, way) in enumerate(ways.items()):
                times[name].append(way(f"round-{number}-{kind}"))
            console.print(f"round {number + 1} of {rounds}: {[f'{found[-1][1]:.2f} s' for found in times.values()]}")
    for index, what in enumerate(("until the code runs", "until success is known")):
        own = spread(pair[index] for pair in times["ray job submit"])
        for name, found in times.items():
            seconds = [pair[index] for pair in found]
            report.row(f"{name}: seconds {what}", spread(seconds), "" if name == "ray job submit" else f"ray: {own}")
            report.data(f"{name} {what}", {"seconds": seconds})
    report.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == [_FRESH]:
        asyncio.run(Bench(Path(sys.argv[2]), sys.argv[3]).run_stage(sys.argv[4]))
    else:
        main()
