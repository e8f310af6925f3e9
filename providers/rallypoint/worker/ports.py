"""Ports of this host that nobody listens on."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK, EVERYWHERE = "127.0.0.1", ""
_EPHEMERAL = "/proc/sys/net/ipv4/ip_local_port_range"
_LOWEST = 10_000  # below it are the ports that services are known by
_TRIES = 100


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """Return different ports that are free now; another server may take one before it is used.

    They lie below the ports that the system gives to outgoing connections: between this choice and its use, a busy host
    opens many of those.

    Args:
        count: How many.
        host: The address on which they have to be free; `EVERYWHERE` for every interface.

    Raises:
        OSError: If `host` is no address of this machine, or it has no port left.
    """
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        candidates = _candidates(_TRIES * count)
        for probe in probes:
            _bind(probe, host, candidates)
        return [int(probe.getsockname()[1]) for probe in probes]


def _bind(probe: socket.socket, host: str, candidates: Iterator[int]) -> None:
    for port in candidates:
        with contextlib.suppress(OSError):
            probe.bind((host, port))
            return
    probe.bind((host, 0))  # any port at all, or the error that says why there is none


def _candidates(count: int) -> Iterator[int]:
    try:
        with open(_EPHEMERAL) as file:
            end = int(file.read().split()[0])
    except (OSError, ValueError):  # no Linux: the system chooses
        end = 0
    ports = range(_LOWEST, end)
    return iter(random.sample(ports, min(count, len(ports))))
