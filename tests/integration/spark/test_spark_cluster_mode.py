"""A jar in cluster mode on a real standalone cluster: its driver runs there, and never twice."""

from __future__ import annotations

import json
import signal
import urllib.request

import pytest
from spark_head import INTERVAL, processes_of

from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.spec.entry import Jar
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SOON = 240.0  # seconds that Spark may take for what it was asked
TINY = {"driver_memory": "512m", "executor_memory": "512m", "total_executor_cores": 1}


@pytest.fixture
def job(spark_cluster, counting_jar, tmp_path):
    """Returns the job of a jar that writes ``counted``, and then waits for the files that it is given."""

    def make(*args):
        words = [str(tmp_path / "counted"), *map(str, args)]
        return SparkJob(
            Jar(str(counting_jar), "Counting", words),
            master=spark_cluster.address,
            deploy_mode="cluster",
            secrets={"GREETING": "hunter2"},
            **TINY,
        )

    return make


def driver_state(cluster, driver):
    """Return what the master's REST server says of a driver."""
    with urllib.request.urlopen(f"{cluster.address['rest']}/v1/submissions/status/{driver}", timeout=10) as answer:
        return json.load(answer)["driverState"]


def drivers(cluster):
    return [each["id"] for each in cluster.state()["activedrivers"]]


async def end(engine, started):
    """Return the outcome of an attempt."""
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        last = update
    return last.outcome


async def test_a_jar_succeeds_when_its_driver_on_the_cluster_did(spark_cluster, spark_places, job, tmp_path):
    engine = spark_places("jar")
    outcome = await end(engine, await engine.start(job(), Request(owner="try-1")))
    assert outcome.state is State.SUCCEEDED, outcome.failure and outcome.failure.render()
    assert driver_state(spark_cluster, outcome.result["application"]) == "FINISHED"
    # The secret is in the driver's environment, and on no command line.
    assert (tmp_path / "counted").read_text() == "1000 hunter2\n"
    assert outcome.result["links"] == {"Spark master": spark_cluster.address["ui"]}


async def test_a_driver_that_fails_fails_its_stage(spark_cluster, spark_places, job, tmp_path):
    engine, go_on = spark_places("broken"), tmp_path / "go-on"
    go_on.touch()
    outcome = await end(engine, await engine.start(job(go_on, "the-model-diverged"), Request(owner="try-1")))
    assert (outcome.state, outcome.failure.title) == (State.FAILED, "the application failed")
    (ended,) = [each["id"] for each in spark_cluster.state()["completeddrivers"] if each["state"] == "FAILED"]
    assert ended in outcome.failure.message


async def test_a_driver_whose_tracker_died_is_ended_before_the_retry_submits(
    spark_cluster, spark_places, job, tmp_path, until
):
    engine, go_on = spark_places("untracked"), tmp_path / "go-on"
    first = await engine.start(job(go_on), Request(owner="try-1"))
    await until((tmp_path / "counted").exists, deadline=SOON)
    (old,) = drivers(spark_cluster)
    run_dir = first.attempt.handle.details["run_dir"]
    (tracker,) = [
        each for each in processes_of(run_dir) if "rallypoint.frameworks.spark.cluster_mode" in each.cmdline()
    ]
    tracker.send_signal(signal.SIGKILL)
    outcome = await end(engine, first)
    assert (outcome.state, outcome.failure.kind) == (State.FAILED, Kind.RETRYABLE)
    assert drivers(spark_cluster) == [old]

    second = await engine.start(job(go_on), Request(owner="try-2"))
    await until(lambda: len((tmp_path / "counted").read_text().splitlines()) == 2, deadline=SOON)
    assert driver_state(spark_cluster, old) == "KILLED"
    (new,) = drivers(spark_cluster)
    go_on.touch()
    outcome = await end(engine, second)
    assert outcome.state is State.SUCCEEDED, outcome.failure and outcome.failure.render()
    assert outcome.result["application"] == new != old


async def test_a_cancelled_stage_leaves_no_driver_on_the_cluster(spark_cluster, spark_places, job, tmp_path, until):
    engine = spark_places("cancelled")
    await engine.start(job(tmp_path / "never"), Request(owner="try-1"))
    await until((tmp_path / "counted").exists, deadline=SOON)
    (driver,) = drivers(spark_cluster)
    assert await engine.cancel(1, owner=None, why="somebody pressed Stop")
    assert (await engine.read(1)).outcome.state is State.CANCELLED
    assert driver_state(spark_cluster, driver) == "KILLED"
    await until(
        lambda: not spark_cluster.applications() and not spark_cluster.processes("DriverWrapper"), deadline=SOON
    )
