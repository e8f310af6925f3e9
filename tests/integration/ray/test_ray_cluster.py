"""A temporary Ray cluster as a stage: ready when it can be used, shared, added to, and gone when nobody wants it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from rallypoint import Function, RayTune, search
from rallypoint.frameworks.ray.cluster import RayCluster, RayWorkers
from rallypoint.launchers.local import LocalLauncher
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import Action, State
from rallypoint.stages.store import Store
from rallypoint.worker import context

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

INTERVAL = timedelta(seconds=0.2)
SOON = 120.0  # seconds that Ray may take to see that a node came or went

# A program of a user's; what it prints last is its answer.
PROGRAM = """
    import json, os, sys, time
    import ray

    ray.init(address=sys.argv[1], log_to_driver=False)

    @ray.remote(num_cpus=1)
    def where():
        return ray.get_runtime_context().get_node_id(), "RALLYPOINT_STAGE_FILE" in os.environ

    print(json.dumps(ray.get(where.remote(), timeout=120)))
"""


@pytest.fixture(scope="module")
def small():
    """What makes a cluster small, and keeps its files together: a killed one leaves them behind."""
    # A short path: Ray's sockets lie below it, and a socket's path has 107 bytes at the most.
    with tempfile.TemporaryDirectory(prefix="rp-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield {"object_store_memory": "80MiB", "start_timeout": 240.0, "env": {"TMPDIR": folder}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store and a launcher, as an engine's arguments by the stage's name."""
    root = tmp_path_factory.mktemp("cluster")

    def engine(name):
        return Engine(Store.open(root / "store"), StageKey(("flights", "r1", name)), LocalLauncher(root / "runs"))

    return engine


