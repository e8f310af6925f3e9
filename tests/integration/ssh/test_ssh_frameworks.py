"""Frameworks on two hosts: each finds its processes at the addresses that the hosts have for each other."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from rallypoint import DaskCluster, DaskJob, Function, RayCluster, RayJob, SparkCluster, SparkJob, TensorFlowJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

INTERVAL = timedelta(seconds=0.2)
JOBS = """
def here():
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.77.0.1", 9))
        return probe.getsockname()[0]


def wait_here(seconds):
    import time

    time.sleep(seconds)
    return here()


def tensorflow(strategy):
    import json
    import os

    import tensorflow as tf

    def mine():
        return tf.distribute.get_replica_context().replica_id_in_sync_group

    total = strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(mine), axis=None)
    cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
    return {"total": int(total), "replicas": strategy.num_replicas_in_sync, "cluster": cluster, "here": here()}


def ray():
    import ray

    @ray.remote(num_cpus=1)
    def where(seconds):
        return wait_here(seconds)

    return {"hosts": sorted(set(ray.get([where.remote(2) for _ in range(4)], timeout=240)))}


def spark(spark):
    spark.sparkContext.setLogLevel("WARN")
    found = spark.sparkContext.parallelize(range(8), 8).map(lambda _: wait_here(1)).collect()
    return {"hosts": sorted(set(found)), "rows": spark.range(1000).repartition(4).count()}


def dask(client):
    futures = client.map(wait_here, [2.0, 2.1, 2.2, 2.3], pure=False)
    return {"hosts": sorted(set(client.gather(futures))), "total": client.submit(sum, range(10)).result()}
"""


@pytest.fixture
def jobs(as_dag_file):
    return as_dag_file(JOBS, "frameworks")


@pytest.fixture
def place(store, launcher):
    """Makes the engine of a stage on the hosts."""
    return lambda name: Engine(store, StageKey(("flights", "r1", name)), launcher)


@pytest.fixture
def addresses(hosts):
    return sorted(host.address for host in hosts)


async def succeeded(engine, job):
    started = await engine.start(job, Request(owner="try-1"))
    outcome = [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1].outcome
    assert outcome.state is State.SUCCEEDED, outcome.failure.render()
    return outcome.result


@pytest.fixture
def running(place):
    """Runs a service on the hosts while a block lasts, and yields its address object."""

    @asynccontextmanager
    async def go(service):
        engine = place("cluster")
        started = await engine.start(service, Request(owner="try-1"))
        try:
            async for update in engine.watch(started.attempt, interval=INTERVAL):
                last = update
            assert last.outcome is None, last.outcome.failure.render()
            yield last.ready
        finally:
            await engine.cancel(started.attempt.record.number, owner=None, why="the test is over")
        assert (await engine.inspect(started.attempt.record.number)).state is State.CANCELLED

    return go


async def test_workers_of_tensorflow_reduce_over_the_hosts(place, jobs, addresses):
    job = TensorFlowJob(
        Function(jobs.tensorflow),
        strategy="multi_worker_mirrored",
        workers=2,
        communication="ring",
    )
    result = await succeeded(place("train"), job)
    assert (result["total"], result["replicas"], result["here"]) == (1, 2, addresses[0])
    assert sorted(address.partition(":")[0] for address in result["cluster"]) == addresses


async def test_a_dask_cluster_has_its_workers_on_the_hosts(running, place, jobs, addresses):
    async with running(DaskCluster(workers=2, memory_per_worker="512MiB", start_timeout=240.0)) as cluster:
        assert cluster["address"].startswith(f"tcp://{addresses[0]}:")
        result = await succeeded(place("count"), DaskJob(Function(jobs.dask), cluster=cluster))
        assert result == {"hosts": addresses, "total": 45}


async def test_a_spark_cluster_has_its_executors_on_the_hosts(running, place, jobs, addresses):
    cluster = SparkCluster(workers=2, memory_per_worker="512MiB", daemon_memory="256MiB", start_timeout=240.0)
    async with running(cluster) as address:
        assert address["master"].startswith(f"spark://{addresses[0]}:")
        small = {"driver_memory": "512m", "executor_memory": "512m"}
        job = SparkJob(Function(jobs.spark), master=address, connect_timeout=240.0, **small)
        assert await succeeded(place("count"), job) == {"hosts": addresses, "rows": 1000}


async def test_a_ray_cluster_has_its_nodes_on_the_hosts(running, place, jobs, addresses):
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="rp-", dir="/tmp")  # short: Ray's sockets lie below it
    options = {"object_store_memory": "80MiB", "start_timeout": 300.0, "env": {"TMPDIR": folder}}
    try:
        async with running(RayCluster(workers=1, head_cpus=1, **options)) as cluster:
            assert cluster["address"].startswith(f"{addresses[0]}:")
            job = RayJob(Function(jobs.ray), address=cluster, connect_timeout=120.0)
            assert await succeeded(place("count"), job) == {"hosts": addresses}
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
