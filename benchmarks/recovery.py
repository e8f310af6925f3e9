"""What a retry costs: a training is killed at 80 % and continued, beside one that was never interrupted.

Each round runs, in this order,

1. the whole training as a stage, uninterrupted;
2. the same stage again, whose ranks are killed with SIGKILL in the middle of the first epoch after 80 %, and its
   retry;
3. the whole training in a `BashOperator` around ``torchrun``, executed in this process: its retry starts from zero.

Counted is wall time. A stage's time goes from the call of `Engine.start` to the outcome that `Engine.watch` yields with
an operator's poll interval, so it has the start-up (ledger, supervisor, torchrun, import of torch, rendezvous) and the
delay until the end is noticed. The
`BashOperator`'s is that of its `execute`. Neither has what Airflow adds to both (the
retry delay, the queue, a worker's start).

The retry is compared with what was left to do when the ranks died, one checkpoint interval, and one start-up. These
three are measured in the round's uninterrupted stage. The script has no sleeps; an epoch is a number of steps that is
measured first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from _common import (
    Report,
    calibrate,
    console,
    engine,
    epoch_times,
    finish,
    load,
    median,
    run_bash_operator,
    spread,
    succeed,
    training,
    wait_for,
    wait_for_quiet,
)

from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

SHARE = 0.8  # of the training that is done when the ranks are killed
GOAL = 1.1


async def uninterrupted(folder: Path, name: str, args: list[str], epochs: int) -> dict[str, float]:
    """Run the whole stage, and return its parts: start-up, the rest after the moment of the kill, one interval."""
    record = folder / f"{name}.jsonl"
    stage, began = engine(folder, name), time.time()
    await succeed(stage, training([*args, "--record", str(record)]), "the uninterrupted stage")
    ended = time.time()
    times, done = epoch_times(record), round(epochs * SHARE)
    return {
        "total": ended - began,
        "start_up": times[0] - began,
        "left": ended - (times[done] + times[done + 1]) / 2,
        "interval": median(after - before for before, after in pairwise(times)),
    }


async def interrupted(folder: Path, name: str, args: list[str], epochs: int) -> dict[str, float]:
    """Run the stage, kill its ranks, and return how long the engine took to notice and the retry to finish."""
    record, done = folder / f"{name}.jsonl", round(epochs * SHARE)
    arguments = [*args, "--record", str(record)]
    stage = engine(folder, name)
    started = await stage.start(training(arguments), Request(owner="try-1"))
    watching = asyncio.create_task(finish(stage, started))
    times = await asyncio.to_thread(
        wait_for, lambda: record.exists() and len(t := epoch_times(record)) > done and t, "80 % of the epochs"
    )
    await asyncio.sleep((times[-1] - times[-2]) / 2)
    ranks = (await stage.inspect(started.attempt.record.number)).view.last_round
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    killed = time.time()
    outcome = await watching
    noticed = time.time()
    if outcome.state is not State.FAILED:
        raise RuntimeError(f"the killed attempt {outcome.state}")
    record.unlink()
    await succeed(stage, training(arguments), "the retry", owner="try-2")
    ended = time.time()
    again = epoch_times(record)
    return {
        "until_failure_known": noticed - killed,
        "retry": ended - noticed,
        "retry_start_up": again[0] - noticed,
        "retry_epochs": len(again) - 1,
    }


def one_round(folder: Path, number: int, steps: int, epochs: int) -> dict[str, Any]:
    """Run one round, and return its figures."""
    args = ["--epochs", str(epochs), "--steps", str(steps)]
    wait_for_quiet()
    whole = asyncio.run(uninterrupted(folder, f"whole-{number}", args, epochs))
    wait_for_quiet()
    killed = asyncio.run(interrupted(folder, f"killed-{number}", args, epochs))
    wait_for_quiet()
    bare = run_bash_operator([*args, "--plain"])
    ideal = whole["start_up"] + whole["left"] + whole["interval"]
    found = {
        "uninterrupted": whole,
        "killed": killed,
        "bash_operator_from_zero": bare,
        "ideal": ideal,
        "ratio_to_ideal": killed["retry"] / ideal,
        "ratio_without_start_ups": (killed["retry"] - killed["retry_start_up"]) / (whole["left"] + whole["interval"]),
        "ratio_to_bash_operator": killed["retry"] / bare,
        "load": load(),
    }
    console.print(
        f"round {number}: retry {killed['retry']:.1f} s, ideal {ideal:.1f} s, BashOperator from zero {bare:.1f} s, "
        f"load {found['load']}"
    )
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few epochs")
    parser.add_argument("--epochs", type=int, help="of the training; 15, with --quick 5")
    parser.add_argument("--rounds", type=int, help="3, with --quick 1")
    options = parser.parse_args()
    epochs, rounds = options.epochs or (5 if options.quick else 15), options.rounds or (1 if options.quick else 3)
    report = Report("recovery", quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="rallypoint-benchmark-") as name:
        folder = Path(name)
        steps = calibrate(folder, seconds=2)
        found = [one_round(folder, number, steps, epochs) for number in range(1, rounds + 1)]
    ratio = median(one["ratio_to_ideal"] for one in found)
    report.row(
        "retry / (start-up + what was left + one interval)",
        spread(one["ratio_to_ideal"] for one in found),
        f"≤ {GOAL}",
        met=ratio <= GOAL,
    )
    report.row("the same without both start-ups", spread(one["ratio_without_start_ups"] for one in found))
    report.row("retry / BashOperator from zero", spread(one["ratio_to_bash_operator"] for one in found))
    report.row("retry, s", spread(one["killed"]["retry"] for one in found))
    report.row("of which start-up, s", spread(one["killed"]["retry_start_up"] for one in found))
    report.row("BashOperator from zero, s", spread(one["bash_operator_from_zero"] for one in found))
    report.row("uninterrupted stage, s", spread(one["uninterrupted"]["total"] for one in found))
    report.row("SIGKILL to the failure's report, s", spread(one["killed"]["until_failure_known"] for one in found))
    report.data("recovery", {"epochs": epochs, "steps_per_epoch": steps, "rounds": found})
    report.finish()


if __name__ == "__main__":
    main()
