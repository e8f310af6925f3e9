"""Measures a Spark stage against bare ``spark-submit`` of the same script, in one run: until it runs, until the end.

Both run the same script by turns, on the same master and with the same sizes; which of the two begins a pair changes.
``spark-submit`` is the command that a shell operator would call. A stage is started from a process that is there
already, as Airflow's worker is; it writes its record before, and knows of its success only from its last event.

Run it on a quiet machine: ``python benchmarks/spark_submit.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import Report, TimedScript, by_turns, engine, median, spread, succeed

from rallypoint import SparkJob

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "devtools"))
from spark_head import SMALL, spark_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROUNDS, QUICK = 10, 3
MEMORY = "512m"
# A shuffle and a result; what it does is the same in both, so that the difference is what is around it.
_SCRIPT = """
import sys, time
from pyspark.sql import SparkSession

spark = SparkSession.builder.getOrCreate()
with open(sys.argv[1], "w") as file:
    file.write(repr(time.time()))
rows = spark.range(2_000_000).selectExpr("id % 100 as k", "id as v").groupBy("k").sum("v").count()
assert rows == 100, rows
spark.stop()
"""


class Bench:
    """One script on one master.

    Args:
        folder: Where the script, its answers and the store are.
        master: The master's URL.
        cluster: The address object of the cluster, if that is a temporary one.
    """

    def __init__(self, folder: Path, master: str, cluster: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.master = master
        self.cluster = cluster
        self.script = TimedScript(folder, _SCRIPT)

    def spark_submit(self, name: str) -> tuple[float, float]:
        """Run with Spark's command line; return the seconds until the session was there, and until the end."""
        command = [str(Path(sys.executable).with_name("spark-submit")), "--master", self.master]
        command += ["--driver-memory", MEMORY, "--executor-memory", MEMORY, "--conf", "spark.ui.port=0"]
        command += self.script.words(name)
        env = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        return self.script.time(name, lambda: subprocess.run(command, check=True, capture_output=True, env=env))

    def stage(self, name: str) -> tuple[float, float]:
        """Run a stage from this process; return the same."""
        return self.script.time(name, lambda: asyncio.run(self._run_stage(name)))

    async def _run_stage(self, name: str) -> None:
        job = SparkJob(
            self.script.entry(name),
            master=self.cluster or self.master,
            driver_memory=MEMORY,
            executor_memory=MEMORY,
        )
        await succeed(engine(self.folder, name), job, f"the stage {name}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds, to see that it works")
    parser.add_argument("--master", default="local[2]", help="a master, or 'cluster' for a standalone one on 127.0.0.1")
    given = parser.parse_args()
    rounds = QUICK if given.quick else ROUNDS
    report = Report("spark_submit", quick=given.quick)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        master, cluster = given.master, None
        if master == "cluster":
            running = stack.enter_context(spark_cluster(engine(folder, "cluster"), workers=1, lease=3600, **SMALL))
            master, cluster = running.master, running.address
        measure(Bench(folder, master, cluster), report, rounds, given.master)
    report.finish()


def measure(bench: Bench, report: Report, rounds: int, where: str) -> None:
    """Run the pairs, and add what was measured to the report."""
    ways: dict[str, Callable[[str], tuple[float, float]]] = {
        "spark-submit": bench.spark_submit,
        "stage": bench.stage,
    }
    times = by_turns(ways, rounds)
    for index, what in enumerate(("until the session is there", "until success is known")):
        for name, found in times.items():
            seconds = [pair[index] for pair in found]
            report.row(f"{name} on {where}: seconds {what}", spread(seconds))
            report.data(f"{name} on {where}, {what}", {"seconds": seconds})
        pairs = zip(times["stage"], times["spark-submit"], strict=True)
        ratios = [own[index] / bare[index] for own, bare in pairs]
        report.row(f"stage / spark-submit on {where}, {what}", f"{median(ratios):.3f}")
        report.data(f"ratios on {where}, {what}", {"ratios": ratios, "median": median(ratios)})


if __name__ == "__main__":
    main()
