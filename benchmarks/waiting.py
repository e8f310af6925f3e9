"""A process like a triggerer: many `StageTrigger`s wait in one event loop. `overhead.py` starts it and reads its JSON.

A few of the attempts are real jobs with a supervisor each. The others have everything that a trigger reads (ledger,
handle, run folder, events), and in their run folder the record of one of the real, living supervisors: a thousand
supervisors would measure this machine's memory, not the trigger.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import logging
import os
import pstats
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
from _common import percentile

from rallypoint import PythonJob, Script
from rallypoint.airflow.triggers import StageTrigger
from rallypoint.launchers.local import LocalLauncher
from rallypoint.stages.attempt import Attempt, Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store

LAG_INTERVAL = 0.02  # seconds
# It reports every five seconds, as a training does.
JOB = """
import time, rallypoint
for step in range(100_000):
    rallypoint.stage().report(step=step, loss=1.0)
    time.sleep(5)
"""


async def real(folder: Path, number: int) -> tuple[Engine, Attempt]:
    """Start a job."""
    stage = Engine(
        Store.open(folder / "store"), StageKey(("waiting", "run", f"real-{number}")), LocalLauncher(folder / "runs")
    )
    started = await stage.start(PythonJob(Script(str(folder / "job.py"))), Request(owner="try-1"))
    return stage, started.attempt


async def alike(folder: Path, number: int, stage: Engine, attempt: Attempt) -> Engine:
    """Make an attempt that looks to a trigger as the given one does."""
    key = StageKey(("waiting", "run", f"alike-{number}"))
    other = Engine(stage.store, key, LocalLauncher(folder / "runs"))
    # An hour old, as most that wait are: a watcher looks more often in the first minute of an attempt.
    record = replace(attempt.record, id=key.attempt_id(1), created=time.time() - 3600)
    await other.ledger.claim(record)
    await other.ledger.launched(1, replace(attempt.handle, attempt=record.id))
    run, copy = folder / "runs" / attempt.record.id, folder / "runs" / record.id
    (copy / "logs").mkdir(parents=True)
    for name in ("started.json", "heartbeat.json"):
        shutil.copy(run / name, copy / name)
    for log in (run / "logs").iterdir():
        shutil.copy(log, copy / "logs" / log.name)
    events = folder / "store" / other.ledger.events_prefix(1)
    shutil.copytree(folder / "store" / stage.ledger.events_prefix(1), events)
    return other


async def wait(trigger: StageTrigger) -> None:
    """Run a trigger, as the triggerer does."""
    async for event in trigger.run():
        print(f"a trigger fired: {event}", file=sys.stderr)


async def lags(seconds: float) -> list[float]:
    """Return how much later than asked the event loop woke this coroutine, again and again."""
    found, end = [], time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        await asyncio.sleep(LAG_INTERVAL)
        found.append(time.monotonic() - began - LAG_INTERVAL)
    return found


async def measure(folder: Path, *, stages: int, jobs: int, seconds: float, profile: str | None) -> dict[str, object]:
    """Let the triggers wait, and return what that took."""
    (folder / "job.py").write_text(JOB, encoding="utf-8")
    began = [await real(folder, number) for number in range(jobs)]
    try:
        await asyncio.sleep(2)  # every job has opened and reported by then
        engines = [stage for stage, _ in began]
        engines += [await alike(folder, number, *began[number % jobs]) for number in range(stages - jobs)]
        alone = await lags(min(10.0, seconds))
        me = psutil.Process()
        memory = me.memory_info().rss
        triggers = [
            asyncio.create_task(
                wait(
                    StageTrigger(
                        stage=list(stage.key.parts),
                        attempt=1,
                        owner="try-1",
                        store=stage.store.uri,
                        rallypoint_conn_id="rallypoint_default",
                        poll_interval=1.0,
                        deadline=None,
                    )
                )
            )
            for stage in engines
        ]
        starting = await lags(10)
        cpu, wall = time.process_time(), time.monotonic()
        with cProfile.Profile() if profile == "cprofile" else nullcontext() as profiler:
            waiting = await lags(seconds)
        cores = (time.process_time() - cpu) / (time.monotonic() - wall)
        alive = sum(not one.done() for one in triggers)
        added = me.memory_info().rss - memory
        for one in triggers:
            one.cancel()
        await asyncio.gather(*triggers, return_exceptions=True)
        if profiler is not None:
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(40)
    finally:
        for stage, attempt in began:
            await stage.cancel(
                attempt.record.number, owner=None, why="the benchmark is over", grace=timedelta(seconds=5)
            )
    return {
        "stages": stages,
        "real_jobs": jobs,
        "waiting_at_the_end": alive,
        "seconds": seconds,
        "cores": cores,
        "rss_added_mb": added / 1e6,
        "rss_mb": (memory + added) / 1e6,
        "lag_ms": {
            name: quantiles(values)
            for name, values in (("without", alone), ("first_10_s", starting), ("with", waiting))
        },
        "load": os.getloadavg()[0],
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return p50, p99 and the largest, in milliseconds."""
    return {"p50": percentile(values, 0.5) * 1e3, "p99": percentile(values, 0.99) * 1e3, "max": max(values) * 1e3}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--profile", choices=["cprofile"])
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.WARNING)
    folder = options.folder
    # A triggerer asks the API server for the connection, once for each trigger; here it is in the environment.
    extra = {"store": f"file://{folder}/store", "launcher": f"local://{folder}/runs"}
    os.environ["AIRFLOW_CONN_RALLYPOINT_DEFAULT"] = json.dumps({"conn_type": "rallypoint", "extra": extra})
    print(
        json.dumps(
            asyncio.run(
                measure(
                    folder,
                    stages=options.stages,
                    jobs=options.jobs,
                    seconds=options.seconds,
                    profile=options.profile,
                )
            )
        )
    )


if __name__ == "__main__":
    main()
