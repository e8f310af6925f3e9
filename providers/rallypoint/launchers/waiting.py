"""Learns at once that a process of this host has ended, without asking again and again: Linux's pidfd."""

from __future__ import annotations

import asyncio
import os
import resource

_SHARE = 4  # of the files that this process may open, a quarter: the rest of a triggerer needs some too

_waiting = 0


async def until_gone(pid: int, seconds: float) -> bool:
    """Wait until a process is gone, or for so many seconds; where the end cannot be watched, for all of them.

    Args:
        pid: The process; one that is gone already ends the wait at once.
        seconds: The longest wait.

    Returns:
        Whether a process of that id was there all the time.
    """
    global _waiting  # noqa: PLW0603 - how many files of this process are in use
    if not hasattr(os, "pidfd_open") or _waiting >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE:
        await asyncio.sleep(seconds)
        return False
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # no file left, or a kernel without it
        await asyncio.sleep(seconds)
        return False
    _waiting += 1
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(watched, gone.set)
        async with asyncio.timeout(seconds):
            await gone.wait()
    except TimeoutError:
        return True
    else:
        return False
    finally:
        loop.remove_reader(watched)
        os.close(watched)
        _waiting -= 1
