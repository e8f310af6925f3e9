"""What Rallypoint costs while nothing goes wrong: four measurements, each beside its floor in the same run.

``stage``    a stage (`Engine.start` and `Engine.watch`) beside bare ``torchrun`` of the same plain script, in pairs,
             for a short job and a long one; without a verdict where the pairs differ by more than the goal
``ending``   from a job's last event to the task's success in a real Airflow, deferrable, beside a deferrable task whose
             trigger fires at a known time
``parsing``  a fresh interpreter reads a DAG file of 20 `TorchElasticOperator`s, beside one of 20 `BashOperator`s
``waiting``  1,000 stages wait in one event loop, as in a triggerer: cores, memory, lag of the loop (see `waiting.py`)
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from _common import (
    HERE,
    Report,
    calibrate,
    console,
    engine,
    load,
    median,
    percentile,
    run_torchrun,
    spread,
    succeed,
    training,
    wait_for_quiet,
)

from rallypoint.stages.events import EventReader
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger
from rallypoint.stages.store import Store

sys.path.insert(0, str(HERE.parent / "devtools"))
from airflow_api import AirflowApi
from airflow_instance import AirflowInstance

_PR_SET_CHILD_SUBREAPER = 36
OPERATORS = 20  # of one DAG file
DAG_FILES = {
    "bash": """
        from airflow.sdk import DAG
        from airflow.providers.standard.operators.bash import BashOperator

        with DAG("many", schedule=None):
            for number in range({count}):
                BashOperator(task_id=f"task-{{number}}", bash_command="torchrun train.py --epochs 10", retries=3)
    """,
    "rallypoint": """
        from airflow.sdk import DAG
        from rallypoint.airflow.operators import TorchElasticOperator

        with DAG("many", schedule=None):
            for number in range({count}):
                TorchElasticOperator(task_id=f"task-{{number}}", script="train.py", args=["--epochs", "10"], retries=3)
    """,
}


# A stage beside bare torchrun ----------------------------------------------------------------------------------------


async def _stage(folder: Path, name: str, args: list[str]) -> float:
    stage, began = engine(folder, name), time.monotonic()
    await succeed(stage, training(args))
    return time.monotonic() - began


def _cpu_of_children() -> float:
    """Return the CPU time, in seconds, of all processes that this one has waited for, and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


def _pairs(folder: Path, name: str, args: list[str], count: int) -> dict[str, Any]:
    """Run stage and torchrun in turns; which one comes first changes from pair to pair."""
    stages, bares, loads, cpu = [], [], [], {"stage": [], "torchrun": [], "watcher": []}

    def stage() -> None:
        began, watcher = _cpu_of_children(), time.process_time()
        stages.append(asyncio.run(_stage(folder, f"{name}-{len(stages)}", args)))
        cpu["watcher"].append(time.process_time() - watcher)
        os.wait()  # the supervisor, whose times hold those of all its processes
        cpu["stage"].append(_cpu_of_children() - began + cpu["watcher"][-1])

    def bare() -> None:
        began = _cpu_of_children()
        bares.append(run_torchrun(args))
        cpu["torchrun"].append(_cpu_of_children() - began)

    for number in range(count):
        for run in (stage, bare) if number % 2 else (bare, stage):
            wait_for_quiet()
            run()
        loads.append(load())
        console.print(f"{name} job: stage {stages[-1]:.2f} s, torchrun {bares[-1]:.2f} s, load {loads[-1]}")
    return {
        "stage_s": stages,
        "torchrun_s": bares,
        "difference_s": median(one - other for one, other in zip(stages, bares, strict=True)),
        "ratio": median(one / other for one, other in zip(stages, bares, strict=True)),
        "cpu_s": cpu,
        "cpu_difference_s": median(one - other for one, other in zip(cpu["stage"], cpu["torchrun"], strict=True)),
        "load": loads,
    }


def _differences(found: dict[str, Any]) -> list[float]:
    return [one - other for one, other in zip(found["stage_s"], found["torchrun_s"], strict=True)]


