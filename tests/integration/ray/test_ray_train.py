"""Ray Train as a stage, on Ray itself: it continues, and it says which rank failed first."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from ray_head import RayHead

from rallypoint import Function, RayTrain
from rallypoint.launchers.registry import open_launcher
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

INTERVAL = timedelta(seconds=0.1)
DEADLINE = 240.0  # seconds that a Ray may take to start on a busy machine


async def finish(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def run(engine, job, owner="try-1"):
    return await finish(engine, await engine.start(job, Request(owner=owner)))


def entry(call, *args, **kwargs):
    return Function(call, args, kwargs, by_value=True)


def steps(folder, name):
    return [int(line) for line in Path(folder, name).read_text().split()]


def _recorded(folder):
    """The epochs of the checkpoints that Ray Train would restore."""
    for record in folder.glob("store/stages/**/checkpoint_manager_snapshot.json"):
        with suppress(ValueError):  # it is being written
            return [each["metrics"]["epoch"] for each in json.loads(record.read_text())["checkpoint_results"]]
    return []


def with_stage(folder, epochs):
    """Train with ``stage()`` as under torchrun; rank 1 is killed at epoch 2 of its first life."""
    import os
    import signal
    from pathlib import Path

    import torch
    import torch.distributed as dist

    import rallypoint

    stage = rallypoint.stage()
    assert (stage.rank, stage.world_size) == (dist.get_rank(), dist.get_world_size())
    start, checkpoint = 0, stage.latest_checkpoint()
    if checkpoint:
        start = torch.load(Path(checkpoint, "state.pt"))["epoch"]
    with Path(folder, f"rank-{stage.rank}").open("a") as file:
        file.write(f"{start}\n")
    for epoch in range(start + 1, epochs + 1):
        total = torch.ones(1)
        dist.all_reduce(total)
        state = {"epoch": epoch}
        stage.save_checkpoint(lambda target, state=state: torch.save(state, Path(target, "state.pt")), step=epoch)
        stage.report(step=epoch, total=epochs, loss=1 / epoch)
        dist.barrier()
        if epoch == 2 and stage.rank == 1 and start == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"sum": total, "from": start, "local_rank": stage.local_rank}


def with_ray(folder, epochs):
    """Train with Ray Train's own calls; wait at epoch 3 while the file ``hold`` is there, fail if ``fail`` is."""
    import json
    import tempfile
    import time
    from pathlib import Path

    import ray.train

    start, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as found:
            start = json.loads(Path(found, "state.json").read_text())["epoch"]
    for epoch in range(start + 1, epochs + 1):
        while epoch == 3 and Path(folder, "hold").exists():
            Path(folder, "waits").touch()
            time.sleep(0.1)
        if epoch == 3 and Path(folder, "fail").exists():
            Path(folder, "fail").unlink()
            raise OSError("the disk is gone")
        with Path(folder, "epochs").open("a") as file:
            file.write(f"{epoch}\n")
        with tempfile.TemporaryDirectory() as target:
            Path(target, "state.json").write_text(json.dumps({"epoch": epoch}))
            ray.train.report({"epoch": epoch, "loss": 1 / epoch}, checkpoint=ray.train.Checkpoint(target))


