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
from rallypoint.stages.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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


async def start(stage: Engine, args: Sequence[str], owner: str = "try-1") -> Started:
    """Start a stage of `scripts/train.py`, as an operator does."""
    return await stage.start(training(args), Request(owner=owner))


async def finish(stage: Engine, started: Started) -> Outcome:
    """Watch an attempt until it has ended, as an operator does."""
    outcome = started.attempt.outcome
    async for update in stage.watch(started.attempt, interval=POLL_INTERVAL):
        outcome = update.outcome or outcome
    if outcome is None:
        raise RuntimeError(f"{started.attempt.record.id} has ended without an outcome")
    return outcome


def calibrate(folder: Path, seconds: float) -> int:
    """Return how many steps of `scripts/train.py` take that long on this machine, as busy as it is now."""
    steps, record = 400, folder / "calibration.jsonl"
    run_torchrun(["--plain", "--epochs", "3", "--steps", str(steps), "--record", str(record)])
    times = epoch_times(record)
    return max(1, round(steps * seconds / (times[-1] - times[1])))  # the first epoch is slower


def epoch_times(record: Path) -> list[float]:
    """Return when the epochs of one run began and ended: the begin of the first, and the end of each."""
    return [json.loads(line)["t"] for line in record.read_text(encoding="utf-8").splitlines()]


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
