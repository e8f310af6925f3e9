"""Ports of this host that nobody listens on."""

from __future__ import annotations

import contextlib
import socket

LOOPBACK, EVERYWHERE = "127.0.0.1", ""


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """Return different ports that are free now; another process may take one before it is used.

    Args:
        count: How many.
        host: The address on which they have to be free; `EVERYWHERE` for every interface.
    """
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
