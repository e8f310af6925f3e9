"""How long a watcher waits between two looks at an attempt, and how many look at the same time."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

_SHARE = 0.02  # of an attempt's age that may pass between two looks: its end is then noticed within a hundredth of it
_LEAST = 0.2  # of the interval: the shortest wait, whose looks cost as much as those of five stages
_TURNS = 32  # looks at the same time in one event loop: a step of each is some milliseconds of the loop's time

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = WeakKeyDictionary()


def turn(what: str = "look") -> AbstractAsyncContextManager[None]:
    """Return what a watcher holds while it looks, so that a thousand that start together leave the loop to others.

    Args:
        what: What is done in turns; one thing does not wait for another one.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # whoever runs its coroutines without a loop runs one at a time
        return nullcontext()
    return _turns.setdefault(loop, {}).setdefault(what, asyncio.Semaphore(_TURNS))


def pause(interval: float, since: float) -> float:
    """Return the seconds until the next look: the interval, and less while the attempt is young.

    The waits differ by chance, so that a thousand stages of one triggerer do not all look in the same moment, as they
    would for ever after its restart.

    Args:
        interval: The longest wait, in seconds.
        since: When the attempt began, in seconds since the epoch.
    """
    age = max(0.0, time.time() - since)
    return min(interval, max(interval * _LEAST, age * _SHARE)) * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