def on_two_nodes(folder, epochs):
    """Train; after epoch 2 of a group of two wait for the end of one of their nodes."""
    import time
    from pathlib import Path

    import ray
    import torch
    import torch.distributed as dist

    import rallypoint

    stage = rallypoint.stage()
    checkpoint = stage.latest_checkpoint()
    start = int(Path(checkpoint, "epoch").read_text()) if checkpoint else 0
    node = ray.get_runtime_context().get_node_id()
    Path(folder, f"{stage.world_size}-{stage.rank}").write_text(f"{node} {start}")
    for epoch in range(start + 1, epochs + 1):
        total = torch.ones(1)
        dist.all_reduce(total)
        stage.save_checkpoint(lambda target, epoch=epoch: Path(target, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=epochs, loss=1 / epoch)
        if epoch == 2 and stage.world_size == 2:
            dist.barrier()  # every rank has saved
            Path(folder, f"waits-{stage.rank}").touch()
            time.sleep(600)
    return {"from": start, "world_size": stage.world_size, "sum": total}


def raises(folder):
    import rallypoint

    if rallypoint.stage().rank == 1:
        None.shape  # noqa: B018
    import time

    time.sleep(60)


def with_tensorflow(folder, epochs):
    """Train with MultiWorkerMirrored; rank 1 is killed at epoch 2 of its first life."""
    import os
    import signal
    from pathlib import Path

    import tensorflow as tf

    import rallypoint

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # of the TF_CONFIG that Ray Train has set
    stage = rallypoint.stage()
    assert strategy.num_replicas_in_sync == stage.world_size

    @tf.function
    def count():
        return strategy.run(
            lambda: tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0))
        )

    start, checkpoint = 0, stage.latest_checkpoint()
    if checkpoint:
        start = int(Path(checkpoint, "epoch").read_text())
    with Path(folder, f"rank-{stage.rank}").open("a") as file:
        file.write(f"{start}\n")
    total = 0.0
    for epoch in range(start + 1, epochs + 1):
        total += float(strategy.experimental_local_results(count())[0])
        stage.save_checkpoint(lambda target, epoch=epoch: Path(target, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=epochs, loss=1 / epoch)
        count()  # every rank has saved
        if epoch == 2 and stage.rank == 1 and start == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"sum": total, "from": start}


def boosts():
    import numpy as np
    import xgboost
    from ray.train import get_context

    rng = np.random.default_rng(get_context().get_world_rank())
    rows = rng.normal(size=(200, 3))
    data = xgboost.DMatrix(rows, label=(rows[:, 0] > 0).astype(float))
    model = xgboost.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, num_boost_round=3)
    return {"trees": model.num_boosted_rounds(), "workers": get_context().get_world_size()}


@pytest.fixture
def cluster():
    """A cluster on which nobody has trained: what Ray Train knows of one's nodes may be 20 s old."""
    with RayHead(num_cpus=4) as cluster:
        yield cluster


async def test_a_killed_worker_is_replaced_and_training_goes_on_from_the_checkpoint(engine, tmp_path, jobs_left):
    update = await run(engine, RayTrain(entry(with_stage, str(tmp_path), 3), num_workers=2, max_failures=1))
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result == {"sum": 2.0, "from": 2, "local_rank": 0}
    assert steps(tmp_path, "rank-0") == steps(tmp_path, "rank-1") == [0, 2]
    assert await engine.ledger.numbers() == [1]
    assert {"driver-0", "rank-0.r0", "rank-1.r0", "rank-0.r1", "rank-1.r1"} == set(update.view.processes)
    assert (update.view.step, update.view.total, update.view.checkpoint["step"]) == (3, 3, 3)
    assert jobs_left() == {}


async def test_a_killed_attempt_is_continued_by_ray_trains_own_restore(engine, tmp_path, until, jobs_left):
    (tmp_path / "hold").touch()
    job = RayTrain(entry(with_ray, str(tmp_path), 4), num_workers=1, dashboard=False)
    started = await engine.start(job, Request(owner="try-1"))
    # Ray Train's controller takes reports in a second later; what it has not taken in, a kill loses.
    await until(lambda: (tmp_path / "waits").exists() and 2 in _recorded(tmp_path), deadline=DEADLINE)
    driver = next(pid for pid, line in jobs_left().items() if "frameworks.ray.driver" in line)
    os.kill(driver, signal.SIGKILL)
    outcome = (await finish(engine, started)).outcome
    assert outcome.state is State.FAILED
    assert outcome.failure.kind is Kind.RETRYABLE
    assert jobs_left() == {}
    (tmp_path / "hold").unlink()
    update = await run(engine, job, "try-2")
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert steps(tmp_path, "epochs") == [1, 2, 3, 4]
    result = update.outcome.result
    assert (result["metrics"]["epoch"], update.view.step, update.view.unit) == (4, 4, "epoch")
    kept = Path(unquote(urlsplit(result["checkpoint"]).path))
    assert (kept / "state.json").read_text() == '{"epoch": 4}'
    assert update.view.checkpoint["uri"] == result["checkpoint"]


