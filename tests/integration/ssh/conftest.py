"""Hosts with an address and an sshd of their own, in network namespaces of this machine."""

from __future__ import annotations

import sys

import pytest

from rallypoint.launchers.ssh import SSHLauncher
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey

LOST_AFTER = 4.0  # seconds


@pytest.fixture
def hosts(network):
    """The hosts, all of them up."""
    yield network.hosts
    for host in network.hosts:
        host.link_up()
        if not host.alive:
            host.start()


@pytest.fixture
def uri(hosts, network, tmp_path):
    """Makes the URI of a launcher of the hosts."""

    def make(*, names=None, lost_after=LOST_AFTER, root="runs", **more):
        listed = ",".join(names or (host.address for host in hosts))
        query = {
            "root": tmp_path / root,
            "python": sys.executable,
            "known_hosts": network.known_hosts,
            "lost_after": lost_after,
            **more,
        }
        return f"ssh://root@{listed}?" + "&".join(f"{name}={value}" for name, value in query.items())

    return make


@pytest.fixture
def launcher(uri, network):
    return SSHLauncher.from_uri(uri(), {"client_keys": str(network.key)})


@pytest.fixture
def engine(store, launcher):
    return Engine(store, StageKey(("flights", "r1", "train")), launcher)
