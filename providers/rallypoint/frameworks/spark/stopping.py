"""Ends Spark in good order when this process is asked to end, so that the master forgets the application at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from rallypoint.worker import process

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 8.0  # seconds that Spark has to stop; what is left is killed by the launcher a little later


class Stopping:
    """What SIGTERM does: Spark is stopped from another thread, then the process ends by the signal, as it would have.

    Args:
        stop: Stops Spark. The main thread may be waiting for Spark meanwhile.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._thread: threading.Thread | None = None
        signal.signal(signal.SIGTERM, self._on_signal)

    def settle(self) -> None:
        """Return if nobody asked this process to end; otherwise wait for its end, which no error should come before."""
        if self._thread is not None:
            self._thread.join()

    def _on_signal(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
        self._thread = threading.Thread(target=self._end, name="rallypoint-stop", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        stopper = threading.Thread(target=self._stopped, name="rallypoint-stop-spark", daemon=True)
        stopper.start()
        stopper.join(PATIENCE)
        with suppress(OSError):
            process.writer().flush()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(PATIENCE)  # whoever joins this thread gets no further

    def _stopped(self) -> None:
        with suppress(Exception):  # Spark may be gone already, or fail as it is stopped
            self._stop()
