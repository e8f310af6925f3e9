"""One real Slurm for all of these tests: a controller and two nodes on this machine."""

from __future__ import annotations

import sys
from datetime import timedelta
from urllib.parse import quote, urlencode

import pytest
from slurm_cluster import SlurmCluster

from rallypoint.launchers.slurm import SlurmLauncher, queue
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey

INTERVAL = timedelta(seconds=0.2)


@pytest.fixture(scope="package")
def slurm():
    """A Slurm with two nodes, ``n1`` and ``n2``; see `SlurmCluster`."""
    if why := SlurmCluster.why_not():
        pytest.skip(f"NO SLURM IS TESTED HERE: {why}")
    with SlurmCluster() as cluster:
        yield cluster
    assert not cluster.left(), "processes of the Slurm outlived the tests"


@pytest.fixture(autouse=True)
def _answers_soon(monkeypatch):
    """A test waits for Slurm's word, not for the interval between two questions."""
    monkeypatch.setattr(queue, "SHORTEST", 0.5)
    monkeypatch.setattr(queue, "LONGEST", 1.0)


@pytest.fixture(autouse=True)
def _nothing_runs_on(slurm, until):
    """Every test finds both nodes, and no job of another test."""
    for node in slurm.nodes:
        slurm.ensure_node(node)
    yield
    slurm.cancel_all()


@pytest.fixture
def uri(slurm, tmp_path):
    """Makes the URI of a launcher on a partition of the cluster."""

    def make(partition="main", **options):
        root = tmp_path / "runs"
        query = {"root": str(root), "conf": slurm.conf, "python": sys.executable, **options}
        return f"slurm://{quote(partition)}?{urlencode(query)}"

    return make


@pytest.fixture
def launcher(uri):
    return SlurmLauncher.from_uri(uri())


@pytest.fixture
def engine_on(store):
    """Makes the engine of a stage on a launcher."""

    def make(launcher, task="train"):
        return Engine(store, StageKey(("flights", "r1", task)), launcher)

    return make


@pytest.fixture
def followed():
    """Watches an attempt to its end, and returns the last update and everything that was logged."""

    async def follow(engine, attempt):
        text, last = "", None
        async for update in engine.watch(attempt, interval=INTERVAL):
            text += b"".join(chunk.data for chunk in update.output).decode()
            last = update
        return last, text

    return follow
