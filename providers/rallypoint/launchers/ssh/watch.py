"""What a process of the orchestrator remembers between two looks at hosts, and what it does in the background.

Nothing of it is needed for a right answer: another process that looks starts with nothing, and only takes longer to
call a host lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from rallypoint.launchers.base import Phase, ProcessEnd, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

log = logging.getLogger(__name__)

_KEPT = 8_192  # nodes of attempts whose end is remembered
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0  # seconds between two tries to start a node again


class Memory:
    """What is remembered of hosts and of the nodes of attempts."""

    def __init__(self) -> None:
        self._silent: dict[str, float] = {}
        self._ends: OrderedDict[tuple[str, int], Status] = OrderedDict()
        self._tries: OrderedDict[tuple[str, int], tuple[float, float]] = OrderedDict()
        self._tasks: dict[tuple[Any, ...], asyncio.Task[None]] = {}

    def answered(self, host: str) -> None:
        """Note that a host has answered."""
        self._silent.pop(host, None)

    def silent_for(self, host: str, asked: float) -> float:
        """Note that a host did not answer, and return for how many seconds it has been so.

        Args:
            host: The host.
            asked: When it was asked, by the monotonic clock.
        """
        return time.monotonic() - self._silent.setdefault(host, asked)

    def keep(self, attempt: str, node: int, status: Status) -> None:
        """Remember how a node stands."""
        if status.phase is Phase.ENDED:
            self._ends[attempt, node] = status
            if len(self._ends) > _KEPT:
                self._ends.popitem(last=False)
        else:
            self._ends.pop((attempt, node), None)

    def end_of(self, attempt: str, node: int) -> Status | None:
        """Return how a node ended, if that was ever seen here."""
        return self._ends.get((attempt, node))

    def may_try(self, attempt: str, node: int) -> bool:
        """Return whether it is time to try to start a node again, and count the try."""
        now = time.monotonic()
        due, pause = self._tries.get((attempt, node), (now, _FIRST_PAUSE))
        if now < due:
            return False
        self._tries[attempt, node] = (now + pause, min(pause * 2, _LONGEST_PAUSE))
        if len(self._tries) > _KEPT:
            self._tries.popitem(last=False)
        return True

    def in_background(self, key: tuple[Any, ...], work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something without anybody waiting for it, unless it is being done."""
        loop = asyncio.get_running_loop()
        whole = (id(loop), *key)
        if whole in self._tasks:
            return
        task = self._tasks[whole] = loop.create_task(work())

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.pop(whole, None)
            if not task.cancelled() and (error := task.exception()):
                log.info("%s: %s", key[0], error)

        task.add_done_callback(done)


def status_from(value: Mapping[str, Any]) -> Status:
    """Return the status that an agent described."""
    ends = tuple(ProcessEnd(**end) for end in value["processes"])
    return Status(Phase(value["phase"]), str(value["reason"]), ends, str(value["message"]))
