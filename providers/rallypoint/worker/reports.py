"""Joins reports that come faster than anybody looks, so that one in every batch of a training costs microseconds."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INTERVAL = 0.1  # seconds between two lines
_MAX_NAMES = 500  # metrics that wait in one line: with `_MAX_WORDS` and `_LARGEST` it stays below an event's limit
_MAX_WORDS = 100  # characters of a metric's name and text that wait
_LARGEST = 1e300  # a larger number is an integer of hundreds of digits


class Reports:
    """The progress and the metrics that have yet to be written.

    The first report is written at once. What follows within `INTERVAL` seconds is joined: of progress the last one
    counts, of every metric its last value. It is written when the interval is over, or before any other event. A
    report with a large value (a list, a long text) does not wait.

    Args:
        write: Appends an event of a kind with its fields.
        clock: Seconds, from any start.
        later: Calls a function after some seconds, in a thread of its own.
    """

    def __init__(
        self,
        write: Callable[[str, Mapping[str, Any]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        self._write = write
        self._clock = clock
        self._later = later or _start_timer
        self._due = clock()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Begin without anything; what waits in a process that forks is written there."""
        self._lock = threading.RLock()  # a signal's handler may report in the middle of a report
        self._waits = False
        self._timer_runs = False
        self._progress: Mapping[str, Any] = {}
        self._metrics: dict[str, Any] = {}

    def add(self, metrics: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Take in a report.

        Args:
            metrics: JSON values by name.
            progress: ``step``, ``total`` and ``unit``; empty if only metrics are reported.
        """
        with self._lock:
            if not _may_wait(metrics):
                self.flush()
                self._send(metrics, progress)
                return
            self._waits = True
            self._metrics.update(metrics)
            self._progress = progress or self._progress
            wait = self._due - self._clock()
            if wait <= 0 or len(self._metrics) > _MAX_NAMES:
                self.flush()
            elif not self._timer_runs:
                self._timer_runs = True
                self._later(wait, self._on_time)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            if not self._waits:
                return
            metrics, progress = self._metrics, self._progress
            self._waits, self._metrics, self._progress = False, {}, {}
            try:
                self._send(metrics, progress)
            except OSError:
                self._waits, self._metrics, self._progress = True, metrics | self._metrics, self._progress or progress
                raise

    def _send(self, metrics: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        self._write("progress" if progress else "metrics", {**progress, "metrics": dict(metrics)})
        self._due = self._clock() + INTERVAL

    def _on_time(self) -> None:
        with self._lock:
            self._timer_runs = False
            with suppress(OSError):  # it still waits, and the next call that writes says what is wrong
                self.flush()


def _may_wait(metrics: Mapping[str, Any]) -> bool:
    for name, value in metrics.items():
        if isinstance(value, str):
            small = len(name) + len(value) <= _MAX_WORDS
        elif isinstance(value, int | float):
            small = len(name) <= _MAX_WORDS and -_LARGEST < value < _LARGEST
        else:
            small = len(name) <= _MAX_WORDS and value is None
        if not small:
            return False
    return len(metrics) <= _MAX_NAMES


def _start_timer(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    with suppress(RuntimeError):  # no thread starts in an interpreter that ends; its last flush is yet to come
        timer.start()
