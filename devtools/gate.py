"""A gate at which jobs of tests wait: a named pipe, which is open when there is something in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Gate:
    """A gate that is opened once, for all who wait and all who come later.

    A job waits with ``select.select([os.open(path, os.O_RDONLY | os.O_NONBLOCK)], [], [])``. If the process of the gate
    ends, every job goes on.

    Args:
        path: Where it is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it: whoever still waits goes on."""
        os.close(self._pipe)

    def open(self) -> None:
        """Let them go on."""
        os.write(self._pipe, b"1")
