"""What this host says of its network. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915  # of Linux's ioctl: an interface's IPv4 address


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an address; None if none has, or that cannot be told.

    Args:
        address: An IPv4 address, or a name that resolves to one.
    """
    try:
        wanted = socket.gethostbyname(address) if address else ""
    except OSError:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                request = struct.pack("256s", name.encode()[:15])
                if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]) == wanted:
                    return name
    return None


def address_towards(host: str) -> str:
    """Return the address of this host that another one sees.

    Raises:
        OSError: There is no way to that host.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return str(probe.getsockname()[0])