async def test_a_retry_continues_from_a_checkpoint_in_a_bucket(launcher, ray_head, tmp_path, s3_store_uri):
    uri, options = s3_store_uri
    engine = Engine(Store.open(uri, options=options), StageKey(("bucket", "r1", "train")), launcher)
    (tmp_path / "fail").touch()
    job = RayTrain(entry(with_ray, str(tmp_path), 3), num_workers=1, address=ray_head.address)
    outcome = (await run(engine, job)).outcome
    assert (outcome.state, outcome.failure.message) == (State.FAILED, "the disk is gone")
    update = await run(engine, job, "try-2")
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert steps(tmp_path, "epochs") == [1, 2, 3]
    assert update.outcome.result["checkpoint"].startswith(f"{uri}/")
    assert update.view.checkpoint["uri"] == update.outcome.result["checkpoint"]


async def test_the_rank_that_failed_first_is_named_with_its_own_traceback(engine, ray_head, tmp_path):
    job = RayTrain(entry(raises, str(tmp_path)), num_workers=2, address=ray_head.address)
    failure = (await run(engine, job)).outcome.failure
    assert (failure.process, failure.kind, failure.exception) == ("rank 1", Kind.USER, "AttributeError")
    assert "None.shape" in failure.traceback
    assert "rank 1 on" in failure.headline


async def test_a_node_that_is_killed_leaves_training_on_what_is_left(engine, cluster, tmp_path, until):
    # Three of the head's four CPUs, and all of the other node's: one worker for each.
    node = await asyncio.to_thread(cluster.add_node, 3)
    job = RayTrain(
        entry(on_two_nodes, str(tmp_path), 3),
        num_workers=(1, 2),
        resources_per_worker={"CPU": 3},
        max_failures=2,
        # Seconds that Ray Train waits for a group of the old size before it takes a smaller one; also at the start.
        env={"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "40"},
        address=cluster.address,
    )
    started = await engine.start(job, Request(owner="try-1"))
    await until(lambda: len(list(tmp_path.glob("waits-*"))) == 2, deadline=DEADLINE)
    placed = {name: (tmp_path / name).read_text().split() for name in ("2-0", "2-1")}
    assert node.node_id in {where for where, _ in placed.values()}
    await asyncio.to_thread(node.kill)
    update = await finish(engine, started)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    result = update.outcome.result
    assert (result["world_size"], result["from"], result["sum"]) == (1, 2, 1.0)
    assert (tmp_path / "1-0").read_text() == f"{cluster.head.node_id} 2"
    assert await engine.ledger.numbers() == [1]  # within one attempt: the orchestrator need not retry
    assert {"rank-0.r0", "rank-1.r0", "rank-0.r1"} <= set(update.view.processes)


async def test_xgboost_trains_on_two_workers(engine, ray_head):
    update = await run(engine, RayTrain(entry(boosts), trainer="xgboost", num_workers=2, address=ray_head.address))
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result == {"trees": 3, "workers": 2}


async def test_tensorflow_trains_on_two_workers_and_goes_on_from_the_checkpoint(engine, ray_head, tmp_path):
    job = RayTrain(
        entry(with_tensorflow, str(tmp_path), 3), trainer="tensorflow", num_workers=2, max_failures=1,
        address=ray_head.address,
    )  # fmt: skip
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result == {"sum": 2.0, "from": 2}
    assert steps(tmp_path, "rank-0") == steps(tmp_path, "rank-1") == [0, 2]
    assert await engine.ledger.numbers() == [1]


async def test_training_runs_as_a_job_inside_of_the_cluster(ray_head, tmp_path):
    launcher = open_launcher(ray_head.dashboard_url.replace("http://", "ray-jobs://"))
    engine = Engine(Store.open(tmp_path / "store"), StageKey(("inside", tmp_path.name, "train")), launcher)
    job = RayTrain(entry(with_ray, str(tmp_path), 2), num_workers=1, address="auto", secrets={"TOKEN": "hunter2"})
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert (update.outcome.result["metrics"]["epoch"], steps(tmp_path, "epochs")) == (2, [1, 2])
    assert {"driver-0", "rank-0.r0"} <= set(update.view.processes)
