"""What the benchmarks share: where they work, how they time a stage and a bare torchrun, how they report."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from rallypoint import Script, TorchElastic
from rallypoint.launchers.local import LocalLauncher
from rallypoint.stages.attempt import Request, Started
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rallypoint.spec.job import Job
    from rallypoint.stages.outcome import Outcome

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TRAIN = HERE / "scripts" / "train.py"
RANKS = 2
POLL_INTERVAL = timedelta(seconds=1)  # an operator's default

console = Console(width=120)
T = TypeVar("T")


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return the median with the extremes, as text."""
    ordered = sorted(values)
    return f"{median(ordered):.{digits}f} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f})"


def load() -> float:
    """Return how many processes wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2)


def wait_for_quiet(share: float = 15.0, *, seconds: float = 12) -> None:
    """Wait until other processes leave the cores alone, or for as long as that may take.

    Args:
        share: Per cent of all cores that others may use.
        seconds: The longest wait.
    """
    deadline = time.monotonic() + seconds
    while psutil.cpu_percent(interval=2) > share and time.monotonic() < deadline:
        pass


class Report:
    """The figures of one benchmark: a table for people, a JSON file for the rest.

    Args:
        name: The benchmark's name, which names the file.
        quick: Whether this is the short version, whose figures say little; they go to a file of their own.
    """

    def __init__(self, name: str, *, quick: bool) -> None:
        self._path = RESULTS / f"{name}{'-quick' if quick else ''}.json"
        self._rows: list[tuple[str, str, str, str]] = []
        self._data: dict[str, Any] = {}
        self._loads = [load()]
        self._began = datetime.now(UTC)

    def row(self, what: str, measured: str, goal: str = "", *, met: bool | None = None) -> None:
        """Add a line to the table."""
        verdict = "" if met is None else "met" if met else "missed"
        self._rows.append((what, measured, goal, verdict))

    def data(self, name: str, values: Mapping[str, Any]) -> None:
        """Add to the JSON file."""
        self._loads.append(load())
        self._data[name] = dict(values)

    def finish(self) -> None:
        """Print the table and write the file; figures of other measurements in the file are kept."""
        self._loads.append(load())
        table = Table(title=f"{self._path.stem}, {os.cpu_count()} cores, load {min(self._loads)} to {max(self._loads)}")
        for column in ("what", "measured", "goal", ""):
            table.add_column(column)
        for row in self._rows:
            table.add_row(*row)
        console.print(table)
        machine = {
            "when": self._began.isoformat(timespec="seconds"),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": self._loads,
        }
        before = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        RESULTS.mkdir(exist_ok=True)
        data = before | {name: {"machine": machine, **values} for name, values in self._data.items()}
        self._path.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
        console.print(f"written to {self._path}")


# The same training as a stage and under bare torchrun ----------------------------------------------------------------


# What a stage sets as well: without them torchrun prints a warning, and gloo looks for an interface.
TORCHRUN_ENV = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def torchrun(args: Sequence[str], *, ranks: int = RANKS, options: Sequence[str] = ("--standalone",)) -> list[str]:
    """Return the command of `scripts/train.py` under bare torchrun.

    Args:
        args: The script's arguments.
        ranks: How many ranks the agent starts.
        options: Further options of torchrun.
    """
    agent = [sys.executable, "-m", "torch.distributed.run", *options, f"--nproc-per-node={ranks}"]
    return [*agent, str(TRAIN), *args]


def run_torchrun(args: Sequence[str]) -> float:
    """Run `scripts/train.py` under bare torchrun to its end, and return the seconds that it took.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    env = os.environ | TORCHRUN_ENV
    began = time.monotonic()
    subprocess.run(torchrun(args), check=True, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    return time.monotonic() - began


def run_bash_operator(args: Sequence[str]) -> float:
    """Run `scripts/train.py` in a `BashOperator` around torchrun, and return the seconds that its `execute` took."""
    from airflow.providers.standard.operators.bash import BashOperator  # noqa: PLC0415 - slow, and needed here only

    train = BashOperator(
        task_id="train",
        bash_command=shlex.join(torchrun(args)),
        env=TORCHRUN_ENV,
        append_env=True,
        output_processor=str,
    )
    began = time.monotonic()
    train.execute({})
    return time.monotonic() - began


def training(args: Sequence[str], *, ranks: int = RANKS, **options: Any) -> TorchElastic:
    """Return the job of `scripts/train.py`.

    Args:
        args: The script's arguments.
        ranks: How many ranks each agent starts.
        options: Further options of the job.
    """
    return TorchElastic(Script(str(TRAIN), list(args)), nproc_per_node=ranks, **options)


def engine(folder: Path, name: str) -> Engine:
    """Return the engine of a stage whose store and launcher are in a folder."""
    return Engine(Store.open(folder / "store"), StageKey(("benchmark", name)), LocalLauncher(folder / "runs"))


async def finish(stage: Engine, started: Started) -> Outcome:
    """Watch an attempt until it has ended, as an operator does."""
    outcome = started.attempt.outcome
    async for update in stage.watch(started.attempt, interval=POLL_INTERVAL):
        outcome = update.outcome or outcome
    if outcome is None:
        raise RuntimeError(f"{started.attempt.record.id} has ended without an outcome")
    return outcome


async def succeed(stage: Engine, job: Job, what: str = "the stage", *, owner: str = "try-1") -> None:
    """Run a stage to its end, as an operator does.

    Raises:
        RuntimeError: It did not succeed.
    """
    outcome = await finish(stage, await stage.start(job, Request(owner=owner)))
    if outcome.state is not State.SUCCEEDED:
        raise RuntimeError(f"{what} {outcome.state}: {outcome.failure}")


def calibrate(folder: Path, seconds: float) -> int:
    """Return how many steps of `scripts/train.py` take that long on this machine, as busy as it is now."""
    steps, record = 400, folder / "calibration.jsonl"
    run_torchrun(["--plain", "--epochs", "3", "--steps", str(steps), "--record", str(record)])
    times = epoch_times(record)
    return max(1, round(steps * seconds / (times[-1] - times[1])))  # the first epoch is slower


def epoch_times(record: Path) -> list[float]:
    """Return when the epochs of one run began and ended: the begin of the first, and the end of each."""
    return [json.loads(line)["t"] for line in record.read_text(encoding="utf-8").splitlines()]


# The same script as a stage and under a framework's own command -------------------------------------------------------


class TimedScript:
    """A script that writes when it ran into the file that is its only argument.

    Args:
        folder: Where it and its answers are.
        code: The script.
    """

    def __init__(self, folder: Path, code: str) -> None:
        self._folder = folder
        self._path = folder / "job.py"
        self._path.write_text(code, encoding="utf-8")

    def words(self, name: str) -> list[str]:
        """Return the script and its argument for a run of a name."""
        return [str(self._path), str(self._answer(name))]

    def entry(self, name: str) -> Script:
        """Return the same as a stage's entry."""
        path, *args = self.words(name)
        return Script(path, args)

    def time(self, name: str, run: Callable[[], object]) -> tuple[float, float]:
        """Run it; return the seconds until it wrote, and until the end."""
        began = time.time()
        run()
        return float(self._answer(name).read_text(encoding="utf-8")) - began, time.time() - began

    def _answer(self, name: str) -> Path:
        return self._folder / f"{name}.txt"


def by_turns(
    ways: Mapping[str, Callable[[str], tuple[float, float]]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return what the ways of doing the same took in each round; which one begins changes from round to round.

    Args:
        ways: Each takes the name of a run.
        rounds: How many; one more before them does not count.
    """
    for number, way in enumerate(ways.values()):
        way(f"warm-{number}")
    wait_for_quiet()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        numbered = list(enumerate(ways.items()))
        for kind, (name, way) in numbered if number % 2 == 0 else numbered[::-1]:
            times[name].append(way(f"round-{number}-{kind}"))
        console.print(f"round {number + 1} of {rounds}: {[f'{found[-1][1]:.2f} s' for found in times.values()]}")
    return times


def wait_for(condition: Callable[[], T | None], what: str, *, seconds: float = 300) -> T:
    """Wait until a condition returns something, and return that.

    Raises:
        TimeoutError: At the deadline.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)
    return value
