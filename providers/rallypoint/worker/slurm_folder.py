"""What lies in the folder of an attempt that Slurm runs; all its nodes share it.

Each *run* of the job (it may go back into the queue) has a folder of its own in the attempt's:

``job.json``             the job that the attempt is: of two that were submitted one runs, and the other ends at once
``i<run>/run.json``      its nodes
``i<run>/nodes/<n>/``    the record of a node of the job, as the supervisor keeps it
``i<run>/nodes/<n>.<k>`` likewise, of one that joined the run later, and of its k-th start
``i<run>/over.json``     nothing starts in this run any more
``end.json``             the last word: no further run follows
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import Any

from rallypoint.worker import context, hostprocs
from rallypoint.worker.supervisor import read_json, write_json

JOB, END, RUN, OVER, CANCEL, MEETING = "job.json", "end.json", "run.json", "over.json", "cancel.json", "meeting.json"
SETTINGS = "slurm.json"  # what the launcher tells the job
PLACEMENTS = "placements.json"  # the processes of every node
SHAPE = "shape.json"  # what the loss of a node means
TIME_LIMIT, FOLLOWED, COMPLETED, TERMINATED = "time limit", "followed", "completed", "terminated"
HOST_LOST = "host lost"
TICK = 0.5  # seconds
STALE = 45.0  # seconds without a heartbeat after which a supervisor counts as gone
_RECORD = re.compile(r"(\d{1,6})(?:\.(\d{1,6}))?")


def run_folder(folder: str, number: int) -> str:
    """Return the folder of one run of the job."""
    return os.path.join(folder, f"i{number}")


def node_folder(run: str, node: int, start: int = 0) -> str:
    """Return the folder of a node's record in a run.

    Args:
        run: The run's folder.
        node: The node's number.
        start: 0 for a node of the job itself; from 1 for one that joined it, which may start more than once.
    """
    return os.path.join(run, "nodes", f"{node}.{start}" if start else str(node))


def records(run: str) -> dict[int, list[str]]:
    """Return the folders of the records of a run, by the number of their node, the newest last."""
    found: dict[int, list[tuple[int, str]]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(os.path.join(run, "nodes")):
            if match := _RECORD.fullmatch(name):
                node, start = int(match[1]), int(match[2] or 0)
                found.setdefault(node, []).append((start, node_folder(run, node, start)))
    return {node: [path for _, path in sorted(starts)] for node, starts in sorted(found.items())}


def has_begun(record: str) -> bool:
    """Return whether a supervisor has started there."""
    return os.path.exists(os.path.join(record, "started.json"))


def reason_of(record: str) -> str | None:
    """Return how a node ended; None if it left no last word."""
    final = read_json(os.path.join(record, "final.json"))
    return None if final is None else str(final.get("reason"))


def ask_end(record: str, request: dict[str, Any]) -> None:
    """Ask a supervisor to end its processes, or forbid its start; the first request counts."""
    with contextlib.suppress(FileExistsError):
        write_json(os.path.join(record, CANCEL), {"v": 1, "t": time.time(), "message": "", **request}, exclusive=True)


def may_live(record: str) -> bool:
    """Return whether a supervisor may be running: it started, said no last word, and is not known to be gone."""
    started = read_json(os.path.join(record, "started.json"))
    if started is None or os.path.exists(os.path.join(record, "final.json")):
        return False
    if started.get("host") == context.host() and started.get("boot_id") == hostprocs.boot_id():
        return hostprocs.start_time(int(started["pid"])) == started.get("start_time")
    return True


def end_all(found: list[str]) -> None:
    """Ask supervisors to end, and wait until they have, or have been silent for too long."""
    pulses = {record: Pulse(record) for record in found}
    while pulses := {path: pulse for path, pulse in pulses.items() if may_live(path) and pulse.silent < STALE}:
        for record in pulses:
            ask_end(record, {"reason": FOLLOWED, "grace": 5.0})
        time.sleep(TICK)


class Pulse:
    """For how long a supervisor has been silent, by the clock of who looks: those of two hosts may differ.

    Args:
        record: Its folder.
    """

    def __init__(self, record: str) -> None:
        self._path = os.path.join(record, "heartbeat.json")
        self._seen, self._since = self._beat(), time.monotonic()
        self.beats = 0  # how many were seen

    @property
    def silent(self) -> float:
        """Seconds since its last sign of life, or since the first look."""
        beat = self._beat()
        if beat != self._seen:
            self._seen, self._since, self.beats = beat, time.monotonic(), self.beats + 1
        return time.monotonic() - self._since

    def _beat(self) -> object:
        return (read_json(self._path) or {}).get("t")


def say(text: str) -> None:
    """Write a line into the job's own log."""
    print(f"rallypoint: {text}", flush=True)  # noqa: T201
