"""Inside the job: a process of a framework that leaves nothing behind. Standard library only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.worker import context, reaper

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

LOOK = 0.25  # seconds between two looks at a daemon
STOP_SECONDS = 8.0  # until a daemon that was asked to end is killed; the frameworks' own patience is shorter
_LAST_LINES = 20
# What the processes of a job on this cluster would take for their own stage. The marks by which an attempt's processes
# are found again stay.
_STAGES_OWN = (context.STAGE_FILE, context.EVENTS_URI, context.PROCESS, context.LOGS_DIR, context.LEASE_URI)


class DaemonStartError(RuntimeError):
    """A process of a cluster did not start or did not join."""


class DaemonLostError(RuntimeError):
    """A process of a cluster has ended although nobody asked it to."""


class Daemon:
    """A process below a `rallypoint.worker.reaper`: nothing of it outlives this process, however it ends.

    Args:
        argv: Its command line.
        log: The name of its log. It lies beside this process's own: what a daemon tells a person (run ``ray stop``)
            does not fit there.
        env: Variables that it gets beside this process's own.
        without: Variables of this process that it does not get.
        called: What messages call it.
        stop_seconds: How long it may take to end when it is asked to.
    """

    def __init__(  # noqa: PLR0913 - each names one thing that differs between the frameworks
        self,
        argv: Sequence[str],
        *,
        log: str,
        env: Mapping[str, str],
        without: Sequence[str] = (),
        called: str = "it",
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self.called = called
        self._stop_seconds = stop_seconds
        inherited = {name: value for name, value in os.environ.items() if name not in {*_STAGES_OWN, *without}}
        self._log = Path(os.environ.get(context.LOGS_DIR, "."), f"{log}.log")
        file = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._process = subprocess.Popen(
            reaper.command(list(argv)), env={**inherited, **env}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        os.close(file)

    def last_lines(self) -> str:
        """Return the end of what it printed."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])

    def ended(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, stop: threading.Event) -> int | None:
        """Wait until it has ended, and return its exit code; None if `stop` was set before."""
        while not stop.wait(LOOK):
            if (code := self._process.poll()) is not None:
                return code
        return None

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self._process.terminate()
        try:
            self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self._process.send_signal(reaper.KILL)
            self._process.wait()
