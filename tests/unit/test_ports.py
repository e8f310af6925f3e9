"""Free ports: what a server that starts a moment later listens on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rallypoint.worker import ports


def test_they_are_different_and_can_be_listened_on():
    found = ports.free_ports(20)

    assert len(set(found)) == 20
    for port in found:
        with socket.socket() as server:
            server.bind((ports.LOOPBACK, port))
            server.listen()


def test_no_outgoing_connection_is_given_one_of_them():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    assert all(1024 < port < first for port in ports.free_ports(20))


def test_a_port_in_use_is_not_among_them(monkeypatch):
    with socket.socket() as server:
        server.bind((ports.LOOPBACK, 0))
        server.listen()
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "_candidates", lambda _: iter([taken]))

        assert ports.free_ports(1) != [taken]


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError, match="address"):
        ports.free_ports(1, "192.0.2.1")
