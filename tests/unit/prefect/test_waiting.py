"""Waiting for a coroutine on its own thread: its result, its errors, and who interrupts the wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from rallypoint.prefect.waiting import Waiting


class Work:
    def __init__(self):
        self.asked = None
        self._asked = None
        self.started = threading.Event()

    async def __call__(self):
        self._asked = asyncio.Event()
        self.started.set()
        await self._asked.wait()
        return "ended"

    def interrupt(self, reason):
        self.asked = reason
        self._asked.set()


def test_a_result_and_an_error_come_back():
    async def answer():
        return 42

    async def fail():
        msg = "no"
        raise ValueError(msg)

    assert Waiting(answer, print).wait() == 42
    with pytest.raises(ValueError, match="no"):
        Waiting(fail, print).wait()


def test_what_interrupts_the_wait_is_told_to_the_work_and_raised_after_its_end():
    from prefect.utilities.timeout import timeout

    work = Work()
    with pytest.raises(TimeoutError), timeout(0.5):
        Waiting(work, work.interrupt).wait()
    assert isinstance(work.asked, asyncio.CancelledError)


def test_a_timeout_reaches_a_wait_in_a_thread():
    from prefect.utilities.timeout import timeout

    work, seen = Work(), []

    def wait():
        try:
            with timeout(0.5):
                Waiting(work, work.interrupt).wait()
        except TimeoutError as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(30)
    assert len(seen) == 1
    assert isinstance(work.asked, asyncio.CancelledError)


async def test_an_event_loop_is_not_blocked():
    work = Work()
    waiting = asyncio.create_task(Waiting(work, work.interrupt).wait_async())
    assert await asyncio.to_thread(work.started.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert isinstance(work.asked, asyncio.CancelledError)


def test_code_that_gives_up_is_no_end_of_the_loop():
    import anyio

    work = Work()

    async def main():
        with anyio.move_on_after(0.5):
            await Waiting(work, work.interrupt).wait_async()

    asyncio.run(main())
    assert isinstance(work.asked, asyncio.CancelledError)


def test_a_loop_that_ends_is_told_apart_from_code_that_gives_up():
    work = Work()

    async def main():
        task = asyncio.create_task(Waiting(work, work.interrupt).wait_async())
        assert await asyncio.to_thread(work.started.wait, 10)
        assert not task.done()
        raise SystemExit(1)  # as a signal does: the loop ends and cancels everything

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert work.asked is None
