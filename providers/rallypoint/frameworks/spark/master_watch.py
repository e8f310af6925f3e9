"""Ends a driver whose standalone cluster has lost its master: Spark itself would wait for it for ever."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.cluster.addresses import answers
from rallypoint.worker import process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOOK = 2.0  # seconds between two looks


class MasterLostError(ConnectionError):
    """None of a standalone cluster's masters has answered for a while."""


class MasterWatch:
    """Looks from a thread whether a master answers.

    An application without one keeps the executors that it has, for as long as these live, and gets no new ones. A
    master that recovers, or another one that takes over, answers within the patience.

    Args:
        master: ``spark://host:port``, with several hosts where masters stand by.
        patience: Seconds without an answer after which it is lost. A master that has not answered yet is not.
        look_every: Seconds between two looks.
    """

    def __init__(self, master: str, *, patience: float, look_every: float = LOOK) -> None:
        self._addresses = master.removeprefix("spark://").split(",")
        self._patience = patience
        self._look_every = look_every
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to look; the process is ended when the master is lost."""
        threading.Thread(target=self._run, name="rallypoint-master", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def lost(self) -> bool:
        """Return True when no master has answered for as long as the patience, or False when this is closed."""
        seen = float("inf")
        while not self._over.wait(self._look_every):
            if any(answers(each) for each in self._addresses):
                seen = time.monotonic()
            elif time.monotonic() - seen >= self._patience:
                return not self._over.is_set()
        return False

    def _run(self) -> None:
        if self.lost():
            _end(self._addresses, self._patience)


def _end(addresses: Sequence[str], seconds: float) -> None:
    """Say what happened and end the process: its main thread may be waiting inside of Spark, and would not notice."""
    msg = (
        f"the Spark master {','.join(addresses)} has not answered for {seconds:g} s: the cluster is lost, or this host "
        "is cut off from it"
    )
    events = process.writer()
    events.write("failed", kind="process", **process.describe(MasterLostError(msg)))
    events.write("closed", kind="process", exit_code=1)
    events.flush()
    print(f"MasterLostError: {msg}", flush=True)  # noqa: T201 - the process's own log
    os._exit(1)


@contextmanager
def watched(settings: Mapping[str, Any]) -> Iterator[None]:
    """Watch the master of a job while its driver runs, if it has a standalone cluster's.

    Args:
        settings: Those of `SparkJob.settings`; the patience is their ``connect_timeout``.
    """
    if not str(settings.get("master") or "").startswith("spark://"):
        yield
        return
    watch = MasterWatch(settings["master"], patience=settings["connect_timeout"])
    watch.start()
    try:
        yield
    finally:
        watch.close()
