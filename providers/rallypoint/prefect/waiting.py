"""Runs a coroutine on a thread of its own, so that whoever waits for it can be interrupted, and then asks it to end.

Prefect interrupts a task by an exception in its thread: a signal, an alarm, one that is injected. None of them may hit
the event loop that talks to a store and a launcher, so that loop has a thread of its own, and the task's thread only
waits, in short steps: an injected exception does not interrupt a long one.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

_T = TypeVar("_T")
_STEP = 0.25  # seconds
_BUDGET = 24.0  # seconds until it is no longer waited for; Prefect kills the process 30 s after it has asked


class Waiting(Generic[_T]):
    """A coroutine that runs on its own thread, in a copy of this context: loggers and runs are found there too.

    Args:
        work: Makes the coroutine.
        interrupted: Is called on that thread's loop with what interrupted the one who waits; the coroutine then ends.
    """

    def __init__(
        self, work: Callable[[], Coroutine[Any, Any, _T]], interrupted: Callable[[BaseException | None], None]
    ) -> None:
        self._work = work
        self._interrupted = interrupted
        self._future: Future[_T] = Future()
        self._done = threading.Event()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        context = contextvars.copy_context()
        # A daemon: a process that is told to go does not stay for it. What it was doing is found again by the next.
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="rallypoint-stage", daemon=True)

    def wait(self) -> _T:
        """Wait for the coroutine's end and return its value, or raise its error.

        What interrupts the wait is raised after the coroutine has ended too, or its time was over.
        """
        self._thread.start()
        try:
            while not self._done.wait(_STEP):
                pass
        except BaseException as reason:
            self._interrupt(reason)
            self._done.wait(_BUDGET)
            raise
        return self._future.result()

    async def wait_async(self) -> _T:
        """Do the same without blocking the event loop of the caller, whose cancellation is the interruption."""
        self._thread.start()
        future = asyncio.wrap_future(self._future)
        # Nobody asks for the error of a coroutine that was interrupted: asyncio would complain.
        future.add_done_callback(_take_error)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError as reason:
            self._interrupt(None if _loop_ends() else reason)
            with anyio.move_on_after(_BUDGET, shield=True):
                await anyio.to_thread.run_sync(self._done.wait, _BUDGET)
            raise

    def _interrupt(self, reason: BaseException | None) -> None:
        self._ready.wait(_BUDGET)
        if self._loop is not None and not self._done.is_set():
            self._loop.call_soon_threadsafe(self._interrupted, reason)

    def _run(self) -> None:
        try:
            self._future.set_result(asyncio.run(self._main()))
        except BaseException as error:  # noqa: BLE001 - the one who waits raises it
            self._future.set_exception(error)
        finally:
            self._ready.set()
            self._done.set()

    async def _main(self) -> _T:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        return await self._work()


def _loop_ends() -> bool:
    """Return whether the event loop is ending: a signal has ended it, it was not the flow's code that gave up waiting.

    A cancellation does not say where it comes from. But when a loop ends, asyncio runs it once more to cancel what is
    left, from a function of this name, in the standard library and in anyio alike.
    """
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - the stack is what is asked for
    while frame is not None:
        if frame.f_code.co_name == "_cancel_all_tasks":
            return True
        frame = frame.f_back
    return False


def _take_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
