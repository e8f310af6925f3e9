"""Reports how far a Spark application is: tasks and stages from the driver's REST API, links, and the application's id.

The tasks are the stage's progress as long as the user's code reports none itself.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import quote, urlsplit

from rallypoint.worker import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

UI = "Spark UI"
HISTORY = "Spark history"
INTERVAL = 1.0  # seconds between two looks
_COST = 4  # times as long as a look took is the time to the next one,
_LONGEST = 10.0  # but at most so many seconds: the first look waits until the API is loaded
_TIMEOUT = 5.0  # seconds
_LOOPBACK = "127.0.0.1"
# No proxy of the environment stands between a process and itself.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Application:
    """A running application.

    Args:
        id: Its id, as the cluster knows it.
        ui: The address of its UI, which has the REST API too; None if it has none.
    """

    id: str
    ui: str | None


@dataclass(frozen=True)
class Counts:
    """What an application has done so far.

    Args:
        done: Tasks that were completed.
        total: Tasks of the jobs so far, without those that were skipped.
        failed: Attempts of tasks that failed.
        stages: Stages that were completed.
        executors: Executors that are alive, without the driver.
    """

    done: int
    total: int
    failed: int
    stages: int
    executors: int

    def metrics(self) -> dict[str, int]:
        """Return them as metrics by name."""
        named = {"spark_stages": self.stages, "spark_executors": self.executors, "spark_failed_tasks": self.failed}
        return {name: number for name, number in named.items() if number}


class Progress:
    """Watches one application from a thread.

    Args:
        find: Returns the application once it is there.
        history: The address of a history server; None for no link.
        found: Called once with the application.
    """

    def __init__(
        self,
        find: Callable[[], Application | None],
        *,
        history: str | None = None,
        found: Callable[[], None] = lambda: None,
    ) -> None:
        self._find = find
        self._history = history
        self._found = found
        self._application: Application | None = None
        self._last: Counts | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rallypoint-spark-progress", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Look a last time and end; called while the application is still there."""
        self._ended.set()
        self._thread.join(2 * _TIMEOUT)
        with suppress(Exception):  # what is only shown must not fail the job
            self._look()

    def _run(self) -> None:
        pause = INTERVAL
        while not self._ended.wait(pause):
            begin = time.monotonic()
            with suppress(Exception):  # the next look finds it, or nothing is shown
                self._look()
            pause = min(_LONGEST, max(INTERVAL, _COST * (time.monotonic() - begin)))

    def _look(self) -> None:
        if self._application is None:
            self._application = self._find()
            if self._application is not None:
                announce(self._application, self._history)
                self._found()
        if self._application is not None and self._application.ui is not None:
            self._report(read(self._application))

    def _report(self, counts: Counts) -> None:
        if counts != self._last:
            self._last = counts
            report(counts.done, counts.total, counts.metrics())


def announce(application: Application, history: str | None) -> None:
    """Say which application it is, and where to look at it.

    Args:
        application: The application.
        history: The address of a history server; None for no link.
    """
    events = process.writer()
    events.write("metrics", metrics={"spark_application": application.id})
    if application.ui:
        events.write("link", name=UI, url=application.ui)
    if history:
        events.write("link", name=HISTORY, url=f"{history.rstrip('/')}/history/{quote(application.id)}/")
    print(f"Spark application {application.id}" + (f", {UI}: {application.ui}" if application.ui else ""), flush=True)  # noqa: T201 - the log says it


def report(done: int, total: int, metrics: Mapping[str, int]) -> None:
    """Report tasks as the stage's progress, unless the user's code reports its own.

    Args:
        done: How many are completed.
        total: How many there are so far.
        metrics: Further numbers by name.
    """
    events = process.writer()
    if total and not events.has_progress:
        events.write("progress", step=done, total=total, unit="task", metrics=dict(metrics))
    elif metrics:
        events.write("metrics", metrics=dict(metrics))


def read(application: Application) -> Counts:
    """Ask an application's REST API for its counts.

    Raises:
        OSError: It does not answer.
        ValueError: It answers something else.
    """
    base = f"{application.ui}/api/v1/applications/{quote(application.id)}"
    jobs, executors = _get(f"{base}/jobs"), _get(f"{base}/executors")
    return count(jobs, executors)


def count(jobs: Iterable[Mapping[str, Any]], executors: Iterable[Mapping[str, Any]]) -> Counts:
    """Return the counts of the REST API's lists of jobs and of executors."""
    listed = list(jobs)
    total = sum(_number(job, "numTasks") - _number(job, "numSkippedTasks") for job in listed)
    # A task that ran twice is completed once.
    done = sum(_number(job, "numCompletedIndices", "numCompletedTasks") for job in listed)
    return Counts(
        done=min(done, total),
        total=total,
        failed=sum(_number(job, "numFailedTasks") for job in listed),
        stages=sum(_number(job, "numCompletedStages") for job in listed),
        executors=sum(1 for each in executors if each.get("id") != "driver" and each.get("isActive", True)),
    )


def only_application(port: int) -> Application | None:
    """Return the application whose UI is at a port of this host; None if there is none yet.

    Args:
        port: The port that the application was told to use.
    """
    ui = f"http://{_LOOPBACK}:{port}"
    try:
        listed = _get(f"{ui}/api/v1/applications")
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return Application(str(listed[0]["id"]), ui) if listed else None


class ConnectProgress:
    """Progress of the queries of a Spark Connect session, which its client reports."""

    def __init__(self) -> None:
        self._operations: dict[str, tuple[int, int, int]] = {}

    def __call__(self, stages: Iterable[Any] | None, inflight_tasks: int, operation_id: str | None, done: bool) -> None:  # noqa: ARG002, FBT001 - Spark calls it so
        """Take in what is known of one query."""
        listed = list(stages or ())
        if not listed or operation_id is None:
            return
        counts = (
            sum(stage.num_completed_tasks for stage in listed),
            sum(stage.num_tasks for stage in listed),
            sum(1 for stage in listed if stage.done),
        )
        if self._operations.get(operation_id) != counts:
            self._operations[operation_id] = counts
            tasks, total, complete = (sum(each[at] for each in self._operations.values()) for at in range(3))
            report(tasks, total, {"spark_stages": complete} if complete else {})


def _get(url: str) -> list[dict[str, Any]]:
    """Return a list that the REST API answers with, from this host's own interface if its name does not resolve."""
    try:
        with _OPENER.open(url, timeout=_TIMEOUT) as answer:
            value = json.load(answer)
    except URLError as error:
        parts = urlsplit(url)
        if parts.hostname == _LOOPBACK or isinstance(error, urllib.request.HTTPError):
            raise
        return _get(parts._replace(netloc=f"{_LOOPBACK}:{parts.port or 80}").geturl())
    if not isinstance(value, list):
        msg = f"{url} answered {str(value)[:200]}, expected a list"
        raise ValueError(msg)  # noqa: TRY004 - a wrong answer, not a wrong argument
    return value


def _number(values: Mapping[str, Any], *names: str) -> int:
    return next((values[name] for name in names if isinstance(values.get(name), int)), 0)