def _difference(found: dict[str, Any]) -> str:
    return f"{spread(_differences(found))} s"


def _noise(found: dict[str, Any]) -> float:
    """Return by how many seconds the pairs differ from each other."""
    return max(_differences(found)) - min(_differences(found))


def measure_stage(report: Report, folder: Path, *, quick: bool) -> None:
    """Measure the fixed and the proportional cost of a stage."""
    # Supervisors detach themselves; as their next ancestor, this process waits for them and learns their CPU time.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    steps = calibrate(folder, seconds=5 if quick else 20)
    common = ["--plain", "--epochs", "1", "--steps"]
    _pairs(folder, "warming", [*common, "1"], 1)
    short = _pairs(folder, "short", [*common, "1"], 2 if quick else 4)
    long = _pairs(folder, "long", [*common, str(steps)], 1 if quick else 3)
    longer, brief = median(long["torchrun_s"]), median(short["torchrun_s"])
    goal = 0.5 + 0.01 * longer
    # Pairs that differ by more than the goal cannot say whether it is met: other processes had the cores.
    noise = {name: _noise(found) for name, found in (("short", short), ("long", long))}
    resolved = noise["long"] <= goal
    report.row(f"stage - torchrun, job of {brief:.0f} s: the fixed cost", _difference(short))
    report.row(
        f"stage - torchrun, job of {longer:.0f} s",
        _difference(long),
        f"≤ 0.5 s + 1 % = {goal:.2f} s",
        met=long["difference_s"] <= goal if resolved else None,
    )
    if not resolved:
        report.row("", f"not resolved: the pairs differ by {noise['long']:.1f} s")
    for name, found in (("short", short), ("long", long)):
        whole = median(found["cpu_s"]["torchrun"])
        report.row(f"stage - torchrun in CPU time, {name} job", f"{found['cpu_difference_s']:.2f} s of {whole:.1f} s")
    report.data("stage", {"short": short, "long": long, "noise_s": noise, "resolved": resolved})


# The end of a task in a real Airflow ---------------------------------------------------------------------------------


def _last_event(home: Path, run: str, index: int) -> float:
    async def read() -> float:
        store, key = Store.open(home / "rallypoint"), StageKey(("ending", run, "stage", str(index)))
        return max(event.time for event in await EventReader(store, Ledger(store, key).events_prefix(1)).read())

    return asyncio.run(read())


