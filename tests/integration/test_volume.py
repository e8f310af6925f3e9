"""A job that writes far more than anybody reads: its watcher keeps up, in bounded memory, and nothing is read twice.

``RALLYPOINT_VOLUME=full`` makes it 1 GB of output and a million reports.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rallypoint import PythonJob
from rallypoint.spec.entry import Script
from rallypoint.stages.attempt import Request

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

REPORTS = 1_000_000 if os.environ.get("RALLYPOINT_VOLUME") == "full" else 200_000
MEBI = 1 << 20
MAX_GROWTH = 150 * MEBI

# A watcher with Airflow's interval, as a trigger has one, in a process whose memory is its own.
WATCHER = """
    import asyncio, json, sys, time
    from datetime import timedelta
    from pathlib import Path
    import psutil
    from rallypoint.launchers.local import LocalLauncher
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.news import Narrator
    from rallypoint.stages.store import Store

    seen = {"events_read": 0, "logs_read": 0, "logs_skipped": 0, "gaps": 0, "lines": 0, "updates": 0, "most_lines": 0}

    class CountingStore(Store):
        async def read_from(self, path, start, limit):
            data = await super().read_from(path, start, limit)
            seen["events_read"] += len(data)
            return data

    class CountingLauncher(LocalLauncher):
        at = {}
        async def logs(self, handle, cursor):
            async for chunk in super().logs(handle, cursor):
                seen["logs_read"] += len(chunk.data)
                seen["logs_skipped"] += chunk.skipped
                start = chunk.offset - len(chunk.data) - chunk.skipped
                seen["gaps"] += start != self.at.get(chunk.process, 0)
                self.at[chunk.process] = chunk.offset
                yield chunk

    async def main(uri, root):
        engine = Engine(CountingStore.open(uri), StageKey(("flights", "r1", "train")), CountingLauncher(Path(root)))
        attempt, narrator, last = await engine.read(1), Narrator(), []
        seen["before"] = psutil.Process().memory_info().rss
        async for update in engine.watch(attempt, interval=timedelta(seconds=1)):
            news = [str(each) for each in narrator.tell(update)]
            seen["updates"] += 1
            seen["lines"] += len(news)
            seen["most_lines"] = max(seen["most_lines"], len(news))
            seen["said_skipped"] = seen.get("said_skipped") or next((line for line in news if "skipped" in line), None)
            last = [line for line in news if "line " in line][-1:] or last
        seen["ended"] = time.time()
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        seen["peak"] = int(peak.split()[1]) * 1024  # not ru_maxrss, which begins with that of who forked this process
        outcome = update.outcome
        print(json.dumps({**seen, "last": last, "state": outcome.state, "result": outcome.result,
                          "metrics": outcome.metrics, "step": update.view.step}))

    asyncio.run(main(*sys.argv[1:]))
"""

TALKS = """
    import sys, time
    import rallypoint

    stage, count, spent = rallypoint.stage(), int(sys.argv[1]), 0.0
    for number in range(1, count + 1):
        print(f"line {number} " + "x" * 985)
        before = time.perf_counter()
        stage.report(step=number, total=count, loss=1 / number)
        spent += time.perf_counter() - before
    stage.result({"seconds": spent, "ended": time.time()})
"""

# Not our writer: another one that knows no measure.
FLOODS = """
    import json, os, sys, time
    import rallypoint
    from rallypoint.worker import context

    stage, count = rallypoint.stage(), int(sys.argv[1])
    path = os.environ[context.EVENTS_URI].removeprefix("file://") + "/main-0.jsonl"
    with open(path, "a") as file:
        for number in range(1, count + 1):
            event = {"v": 1, "t": time.time(), "event": "progress", "process": "main-0", "step": number, "total": count}
            file.write(json.dumps({**event, "unit": "step", "metrics": {"loss": 1 / number}}) + "\\n")
    stage.result({"ended": time.time()})
"""


@pytest.fixture
def watched(engine, store, launcher, script):
    """Runs a script as a stage and returns what its watcher saw, and the sizes of what the job wrote."""

    async def run(code):
        started = await engine.start(PythonJob(Script(script(code), [str(REPORTS)])), Request(owner="try-1"))
        command = [sys.executable, "-c", textwrap.dedent(WATCHER), store.uri, str(launcher.root)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        log = Path(started.attempt.handle.details["run_dir"], "logs/main-0.log")
        events = store.local_path / engine.ledger.events_prefix(1) / "main-0.jsonl"
        sizes = log.stat().st_size, events.stat().st_size
        log.unlink()  # pytest keeps the folders of its last three sessions
        return seen, *sizes

    return run


async def test_a_job_that_never_stops_talking(watched):
    seen, log_size, events_size = await watched(TALKS)
    assert (seen["state"], seen["step"], seen["metrics"]) == ("succeeded", REPORTS, {"loss": 1 / REPORTS})
    assert seen["peak"] - seen["before"] < MAX_GROWTH
    # Every byte of the log was read once or skipped, most were skipped, that was said, and the end was shown.
    assert log_size > 990 * REPORTS
    assert (seen["logs_read"] + seen["logs_skipped"], seen["gaps"]) == (log_size, 0)
    assert seen["logs_read"] <= seen["updates"] * MEBI / 4
    assert "rallypoint logs rp-train-" in seen["said_skipped"]
    assert "--process main-0" in seen["said_skipped"]
    assert f"line {REPORTS} " in seen["last"][0]
    assert seen["most_lines"] < 600
    # A report costs microseconds, writes some ten lines a second, and each is read once.
    assert seen["result"]["seconds"] / REPORTS < 100e-6
    assert events_size < MEBI
    assert seen["events_read"] <= 1.1 * events_size + 1000
    assert seen["ended"] - seen["result"]["ended"] < 15


async def test_events_of_a_writer_without_measure(watched):
    seen, _, events_size = await watched(FLOODS)
    assert (seen["state"], seen["step"], seen["metrics"]) == ("succeeded", REPORTS, {"loss": 1 / REPORTS})
    assert seen["peak"] - seen["before"] < MAX_GROWTH
    assert events_size > 100 * REPORTS
    assert seen["events_read"] <= 1.01 * events_size
    assert seen["ended"] - seen["result"]["ended"] < 60 + 100e-6 * REPORTS
