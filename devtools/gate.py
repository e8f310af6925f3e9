"""A gate at which jobs of tests wait: a named pipe, which is open when there is something in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Gate:
    """A gate that is opened once, for all who wait and all who come later.

    A job waits with ``select.select([os.open(path, os.O_RDONLY | os.O_NONBLOCK)], [], [], seconds)``. It goes on when
    its time is over, and when the process of the gate ends. One that reads the pipe has the word with which the gate
    was opened, and closes it again.

    Args:
        path: Where it is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)

    def close(self) -> None:
        """End it: whoever still waits goes on."""
        os.close(self._pipe)

    def open(self, word: str = "open") -> None:
        """Let them go on.

        Args:
            word: What who reads it is told.
        """
        os.write(self._pipe, word.encode())