async def last_of(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def ready(engine, started):
    """Return the address object of a service, or fail with how it ended."""
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        last = update
    assert last.outcome is None, last.outcome and last.outcome.failure.render()
    return last.ready


@pytest.fixture(scope="module")
def cluster(place, small):
    """A cluster of a head and one worker, which the tests here share."""
    engine = place("cluster")

    async def begin():
        started = await engine.start(RayCluster(workers=1, **small), Request(owner="try-1"))
        return started, await ready(engine, started)

    started, address = asyncio.run(begin())
    yield started, address
    asyncio.run(engine.cancel(started.attempt.record.number, owner=None, why="the tests are over"))


def processes_of(started):
    """Return what lives of an attempt: its supervisor and all below, also what has no environment to be read."""
    run_dir, found = started.attempt.handle.details["run_dir"], set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(context.RUN_DIR) == run_dir:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return {process for process in found if process.status() != psutil.STATUS_ZOMBIE}


def nothing_lives(processes):
    return not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def nodes(address):
    """Return the living nodes, as the dashboard knows them, by their stage's name and their own."""
    with urllib.request.urlopen(f"{address['dashboard_url']}/nodes?view=summary", timeout=10) as answer:
        summary = [node["raylet"] for node in json.load(answer)["data"]["summary"]]
    found = {}
    for node in summary:
        if node["state"] == "ALIVE":
            _, stage, *_, role, number = node["nodeName"].split("-")  # rp-<stage>-<digest>-a1-<role>-<number>
            found[f"{stage}/{role}-{number}"] = node
    return found


def program(code, *args):
    argv = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


async def test_a_ready_cluster_runs_a_users_tasks_on_its_worker(cluster):
    _, address = cluster
    assert sorted(nodes(address)) == ["cluster/head-0", "cluster/worker-0"]
    user = program(PROGRAM, address["address"])
    output, _ = await asyncio.to_thread(user.communicate, timeout=240)
    node, sees_the_clusters_stage = json.loads(output.splitlines()[-1])
    assert nodes(address)["cluster/worker-0"]["nodeId"] == node
    assert not sees_the_clusters_stage


async def test_a_second_start_reattaches_and_returns_the_same_address(cluster, place, small):
    first, address = cluster
    engine = place("cluster")
    second = await engine.start(RayCluster(workers=1, **small), Request(owner="try-2"))
    assert second.decision.action is Action.REATTACH
    assert await ready(engine, second) == address
    assert (await engine.inspect(first.attempt.record.number)).ready == address


async def test_added_workers_are_used_by_a_running_job_and_leave_with_their_stage(cluster, place, until, small):
    _, address = cluster
    engine = place("more")
    # Two CPUs at once, which the cluster does not have yet.
    user = program(
        """
        import json, sys
        import ray

        ray.init(address=sys.argv[1], log_to_driver=False)

        @ray.remote(num_cpus=2)
        def where():
            return ray.get_runtime_context().get_node_id()

        waits = where.remote()
        print("waiting", flush=True)
        print(json.dumps(ray.get(waits, timeout=300)))
        """,
        address["address"],
    )
    assert (await asyncio.to_thread(user.stdout.readline)) == "waiting\n"
    job = RayWorkers(cluster=address, workers=1, cpus_per_worker=2, labels={"pool": "more"}, **small)
    started = await engine.start(job, Request(owner="try-1"))
    more = await ready(engine, started)
    assert more["address"] == address["address"]
    assert [ref["stage"][-1] for ref in (more["service"], *more["uses"])] == ["more", "cluster"]
    output, _ = await asyncio.to_thread(user.communicate, timeout=240)
    added = nodes(address)["more/worker-0"]
    assert json.loads(output.splitlines()[-1]) == added["nodeId"]
    assert added["labels"]["pool"] == "more"
    lived = processes_of(started)
    assert await engine.cancel(started.attempt.record.number, owner=None, why="its teardown task ran")
    await until(lambda: sorted(nodes(address)) == ["cluster/head-0", "cluster/worker-0"], deadline=SOON)
    await until(lambda: nothing_lives(lived))


def trial(folder, *, width):
    """Say where each epoch runs, and wait after the first while the file ``hold`` is there."""
    import time
    from pathlib import Path

    import ray

    import rallypoint

    stage, start = rallypoint.stage(), 0
    if checkpoint := stage.latest_checkpoint():
        start = int(Path(checkpoint, "epoch").read_text())
    node = ray.get_runtime_context().get_node_id()
    for epoch in range(start + 1, 3):
        with Path(folder, "epochs").open("a") as file:
            file.write(f"{width} {epoch} {node}\n")
        stage.save_checkpoint(lambda target, epoch=epoch: Path(target, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=2, loss=width / epoch)
        while epoch == 1 and Path(folder, "hold").exists():
            time.sleep(0.05)


async def test_a_sweep_uses_workers_that_are_added_while_it_runs_and_bears_that_they_leave(
    cluster, place, until, small, tmp_path
):
    _, address = cluster
    (tmp_path / "hold").touch()
    more, engine = place("extra"), place("sweep")
    sweep = RayTune(
        Function(trial, (str(tmp_path),), {}, by_value=True),
        space={"width": search.grid([1, 2])}, search="grid", num_samples=1, max_failures=1, address=address,
    )  # fmt: skip
    started = await engine.start(sweep, Request(owner="try-1"))
    watching = asyncio.create_task(last_of(engine, started))

    def epochs():
        found = tmp_path / "epochs"
        return [tuple(line.split()) for line in found.read_text().splitlines()] if found.exists() else []

    async def both_have_reported():
        found = (await engine.inspect(1)).view.metrics
        return (found.get("running"), found.get("reports"), found.get("best_width")) == (2, 2, 1)

    own = nodes(address)["cluster/worker-0"]["nodeId"]
    await until(lambda: len(epochs()) == 1, deadline=SOON)  # the cluster has room for one trial
    added = await more.start(RayWorkers(cluster=address, workers=1, drain=0, **small), Request(owner="try-1"))
    await ready(more, added)
    new = nodes(address)["extra/worker-0"]["nodeId"]
    await until(lambda: len(epochs()) == 2, deadline=SOON)
    assert epochs() == [("1", "1", own), ("2", "1", new)]
    await until(both_have_reported, deadline=SOON)
    assert await more.cancel(added.attempt.record.number, owner=None, why="its teardown task ran")
    await until(lambda: sorted(nodes(address)) == ["cluster/head-0", "cluster/worker-0"], deadline=SOON)
    (tmp_path / "hold").unlink()
    update = await watching
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result["trials"] == {"total": 2, "finished": 2, "stopped": 0, "failed": 0}
    assert sorted(epochs()[2:]) == [("1", "2", own), ("2", "2", own)]  # the second goes on from its checkpoint


async def test_a_worker_whose_raylet_dies_comes_back_and_the_cluster_stays(cluster, until):
    started, address = cluster
    before = nodes(address)["cluster/worker-0"]["nodeId"]
    workers = [process for process in processes_of(started) if "worker" in process.cmdline()[3:4]]
    (raylet,) = [child for child in workers[0].children(recursive=True) if child.name() == "raylet"]
    raylet.send_signal(signal.SIGKILL)

    await until(lambda: nodes(address).get("cluster/worker-0", {"nodeId": before})["nodeId"] != before, deadline=SOON)
    assert sorted(nodes(address)) == ["cluster/head-0", "cluster/worker-0"]


async def test_a_stopped_cluster_leaves_nothing_and_the_next_try_starts_another_one(place, until, small):
    engine = place("stopped")
    job = RayCluster(workers=0, head_cpus=1, **small)
    first = await engine.start(job, Request(owner="try-1"))
    address = await ready(engine, first)
    lived = processes_of(first)
    (folder,) = {
        word.partition("=")[2] for process in lived for word in process.cmdline() if word.startswith("--temp-dir=")
    }
    assert await engine.cancel(1, owner=None, why="its teardown task ran")
    outcome = (await engine.read(1)).outcome
    assert (outcome.state, outcome.failure.kind, outcome.failure.title) == (State.CANCELLED, Kind.CANCELLED, "stopped")
    assert "its teardown task ran" in outcome.failure.message
    await until(lambda: nothing_lives(lived))
    assert not Path(folder).exists()

    second = await engine.start(job, Request(owner="try-2"))
    assert second.attempt.record.number == 2
    assert (await ready(engine, second))["service"]["attempt"] == 2 != address["service"]["attempt"]
    lived = processes_of(second)
    record = json.loads(Path(second.attempt.handle.details["run_dir"], "started.json").read_text())
    os.kill(record["pid"], signal.SIGKILL)  # nobody is left to end anything but the kernel and Ray itself
    await until(lambda: nothing_lives(lived))


async def test_a_head_that_does_not_come_up_is_started_anew_and_the_cluster_fails_with_one_that_dies_later(
    place, until, small
):
    engine = place("headless")
    started = await engine.start(RayCluster(workers=0, head_cpus=1, lease=600, **small), Request(owner="try-1"))

    def starting():
        with suppress(psutil.Error):
            return [it for it in processes_of(started) if it.cmdline()[1:4] == ["-m", "ray.scripts.scripts", "start"]]

    (await until(starting))[0].kill()
    await ready(engine, started)
    assert "start 2 of 3" in await engine.tail(1, "head-0", 1 << 16)
    lived = processes_of(started)
    next(process for process in lived if process.name() == "gcs_server").kill()
    async for update in engine.watch(started.attempt, interval=INTERVAL, hold=True):
        last = update
    assert last.outcome.state is State.FAILED
    assert "the cluster's head ended" in last.outcome.failure.message
    await until(lambda: nothing_lives(lived))


async def test_a_cluster_that_nobody_uses_ends_when_its_lease_is_over(place, until, small):
    engine = place("forgotten")
    started = await engine.start(RayCluster(workers=0, head_cpus=1, lease=5, **small), Request(owner="try-1"))
    await ready(engine, started)  # longer than the lease: who waits renews it
    lived = processes_of(started)
    await until(lambda: nothing_lives(lived))
    shown = await engine.inspect(1)
    assert (shown.state, shown.entry.outcome.failure.title) == (State.FAILED, "lease expired")