def measure_ending(report: Report, folder: Path, *, quick: bool) -> None:
    """Measure the time from a job's end to the task's success, and the same for a bare trigger."""
    count, spacing, lead = (4, 6.0, 50.0) if quick else (20, 4.0, 75.0)
    env = {"PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    with AirflowInstance(folder / "airflow", HERE / "dags", env=env) as instance, AirflowApi(instance.url) as api:
        api.wait_until_parsed("ending")
        first = time.time() + lead
        dues = {"stages": [first + spacing * n for n in range(count)]}
        dues["alarms"] = [due + spacing / 2 for due in dues["stages"]]
        run = api.trigger("ending", dues)
        api.wait_for_run("ending", run, timeout=lead + spacing * count + 120)
        tasks = {(task.task_id, task.map_index): task for task in api.task_instances("ending", run)}
        answer = api.request("GET", f"/dags/ending/dagRuns/{run}/taskInstances", params={"limit": 100})
        raw = {(task["task_id"], task["map_index"]): task for task in answer["task_instances"]}
        late = [key for key, task in tasks.items() if task.state != "success"]
        if late:
            raise RuntimeError(f"these tasks did not succeed: {late}")
        ends = {key: datetime.fromisoformat(task["end_date"]).timestamp() for key, task in raw.items()}
        stages = [ends["stage", n] - _last_event(instance.home, run, n) for n in range(count)]
        alarms = [ends["alarm", n] - dues["alarms"][n] for n in range(count)]
    for what, values in (("a stage", stages), ("a bare deferrable task (Airflow's floor)", alarms)):
        p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
        report.row(f"job's end to success of {what}, n={count}", f"p50 {p50:.2f} s, p99 {p99:.2f} s")
    added = percentile(stages, 0.5) - percentile(alarms, 0.5)
    report.row("added by Rallypoint, p50", f"{added:.2f} s")
    report.data("ending", {"stage_s": stages, "floor_s": alarms, "load": load()})


# Parsing a DAG file --------------------------------------------------------------------------------------------------


def _parse(file: Path, home: Path) -> tuple[float, float]:
    """Return the wall and the CPU time of a fresh interpreter that reads a DAG file."""
    env = os.environ | {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    began, before = time.monotonic(), os.times()
    subprocess.run([sys.executable, str(file)], env=env, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - began, cpu


def measure_parsing(report: Report, folder: Path, *, quick: bool) -> None:
    """Measure the reading of a DAG file."""
    files = {}
    for name, text in DAG_FILES.items():
        files[name] = folder / f"many_{name}.py"
        files[name].write_text(textwrap.dedent(text).format(count=OPERATORS), encoding="utf-8")
        _parse(files[name], folder)  # writes Airflow's configuration and the byte code
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    for number in range(3 if quick else 15):
        for name in sorted(files, reverse=bool(number % 2)):
            found[name].append(_parse(files[name], folder))
    ratios = {
        kind: [one[index] / other[index] for one, other in zip(found["rallypoint"], found["bash"], strict=True)]
        for index, kind in enumerate(("wall", "cpu"))
    }
    for name, values in found.items():
        report.row(f"parsing {OPERATORS} operators, {name}, s", spread(wall for wall, _ in values))
    ratio = median(ratios["wall"])
    report.row("parsing, rallypoint / bash", spread(ratios["wall"]), "≤ 1.2", met=ratio <= 1.2)
    report.row("the same in CPU time", spread(ratios["cpu"]))
    report.data("parsing", {"wall_and_cpu_s": found, "ratios": ratios, "load": load()})


# A thousand stages that wait -----------------------------------------------------------------------------------------


def measure_waiting(report: Report, folder: Path, *, quick: bool) -> None:
    """Measure what waiting costs."""
    options = ["--seconds", "10" if quick else "60", "--stages", "200" if quick else "1000", "--jobs", "20"]
    env = os.environ | {"AIRFLOW_HOME": str(folder / "home")}
    command = [sys.executable, str(HERE / "waiting.py"), str(folder), *options]
    done = subprocess.run(command, env=env, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    what = f"{found['stages']:,} waiting stages"
    lag = found["lag_ms"]
    alone, waiting = lag["without"], lag["with"]
    report.row(f"{what}: CPU", f"{found['cores']:.2f} cores", "≤ 1", met=found["cores"] <= 1)
    report.row(f"{what}: memory added", f"{found['rss_added_mb']:.0f} MB", "≤ 500 MB", met=found["rss_added_mb"] <= 500)
    report.row(
        f"{what}: lag of the event loop",
        f"p50 {waiting['p50']:.1f} ms, p99 {waiting['p99']:.0f} ms (without: {alone['p50']:.1f}, {alone['p99']:.1f})",
        "p99 ≤ 100 ms",
        met=waiting["p99"] <= 100,
    )
    if found["waiting_at_the_end"] != found["stages"]:
        raise RuntimeError(f"only {found['waiting_at_the_end']} of the triggers still waited at the end")
    report.data("waiting", found)


MEASUREMENTS = {
    "parsing": measure_parsing,
    "waiting": measure_waiting,
    "stage": measure_stage,
    "ending": measure_ending,
}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=[*MEASUREMENTS, []], help="which measurements; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    options = parser.parse_args()
    report = Report("overhead", quick=options.quick)
    for name in options.which or MEASUREMENTS:
        folder = Path(tempfile.mkdtemp(prefix="rallypoint-benchmark-"))
        try:
            MEASUREMENTS[name](report, folder, quick=options.quick)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    report.finish()


if __name__ == "__main__":
    main()
