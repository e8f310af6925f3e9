"""The demo: a private Airflow runs a DAG, its progress is shown live, and everything is stopped at the end.

`make demo` calls it. Its exit code is 0 only if the DAG run succeeded.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from airflow_api import FINISHED_RUN, AirflowApi, AirflowApiError, DagRun, TaskInstance
from airflow_instance import AirflowInstance, AirflowInstanceError
from airflow_processes import running_url, stop_home
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store
from rallypoint.worker.ports import free_ports

REPOSITORY = Path(__file__).resolve().parent.parent
METRICS_TASKS = ("evaluate", "compare")
ANSWER_TASK = "smoke"
_POLL_SECONDS = 0.5
_LOG_TAIL_LINES = 40
_STATE_STYLES = {
    "success": "green",
    "failed": "bold red",
    "upstream_failed": "red",
    "up_for_retry": "yellow",
    "running": "cyan",
    "deferred": "magenta",
    "queued": "blue",
}


def stage_progress(store: Path, dag_id: str, run_id: str, task_id: str) -> str | None:
    """Return how far the stage of a task is, as its job reported it: "epoch 3/10 loss=0.41".

    Args:
        store: The folder of Rallypoint's store.
        dag_id: The DAG.
        run_id: The run.
        task_id: The task.

    Returns:
        The progress, None if the task is no stage or its job has not reported any.
    """

    async def read() -> str | None:
        engine = Engine(Store.open(store), StageKey((dag_id, run_id, task_id)))
        numbers = await engine.ledger.numbers()
        return (await engine.inspect(numbers[-1])).view.progress_line or None if numbers else None

    return asyncio.run(read())


class Board:
    """What the terminal shows of a run: one row for each task.

    Args:
        api: The Airflow that runs it.
        store: The folder of Rallypoint's store.
        dag_id: The DAG.
        run_id: The run.
    """

    def __init__(self, api: AirflowApi, store: Path, dag_id: str, run_id: str) -> None:
        self._api = api
        self._store = store
        self.dag_id = dag_id
        self.run_id = run_id
        self._order = {task_id: place for place, task_id in enumerate(api.task_ids(dag_id))}
        self._tasks: list[TaskInstance] = []
        self._progress: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        self._start = time.monotonic()

    def refresh(self) -> DagRun:
        """Read the state of the run and of its tasks, and keep it the only one; return the run."""
        self._api.end_other_runs(self.dag_id, self.run_id)
        run = self._api.dag_run(self.dag_id, self.run_id)  # before the tasks, so that an ended run's tasks are final
        tasks = self._api.task_instances(self.dag_id, self.run_id)
        self._tasks = sorted(tasks, key=lambda task: (self._order.get(task.task_id, len(self._order)), task.map_index))
        for task in self._tasks:
            progress = stage_progress(self._store, self.dag_id, self.run_id, task.task_id)
            if progress is not None:
                self._progress[task.label] = progress
        return run

    def table(self) -> Table:
        """Return the rows as a table for the terminal."""
        table = Table(title=f"{self.dag_id} · {self.run_id}", title_justify="left")
        for column in ("task", "state", "try"):
            table.add_column(column)
        table.add_column("progress", min_width=32)
        table.add_column("time", justify="right")
        for task in self._tasks:
            state = task.state or "waiting"
            table.add_row(
                escape(task.label),
                f"[{_STATE_STYLES.get(state, 'dim')}]{state}[/]",
                str(task.try_number or ""),
                escape(self._progress.get(task.label, "")),
                _seconds(task),
            )
        return table

    def changes(self) -> Iterator[str]:
        """Return a line for each task that changed since the last call, for output that is no terminal."""
        for task in self._tasks:
            parts = [task.state, f"try {task.try_number}" if task.try_number else None, self._progress.get(task.label)]
            text = ", ".join(part for part in parts if part)
            if self._shown.get(task.label, "") != text:
                self._shown[task.label] = text
                yield f"{time.monotonic() - self._start:6.1f} s  {task.label}: {text}"

    def failed(self) -> list[TaskInstance]:
        """Return the tasks that failed."""
        return [task for task in self._tasks if task.state == "failed"]


def follow(board: Board, console: Console, *, timeout: float) -> DagRun:
    """Show a run until it has ended.

    Args:
        board: What to show.
        console: Where to show it: a live table on a terminal, else a line per change.
        timeout: Seconds until the run has to end.

    Returns:
        The run, in its last state.

    Raises:
        AirflowApiError: If the run has not ended in time.
    """
    deadline = time.monotonic() + timeout
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    state = "unknown"
    with live or nullcontext():
        while True:
            with suppress(httpx.TransportError):  # on a busy machine an answer may come too late: the next one counts
                run = board.refresh()
                state = run.state
                if live:
                    live.update(board.table(), refresh=True)
                else:
                    for line in board.changes():
                        print(line, flush=True)
                if run.state in FINISHED_RUN:
                    return run
            if time.monotonic() > deadline:
                raise AirflowApiError(
                    f"run {board.run_id} of DAG {board.dag_id} is {state} after {timeout:.0f} s, expected its end: "
                    "look at its tasks' logs, or give it more with --timeout"
                )
            time.sleep(_POLL_SECONDS)


def metrics_table(value: object) -> Table | None:
    """Return the model's metrics beside the baseline's, None if the value holds no such metrics.

    Args:
        value: What a task of `METRICS_TASKS` returned: `{"model": {"roc_auc": 0.69}, "baseline": {"roc_auc": 0.66}}`;
            of several models `{"models": {"gbt": {"roc_auc": 0.69}, …}, "baseline": …}`.
    """
    if not isinstance(value, Mapping):
        return None
    models = value.get("models", {"model": value.get("model")})
    found = {**models, "baseline": value.get("baseline")} if isinstance(models, Mapping) else {}
    columns = {name: metrics for name, metrics in found.items() if isinstance(metrics, Mapping)}
    if not columns.keys() - {"baseline"}:
        return None
    table = Table(title="Metrics", title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(metric for metrics in columns.values() for metric in metrics):
        table.add_row(str(metric), *(_number(metrics.get(metric)) for metrics in columns.values()))
    return table


def _metrics(api: AirflowApi, run: DagRun, task_id: str) -> Table | None:
    try:
        return metrics_table(api.xcom(run.dag_id, run.run_id, task_id))
    except AirflowApiError:  # the DAG has no such task
        return None


def show_answer(value: object, console: Console) -> None:
    """Print one request to the served model and its answer, if a task has returned one.

    Args:
        value: What the task `smoke` returned.
        console: Where to print it.
    """
    if not isinstance(value, Mapping) or "example" not in value:
        return
    example = value["example"]
    console.print(f"the served model answered {value['rows']} test flights as the evaluated one does, such as")
    console.print_json(data=example["request"], indent=None)
    console.print_json(data=example["answer"], indent=None)


def report(api: AirflowApi, board: Board, run: DagRun, console: Console) -> None:
    """Print what a run has achieved, or why it failed."""
    if run.state == "success":
        tables = [_metrics(api, run, task) for task in METRICS_TASKS]
        console.print(next(filter(None, tables), f"no task of {', '.join(METRICS_TASKS)} left metrics"))
        with suppress(AirflowApiError):
            show_answer(api.xcom(run.dag_id, run.run_id, ANSWER_TASK), console)
        return
    for task in board.failed():
        text = api.log(run.dag_id, run.run_id, task.task_id, task.try_number, map_index=task.map_index)
        tail = "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])
        console.print(f"\n--- log of {task.label}, try {task.try_number}", style="bold")
        console.print(tail, markup=False, highlight=False, soft_wrap=True)


def run_demo(options: argparse.Namespace, console: Console) -> int:
    """Run the DAG in a private Airflow and return the exit code."""
    home: Path = options.home
    console.print(f"starting Airflow in {os.path.relpath(home)} (its logs: {os.path.relpath(home / 'processes')})")
    start = time.monotonic()
    with AirflowInstance(home, options.dags) as airflow, AirflowApi(airflow.url) as api:
        console.print(f"Airflow is up at {airflow.url} after {time.monotonic() - start:.0f} s")
        api.wait_until_parsed(options.dag, timeout=options.timeout)
        run_id = api.trigger(options.dag, {**_ports(options.dag), **options.conf})
        api.unpause(options.dag)
        page = api.run_page(options.dag, run_id)
        console.print(f"run page: {page}", soft_wrap=True)
        board = Board(api, home / "rallypoint", options.dag, run_id)
        run = follow(board, console, timeout=options.timeout)
        report(api, board, run, console)
        style = "green" if run.state == "success" else "bold red"
        console.print(f"DAG {run.dag_id}: [{style}]{run.state}[/] in {run.duration or 0:.0f} s")
        if options.keep:
            airflow.detach()
            console.print(f"Airflow stays up: {page}\nstop it with `make demo-stop`", soft_wrap=True)
        else:
            console.print(f"run page: {page} (ends now; `make demo KEEP=1` keeps Airflow up)", soft_wrap=True)
    return 0 if run.state == "success" else 1


def stop_demo(home: Path, console: Console) -> int:
    """Stop the Airflow that a demo left up and return the exit code."""
    url = running_url(home)
    stop_home(home)
    console.print(f"stopped the Airflow at {url}" if url else "no Airflow of the demo runs")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    if options.stop:
        return stop_demo(options.home, console)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    try:
        return run_demo(options, console)
    except KeyboardInterrupt:
        console.print("stopped by Ctrl-C: nothing of the demo runs any more")
        return 128 + signal.SIGINT
    except httpx.TransportError as error:
        console.print(
            f"the demo failed: the private Airflow did not answer ({error}), expected an answer in time: its logs are "
            f"in {os.path.relpath(options.home / 'processes')}; run it again when this machine has less to do",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 1
    except (AirflowApiError, AirflowInstanceError, BlockingIOError) as error:
        console.print(f"the demo failed: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run a DAG in a private Airflow and show its progress.")
    parser.add_argument("--dag", default="flights", help="the DAG to run (default: %(default)s)")
    parser.add_argument("--conf", type=json_object, default={}, help="the run's conf, a JSON object")
    parser.add_argument("--dags", type=Path, default=REPOSITORY / "dags", help="the folder of DAG files")
    parser.add_argument("--home", type=Path, default=REPOSITORY / ".demo" / "airflow", help="the Airflow home")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds until the run has to end")
    parser.add_argument(
        "--keep",
        action="store_true",
        default=os.environ.get("KEEP", "") not in {"", "0"},
        help="leave Airflow up at the end; the same as KEEP=1",
    )
    parser.add_argument("--stop", action="store_true", help="stop the Airflow that --keep left up, run nothing")
    return parser


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object of a command line's argument."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, which is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'got {text!r}, expected a JSON object such as {{"epochs": 3}}')
    return value


def _seconds(task: TaskInstance) -> str:
    if task.duration is not None:
        return f"{task.duration:.1f} s"
    if task.start_date is None:
        return ""
    return f"{(datetime.now(UTC) - datetime.fromisoformat(task.start_date)).total_seconds():.1f} s"


def _ports(dag_id: str) -> dict[str, int]:
    """Return what of a run's conf is a free port of this machine."""
    return {"serve_port": free_ports(1)[0]} if dag_id == "flights" else {}


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
