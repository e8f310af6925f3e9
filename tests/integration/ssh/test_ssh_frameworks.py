"""Other frameworks on the same two hosts: their processes find each other by the hosts' addresses."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from spark_head import SMALL

from rallypoint import Function, RayJob, Script, SparkJob, TensorFlowJob
from rallypoint.frameworks.ray.cluster import RayCluster
from rallypoint.frameworks.spark.cluster import SparkCluster
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(480)]

INTERVAL = timedelta(seconds=0.3)


@pytest.fixture
def stage_of(store, launcher):
    return lambda name: Engine(store, StageKey(("flights", "r1", name)), launcher)


async def result(engine, job):
    started = await engine.start(job, Request(owner="try-1"))
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        last = update
    assert last.outcome.state is State.SUCCEEDED, last.outcome.failure.render()
    return last.outcome.result


@asynccontextmanager
async def service(engine, job):
    """Start a service, yield its address, and stop it."""
    started = await engine.start(job, Request(owner="try-1"))
    try:
        async for update in engine.watch(started.attempt, interval=INTERVAL):
            last = update
        assert last.outcome is None, last.outcome.failure.render()
        yield last.ready
    finally:
        await engine.cancel(started.attempt.record.number, owner=None, why="the test ends", grace=timedelta(seconds=5))


MIRRORED = """
    import json, os
    import tensorflow as tf
    import rallypoint
    from rallypoint.frameworks.tensorflow import strategy

    stage, mirrored = rallypoint.stage(), strategy()
    one = lambda: tf.distribute.get_replica_context().all_reduce("sum", tf.constant(1.0))
    replica = tf.function(lambda: mirrored.run(one))
    stage.result({"sum": float(replica()), "cluster": json.loads(os.environ["TF_CONFIG"])["cluster"]})
"""


async def test_tensorflow_has_the_addresses_of_both_hosts(stage_of, script, hosts):
    job = TensorFlowJob(Script(script(MIRRORED)), strategy="multi_worker_mirrored", workers=2, join_timeout=120.0)
    found = await result(stage_of("train"), job)
    assert found["sum"] == 2.0
    workers = [address.rpartition(":")[0] for address in found["cluster"]["worker"]]
    assert workers == [host.address for host in hosts]


def count(spark):
    """Return what is counted by executors, and on which hosts they are."""
    scheduler = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
    rows = spark.range(1000).repartition(4).count()
    return {"rows": rows, "executors": sorted({info.host() for info in scheduler})}


async def test_a_spark_cluster_has_a_worker_on_each_host(stage_of, hosts):
    async with service(stage_of("cluster"), SparkCluster(workers=2, **SMALL)) as address:
        assert address["master"].startswith(f"spark://{hosts[0].address}:")
        options = {"driver_memory": "512m", "executor_memory": "512m"}
        job = SparkJob(Function(count, by_value=True), master=address, **options)
        found = await result(stage_of("count"), job)
        assert found["rows"] == 1000
        assert {host.address for host in hosts} <= set(found["executors"])


def where():
    """Return the addresses of the nodes that tasks ran on."""
    import time

    import ray

    @ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    def here():
        time.sleep(0.5)
        return ray.util.get_node_ip_address()

    return sorted(set(ray.get([here.remote() for _ in range(8)], timeout=120)))


async def test_a_ray_cluster_has_a_node_on_each_host(stage_of, hosts):
    small = {"object_store_memory": "80MiB", "start_timeout": 240.0, "env": {"TMPDIR": "/tmp"}}
    async with service(stage_of("cluster"), RayCluster(workers=1, **small)) as address:
        found = await result(stage_of("where"), RayJob(Function(where, by_value=True), address=address))
        assert found == sorted(host.address for host in hosts)
