"""Frameworks on a real Slurm: a training on two nodes, and a sweep on a cluster that Slurm runs."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from datetime import timedelta

import pytest
from spark_head import SMALL, ready

from rallypoint import (
    DaskCluster,
    DaskJob,
    Function,
    RayTune,
    Resources,
    Script,
    SparkJob,
    TensorFlowJob,
    TorchElastic,
    search,
)
from rallypoint.frameworks.ray.cluster import RayCluster
from rallypoint.frameworks.spark.cluster import SparkCluster
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

INTERVAL = timedelta(seconds=0.2)

# Three epochs of data-parallel training, one rank on each node; at epoch 2 the second one may be killed, once.
TRAIN = """
    import os, signal, sys
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    import rallypoint

    here, at_2 = Path(sys.argv[1]), sys.argv[2]
    stage = rallypoint.stage()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    start, checkpoint = 0, stage.latest_checkpoint()
    if checkpoint:
        saved = torch.load(Path(checkpoint, "model.pt"))
        model.module.load_state_dict(saved["model"])
        start = saved["epoch"]
    for epoch in range(start + 1, 4):
        loss = model(torch.full((4, 2), float(stage.rank + 1))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {"epoch": epoch, "model": model.module.state_dict()}
        stage.save_checkpoint(lambda folder: torch.save(state, Path(folder, "model.pt")), step=epoch)
        stage.report(step=epoch, total=3, loss=loss.item())
        dist.barrier()
        if epoch == 2 and stage.rank == 1 and at_2 == "killed" and not checkpoint:
            print("rank 1 says its last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch == 2 and at_2 == "requeued" and not checkpoint:
            (here / "up").touch()
            signal.pause()
    nodes = [None, None]
    dist.all_gather_object(nodes, os.environ["SLURMD_NODENAME"])
    stage.result({"nodes": sorted(nodes), "world": dist.get_world_size(), "from": start})
    dist.destroy_process_group()
"""


def learn(folder, *, width):
    """Learn nothing: the loss is the width. Each trial leaves a line that says where it ran."""
    import os
    from pathlib import Path

    import rallypoint

    with Path(folder, "trials").open("a") as file:
        file.write(f"{width} {os.environ.get('SLURM_JOB_ID')}\n")
    rallypoint.stage().report(step=1, total=1, loss=float(width))
    return {"width": width}


def count(spark):
    """Count rows, and return on which nodes of Slurm the executors did it."""

    def node(_):
        import os

        return os.environ.get("SLURMD_NODENAME")

    rows = spark.range(1000).repartition(4).count()
    return {"rows": rows, "nodes": spark.sparkContext.parallelize(range(4), 2).map(node).distinct().collect()}


def sum_up(strategy):
    """Add one of every replica, and return the sum with where they are."""
    import json
    import os

    import tensorflow as tf

    @tf.function
    def add():
        return tf.distribute.get_replica_context().all_reduce("sum", tf.constant(1.0))

    total = float(strategy.experimental_local_results(strategy.run(add))[0])
    cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]
    return {"total": total, "addresses": [address for kind in ("chief", "worker") for address in cluster[kind]]}


def total(client):
    return client.submit(sum, [1, 2, 3]).result()


@pytest.fixture
def ddp(script, tmp_path):
    def make(at_2="alive"):
        train = Script(script(TRAIN), [str(tmp_path), at_2])
        return TorchElastic(train, nnodes="2", nproc_per_node=1, rdzv_timeout=120)

    return make


async def test_ranks_on_two_nodes_train_together_and_after_a_kill_the_retry_continues(
    engine_on, launcher, ddp, followed
):
    engine = engine_on(launcher)
    started = await engine.start(ddp("killed"), Request(owner="try-1"))
    update, _ = await followed(engine, started.attempt)
    report = update.outcome.failure
    assert update.outcome.state is State.FAILED
    assert (report.process, report.signal, report.kind) == ("rank 1", "SIGKILL", Kind.RETRYABLE), report.render()
    assert "rank 1 says its last words" in report.last_lines
    started = await engine.start(ddp("killed"), Request(owner="try-2"))
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result == {"nodes": ["n1", "n2"], "world": 2, "from": 2}


async def test_a_training_that_goes_back_into_the_queue_continues_in_the_same_attempt(
    engine_on, launcher, ddp, followed, until, slurm, tmp_path
):
    engine = engine_on(launcher)
    started = await engine.start(ddp("requeued"), Request(owner="try-1"))
    await until((tmp_path / "up").exists, deadline=120)
    slurm.command("scontrol", "requeue", str(started.attempt.handle.details["job"]))
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result == {"nodes": ["n1", "n2"], "world": 2, "from": 2}
    assert (await engine.ledger.last()).record.number == 1
    rounds = sorted(process.restart for process in update.view.processes.values() if process.rank == 0)
    assert len(set(rounds)) == 2, update.view.processes
    assert {rank.restart for rank in update.view.last_round} == {rounds[-1]}


async def test_a_sweep_runs_on_a_ray_cluster_that_slurm_runs(engine_on, launcher, slurm, tmp_path):
    folder = tempfile.mkdtemp(prefix="rp-", dir="/tmp")  # short: Ray's sockets lie below it
    options = {"object_store_memory": "80MiB", "start_timeout": 240.0, "env": {"TMPDIR": folder}}
    service = engine_on(launcher, "cluster")
    cluster = await service.start(RayCluster(workers=1, cpus_per_worker=2, **options), Request(owner="try-1"))
    try:
        async for update in service.watch(cluster.attempt, interval=INTERVAL):
            last = update
        assert last.outcome is None, last.outcome.failure.render()
        assert sorted(slurm.nodes_of(cluster.attempt.record.id)) == ["n1", "n2"]
        # The sweep itself is a stage on Slurm, too, beside the cluster's nodes.
        engine = engine_on(launcher, "tune")
        job = RayTune(
            Function(learn, (str(tmp_path),), by_value=True),
            space={"width": search.grid([1, 2])},
            metric="loss",
            mode="min",
            num_samples=1,
            address=last.ready,
        )
        started = await engine.start(job, Request(owner="try-1"))
        async for update in engine.watch(started.attempt, interval=INTERVAL):
            last = update
        assert last.outcome.state is State.SUCCEEDED, last.outcome.failure.render()
        trials = [line.split() for line in (tmp_path / "trials").read_text().splitlines()]
        assert sorted(width for width, _ in trials) == ["1", "2"]
        assert {where for _, where in trials} == {str(cluster.attempt.handle.details["job"])}
    finally:
        await service.cancel(cluster.attempt.record.number, owner=None, why="the test is over")
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    assert (await service.inspect(cluster.attempt.record.number)).state is State.CANCELLED


async def test_dask_runs_as_a_job(engine_on, launcher, followed):
    engine = engine_on(launcher)
    job = DaskJob(Function(total, by_value=True), resources=Resources(cpus=1, memory="1GiB"))
    started = await engine.start(job, Request(owner="try-1"))
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result == 6


async def test_a_dask_job_runs_on_a_cluster_that_slurm_runs(engine_on, launcher, followed, slurm):
    service = engine_on(launcher, "cluster")
    cluster = await service.start(DaskCluster(workers=1, threads_per_worker=2), Request(owner="try-1"))
    try:
        address = await ready(service, cluster)
        assert sorted(slurm.nodes_of(cluster.attempt.record.id)) == ["n1", "n2"]
        job = DaskJob(Function(total, by_value=True), cluster=address)
        started = await engine_on(launcher, "total").start(job, Request(owner="try-1"))
        update, _ = await followed(engine_on(launcher, "total"), started.attempt)
        assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
        assert update.outcome.result == 6
    finally:
        await service.cancel(cluster.attempt.record.number, owner=None, why="the test is over")
    assert (await service.inspect(cluster.attempt.record.number)).state is State.CANCELLED


async def test_a_spark_job_runs_on_a_cluster_that_slurm_runs(engine_on, launcher, followed, slurm):
    service = engine_on(launcher, "cluster")
    cluster = await service.start(SparkCluster(workers=1, **SMALL), Request(owner="try-1"))
    try:
        address = await ready(service, cluster)
        assert sorted(slurm.nodes_of(cluster.attempt.record.id)) == ["n1", "n2"]
        job = SparkJob(Function(count, by_value=True), master=address, driver_memory="512m", executor_memory="512m")
        started = await engine_on(launcher, "count").start(job, Request(owner="try-1"))
        update, _ = await followed(engine_on(launcher, "count"), started.attempt)
        assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
        assert update.outcome.result == {"rows": 1000, "nodes": ["n2"]}  # the master is on the first node
    finally:
        await service.cancel(cluster.attempt.record.number, owner=None, why="the test is over")
    assert (await service.inspect(cluster.attempt.record.number)).state is State.CANCELLED


async def test_processes_of_tensorflow_reduce_together_on_nodes_that_have_what_each_asks_for(
    engine_on, launcher, followed, slurm
):
    engine = engine_on(launcher)
    job = TensorFlowJob(
        Function(sum_up, by_value=True),
        strategy="multi_worker_mirrored",
        chief=True,
        workers=1,
        task_resources={"worker": Resources(cpus=2)},
        communication="ring",
        join_timeout=120.0,
    )
    started = await engine.start(job, Request(owner="try-1"))
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert (update.outcome.result["total"], len(set(update.outcome.result["addresses"]))) == (2.0, 2)
    job_id = started.attempt.handle.details["job"]
    said = slurm.command("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--sort=i", "--format=%C %N")
    assert said.split() == ["1", "n1", "2", "n2"]
