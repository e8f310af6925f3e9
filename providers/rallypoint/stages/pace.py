"""How long a watcher waits between two looks at an attempt."""

from __future__ import annotations

import random
import time

_SHARE = 0.02  # of an attempt's age that may pass between two looks: its end is then noticed within a hundredth of it
_LEAST = 0.2  # of the interval: the shortest wait, whose looks cost as much as those of five stages


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
