"""Inside the job: whether something listens at an address of a cluster. Standard library only."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOOK = 0.25  # seconds between two attempts at a connection
_LONGEST = 2.0  # seconds that one attempt may take


def answers(address: str, *, timeout: float = _LONGEST) -> bool:
    """Return whether something listens at ``host:port``.

    Args:
        address: The address; an IPv6 one may be in brackets.
        timeout: Seconds until the answer is no.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except OSError:
        return False
    return True


def wait_for(addresses: Sequence[str], seconds: float, *, stop: threading.Event | None = None) -> bool:
    """Wait until something listens at one of some addresses; return whether it does.

    Args:
        addresses: Each as `answers` takes it.
        seconds: The longest wait.
        stop: Ends it before.
    """
    over = stop or threading.Event()
    deadline = time.monotonic() + seconds
    while not any(answers(each, timeout=max(0.1, min(_LONGEST, seconds))) for each in addresses):
        if time.monotonic() >= deadline or over.wait(_LOOK):
            return False
    return True
