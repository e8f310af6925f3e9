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
from pathlib import Path
from typing import TYPE_CHECKING

from _common import Report, TimedScript, by_turns, spread, succeed

from rallypoint import PythonJob
from rallypoint.launchers.registry import open_launcher
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
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
        self.script = TimedScript(folder, _SCRIPT)

    def ray_submit(self, name: str) -> tuple[float, float]:
        """Submit with Ray's command line; return the seconds until the code ran, and until the command ended."""
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "job", "submit", "--address", self.dashboard, "--", sys.executable]
        command += self.script.words(name)
        return self.script.time(name, lambda: subprocess.run(command, check=True, capture_output=True))

    def stage(self, name: str) -> tuple[float, float]:
        """Run a stage from this process; return the same."""
        return self.script.time(name, lambda: asyncio.run(self.run_stage(name)))

    def fresh_stage(self, name: str) -> tuple[float, float]:
        """Run a stage from a process that is started for it; return the same."""
        command = [sys.executable, __file__, _FRESH, str(self.folder), self.dashboard, name]
        return self.script.time(name, lambda: subprocess.run(command, check=True, capture_output=True))

    async def run_stage(self, name: str) -> None:
        """Start a stage and follow it to its end, as an operator does."""
        launcher = open_launcher(self.dashboard.replace("http://", "ray-jobs://"))
        stage = Engine(Store.open(self.folder / "store"), StageKey(("benchmark", name)), launcher)
        await succeed(stage, PythonJob(self.script.entry(name)), f"the stage {name}")


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
        times = by_turns(ways, rounds)
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
