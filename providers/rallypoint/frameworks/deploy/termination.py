"""SIGTERM as an exception in the main thread, but never in the middle of a write to the cluster."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class TerminatedError(BaseException):
    """This process was asked to end: the stage is cancelled, or its host shuts down."""


class Termination:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False
        self._shields = 0

    def install(self) -> None:
        """Answer SIGTERM by a `TerminatedError`, once."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def shield(self, *, quietly: bool = False) -> Iterator[None]:
        """Hold the exception back until the block is done; a request that was sent has an answer to wait for.

        Args:
            quietly: Whether it is not raised after the block either; `asked` tells.

        Raises:
            TerminatedError: The signal came in the block, which is done.
        """
        before = self.asked
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self.asked and not before and not self._shields and not quietly:
            raise self._error()

    def _on_signal(self, *_: Any) -> None:
        again, self.asked = self.asked, True
        if not again and not self._shields:
            raise self._error()

    @staticmethod
    def _error() -> TerminatedError:
        return TerminatedError("SIGTERM: the stage was cancelled, or its host shuts down")
