"""For how long the processes of a run have done nothing that can be seen."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext


class Silence:
    """Tells when a run has been silent for too long.

    Args:
        run_dir: The run folder.
        events_dir: The folder of its processes' events; None if they go to a bucket.
        limit: Seconds that are too long; None if nothing is.
    """

    def __init__(self, run_dir: str, events_dir: str | None, limit: float | None) -> None:
        self._run_dir = run_dir
        self._events_dir = events_dir
        self._limit = limit
        self._next = 0.0

    def too_long(self) -> float | None:
        """Return for how many seconds it has been silent if that is too long; its supervisor has started."""
        if self._limit is None or time.monotonic() < self._next:
            return None
        silent = silent_for(self._run_dir, self._events_dir)
        # Sooner it cannot be too long, and a gang of a thousand nodes has thousands of files to look at. The time of a
        # file may lie ahead, as what starts up slowly asks for, and be put back by the next event.
        self._next = time.monotonic() + min(self._limit, self._limit - silent)
        return silent if silent >= self._limit else None


def silent_for(run_dir: str, events_dir: str | None) -> float:
    """Return for how many seconds the processes of a run have neither written a line nor reported an event.

    Args:
        run_dir: The run folder; its supervisor has started.
        events_dir: The folder of their events; None if they go to a bucket.
    """
    newest = os.stat(os.path.join(run_dir, "started.json")).st_mtime
    for folder in (os.path.join(run_dir, "logs"), events_dir):
        try:
            with os.scandir(folder) if folder else nullcontext(()) as entries:
                newest = max([newest, *(entry.stat().st_mtime for entry in entries)])
        except FileNotFoundError:
            continue
    return time.time() - newest
