"""A temporary Dask cluster on this machine: shared by stages, healed, lost, and gone without a trace."""

from __future__ import annotations

import os
import signal
from datetime import timedelta

import psutil
import pytest

from rallypoint import DaskCluster, DaskJob, Function
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.worker import context, hostprocs

pytestmark = pytest.mark.engine

INTERVAL = timedelta(seconds=0.1)

DAG_FILE = """
def total(upto, client):
    import os

    def told():
        return sorted(name for name in os.environ if name in ("RALLYPOINT_STAGE_FILE", "RALLYPOINT_EVENTS"))

    workers = client.scheduler_info()["workers"]
    return {"total": client.submit(sum, range(upto)).result(), "workers": len(workers),
            "threads": sum(each["nthreads"] for each in workers.values()), "told": client.submit(told).result()}
"""


@pytest.fixture
def dag(as_dag_file):
    return as_dag_file(DAG_FILE, "adding")


@pytest.fixture
def place(store, launcher):
    """Makes the engine of a stage."""
    return lambda name: Engine(store, StageKey(("flights", "r1", name)), launcher)


@pytest.fixture
async def cluster(place):
    """Starts a cluster; it is stopped in the end."""
    engine = place("cluster")

    async def start(**options):
        started = await engine.start(DaskCluster(**{"workers": 2, "lease": 120, **options}), Request(owner="try-1"))
        async for update in engine.watch(started.attempt, interval=INTERVAL):
            assert update.outcome is None, update.outcome.failure.render()
            if update.ready is not None:
                return update.ready
        raise AssertionError("it neither became ready nor ended")

    yield start
    if numbers := await engine.ledger.numbers():
        await engine.cancel(numbers[-1], owner=None, why="the test ends", grace=timedelta(seconds=10))


async def succeeded(engine, job):
    started = await engine.start(job, Request(owner="try-1"))
    outcome = [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1].outcome
    assert outcome.state is State.SUCCEEDED, outcome.failure.render()
    return outcome.result


async def _process(engine, name):
    """Return the process of the gang that has a name; not what it has started."""
    run_dir = (await engine.read(1)).handle.details["run_dir"]
    named = [pid for pid in hostprocs.of_run(run_dir) if hostprocs.environment(pid).get(context.PROCESS) == name]
    (found,) = [pid for pid in named if psutil.Process(pid).ppid() not in named]
    return found


async def test_stages_share_a_cluster_that_leaves_nothing_behind(cluster, place, dag, jobs_left, until):
    address = await cluster(threads_per_worker=2)
    assert address["address"].startswith("tcp://127.0.0.1:")
    assert address["dashboard_url"].startswith("http://127.0.0.1:")
    assert address["workers"] == 2
    for name in ("first", "second"):
        result = await succeeded(place(name), DaskJob(Function(dag.total, (10,)), cluster=address))
        assert result == {"total": 45, "workers": 2, "threads": 4, "told": []}
    engine = place("cluster")
    assert await engine.cancel(1, owner=None, why="it is over", grace=timedelta(seconds=15))
    assert (await engine.read(1)).outcome.state is State.CANCELLED
    await until(lambda: not jobs_left())


async def test_a_worker_that_dies_is_started_anew(cluster, place, dag, until):
    address = await cluster()
    driver = psutil.Process(await _process(place("cluster"), "worker-1"))
    # Dask names a worker's process after its state where setproctitle is installed; multiprocessing's own is no worker.
    below = [each for each in driver.children() if "resource_tracker" not in " ".join(each.cmdline())]
    assert below
    for each in below:
        each.kill()

    async def whole():
        result = await succeeded(place(f"after-{len(tries)}"), DaskJob(Function(dag.total, (10,)), cluster=address))
        tries.append(result["workers"])
        return tries[-1] == 2

    tries = []
    await until(whole)


async def test_a_scheduler_that_dies_is_what_failed(cluster, place, monkeypatch):
    monkeypatch.setenv("__DASK_PARENT_PID", str(os.getpid()))  # as in a process that has run a nanny of Dask's
    await cluster()
    engine = place("cluster")
    os.kill(await _process(engine, "scheduler-0"), signal.SIGKILL)
    attempt = await engine.read(1)
    outcome = [update async for update in engine.watch(attempt, interval=INTERVAL, hold=True)][-1].outcome
    assert (outcome.failure.process, outcome.failure.signal) == ("scheduler-0", "SIGKILL")
