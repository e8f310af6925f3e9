"""A temporary standalone cluster as a stage: what runs on it survives its losses, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from pathlib import Path

import pytest
from spark_head import INTERVAL, SMALL, lives, processes_of, ready, start_cluster

from rallypoint.frameworks.spark.cluster import SparkCluster, SparkWorkers
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.spec.entry import Function
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import Action, State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SOON = 240.0  # seconds that Spark may take to see that something came or went
EXECUTOR, WORKER, MASTER = "CoarseGrainedExecutorBackend", "deploy.worker.Worker", "deploy.master.Master"
# What makes a job small, so that a worker has room for two executors.
TINY = {"driver_memory": "512m", "executor_memory": "512m", "conf": {"spark.ui.enabled": True}}


def count(spark):
    """Return what the executors count, and where."""
    rows = spark.range(1000).repartition(4).count()
    return {"rows": rows, "master": spark.sparkContext.master, "application": spark.sparkContext.applicationId}


def wait_for(spark, marker, folder):
    """Have two tasks wait for a file, and return how many of their attempts began."""
    from pathlib import Path

    def wait(number):
        import time
        import uuid

        Path(folder, f"began-{number}-{uuid.uuid4().hex}").touch()
        while not Path(marker).exists():
            time.sleep(0.05)
        return number

    found = spark.sparkContext.parallelize(range(2), 2).map(wait).collect()
    return {"tasks": found, "began": len(list(Path(folder).glob("began-*")))}


def train(spark, marker):
    """Count in checkpoints; wait after the second one, until a retry is there."""
    import time
    from pathlib import Path

    import rallypoint

    stage = rallypoint.stage()
    latest = stage.latest_checkpoint()
    done = int(Path(latest, "done").read_text()) if latest else 0
    began = done
    while done < 4:
        done = spark.range(done + 1).count()
        stage.save_checkpoint(lambda folder, done=done: Path(folder, "done").write_text(str(done)), step=done)
        if done == 2 and began == 0:
            Path(marker).write_text(spark.sparkContext.applicationId)
            time.sleep(600)
    return {"began": began, "done": done}


async def end(engine, started):
    """Return the outcome of an attempt."""
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        last = update
    return last.outcome


def result(outcome):
    assert outcome.state is State.SUCCEEDED, outcome.failure and outcome.failure.render()
    return outcome.result


async def _is_shown(engine):
    """Return whether the progress tells of both tasks and of both workers' executors."""
    view = (await engine.inspect(1)).view
    return view.metrics.get("spark_executors") == 2 and view.total == 2


def _name_at(page):
    """Return the name of the application whose page of the REST API it is."""
    with urllib.request.urlopen(page, timeout=30) as answer:
        return json.load(answer)["name"]


def gone(processes):
    return not any(lives(process) for process in processes)


@pytest.fixture
def waiting(spark_cluster, spark_places, tmp_path, until):
    """Starts a stage whose two tasks wait on the cluster's executors, and returns how to let them go on."""

    async def begin(name):
        engine, marker, folder = spark_places(name), tmp_path / "go-on", tmp_path / "began"
        folder.mkdir()
        job = SparkJob(
            Function(wait_for, (str(marker), str(folder)), by_value=True),
            master=spark_cluster.address,
            history_server="http://history.example.com:18080",
            **TINY,
        )
        started = await engine.start(job, Request(owner="try-1"))
        watching = asyncio.create_task(end(engine, started))
        await until(lambda: len(list(folder.iterdir())) >= 2 or watching.done(), deadline=SOON)
        assert not watching.done(), watching.result().failure.render()
        return watching, marker.touch

    return begin


async def test_a_stage_runs_on_the_executors_of_its_cluster_and_leaves_none(spark_cluster, spark_places, until):
    engine = spark_places("count")
    started = await engine.start(
        SparkJob(Function(count, by_value=True), master=spark_cluster.address, **TINY), Request(owner="1")
    )
    found = result(await end(engine, started))
    assert (found["rows"], found["master"]) == (1000, spark_cluster.master)
    assert [ref["stage"][-1] for ref in started.attempt.record.uses] == ["cluster"]
    await until(lambda: not spark_cluster.applications(), deadline=SOON)
    await until(lambda: not spark_cluster.processes(EXECUTOR), deadline=SOON)
    (ended,) = [each for each in spark_cluster.state()["completedapps"] if each["id"] == found["application"]]
    assert ended["state"] == "FINISHED"


async def test_a_second_start_reattaches_and_returns_the_same_address(spark_cluster):
    again = SparkCluster(workers=2, lease=3600, **SMALL)
    engine = spark_cluster.engine
    second = await engine.start(again, Request(owner="try-2"))
    assert second.decision.action is Action.REATTACH
    assert await ready(engine, second) == spark_cluster.address


async def test_what_runs_is_seen_live_and_survives_the_loss_of_an_executor(spark_cluster, spark_places, waiting, until):
    watching, go_on = await waiting("executor")
    # Its two tasks wait: all that is shown is shown while it runs.
    engine = spark_places("executor")
    await until(lambda: _is_shown(engine), deadline=SOON)
    view = (await engine.inspect(1)).view
    (application,) = spark_cluster.applications()
    assert view.metrics["spark_application"] == application
    assert view.links["Spark history"] == f"http://history.example.com:18080/history/{application}/"
    assert _name_at(f"{view.links['Spark UI']}/api/v1/applications/{application}") == "spark/r1/executor"
    assert (view.unit, view.step) == ("task", 0)

    before = {process.pid for process in spark_cluster.processes(EXECUTOR)}
    (first, *_) = spark_cluster.processes(EXECUTOR)
    first.send_signal(signal.SIGKILL)
    await until(lambda: {each.pid for each in spark_cluster.processes(EXECUTOR)} - before, deadline=SOON)
    go_on()
    assert sorted(result(await watching)["tasks"]) == [0, 1]


async def test_a_lost_worker_is_started_anew_and_the_job_succeeds(spark_cluster, waiting, until):
    watching, go_on = await waiting("worker")
    before = spark_cluster.workers()
    (killed, *_) = [each for each in spark_cluster.processes(WORKER) if each.name() == "java"]
    killed.send_signal(signal.SIGKILL)
    await until(lambda: len(set(spark_cluster.workers()) - set(before)) == 1, deadline=SOON)
    assert len(spark_cluster.workers()) == 2
    go_on()
    assert sorted(result(await watching)["tasks"]) == [0, 1]


async def test_a_lost_driver_ends_its_application_and_the_retry_continues(spark_cluster, spark_places, tmp_path, until):
    engine, marker = spark_places("train"), tmp_path / "application"
    job = SparkJob(Function(train, (str(marker),), by_value=True), master=spark_cluster.address, **TINY)
    first = await engine.start(job, Request(owner="try-1"))
    await until(lambda: marker.exists() and marker.read_text(), deadline=SOON)
    assert marker.read_text() in spark_cluster.applications()
    run_dir = first.attempt.handle.details["run_dir"]
    lived = processes_of(run_dir)
    (driver,) = [each for each in lived if "rallypoint.frameworks.spark.driver" in each.cmdline()]
    driver.send_signal(signal.SIGKILL)
    outcome = await end(engine, first)
    assert (outcome.state, outcome.failure.kind) == (State.FAILED, Kind.RETRYABLE)
    await until(lambda: marker.read_text() not in spark_cluster.applications(), deadline=SOON)
    await until(lambda: gone(lived))

    second = await engine.start(job, Request(owner="try-2"))
    assert result(await end(engine, second)) == {"began": 2, "done": 4}


async def test_workers_that_are_added_join_and_leave_with_their_stage(spark_cluster, spark_places, until):
    engine, before = spark_places("more"), spark_cluster.workers()
    job = SparkWorkers(cluster=spark_cluster.address, workers=1, memory_per_worker="512MiB", daemon_memory="256MiB")
    started = await engine.start(job, Request(owner="try-1"))
    more = await ready(engine, started)
    assert more["master"] == spark_cluster.master
    assert [ref["stage"][-1] for ref in (more["service"], *more["uses"])] == ["more", "cluster"]
    assert len(spark_cluster.workers()) == len(before) + 1
    lived = processes_of(started.attempt.handle.details["run_dir"])
    assert await engine.cancel(1, owner=None, why="its teardown task ran")
    await until(lambda: spark_cluster.workers() == before, deadline=SOON)
    await until(lambda: gone(lived))


async def test_a_cluster_whose_master_dies_has_failed_and_a_retry_continues_on_a_new_one(spark_places, tmp_path, until):
    """The job is a retryable failure with the master's name; without this, Spark would wait for a master for ever."""
    cluster = await start_cluster(spark_places("headless"), workers=1, cores_per_worker=1)
    engine, marker = spark_places("orphan"), tmp_path / "application"
    entry = Function(train, (str(marker),), by_value=True)
    started = await engine.start(
        SparkJob(entry, master=cluster.address, connect_timeout=5, **TINY), Request(owner="try-1")
    )
    await until(lambda: marker.exists() and marker.read_text(), deadline=SOON)
    lived = cluster.processes()
    (killed,) = [each for each in cluster.processes(MASTER) if each.name() == "java"]
    killed.send_signal(signal.SIGKILL)

    async for update in cluster.engine.watch(cluster.started.attempt, interval=INTERVAL, hold=True):
        last = update
    assert (last.outcome.state, last.outcome.failure.title) == (State.FAILED, "Spark's service was lost")
    assert "the cluster's master ended with exit code 137" in last.outcome.failure.message
    assert last.outcome.failure.kind is Kind.RETRYABLE
    await until(lambda: gone(lived))

    told = await end(engine, started)
    assert (told.state, told.failure.kind) == (State.FAILED, Kind.RETRYABLE)
    assert told.failure.title == "the Spark master was lost"
    assert cluster.master.removeprefix("spark://") in told.failure.message
    await until(lambda: not processes_of(started.attempt.handle.details["run_dir"]))

    # The retry of both: another master's address is no other work.
    anew = await cluster.engine.start(SparkCluster(**{**SMALL, "workers": 1}), Request(owner="try-2"))
    address = await ready(cluster.engine, anew)
    assert address["master"] != cluster.master
    second = await engine.start(SparkJob(entry, master=address, **TINY), Request(owner="try-2"))
    assert result(await end(engine, second)) == {"began": 2, "done": 4}
    lived = processes_of(anew.attempt.handle.details["run_dir"])
    await cluster.engine.cancel(2, owner=None, why="the test has seen enough")
    await until(lambda: gone(lived))


async def test_a_cluster_that_nobody_uses_ends_when_its_lease_is_over(spark_places, until):
    engine = spark_places("forgotten")
    cluster = await start_cluster(engine, workers=1, lease=5)  # longer than the lease: who waits renews it
    lived = cluster.processes()
    assert len(lived) >= 2
    await until(lambda: gone(lived))
    shown = await engine.inspect(1)
    assert (shown.state, shown.entry.outcome.failure.title) == (State.FAILED, "lease expired")
    folder = Path(cluster.started.attempt.handle.details["run_dir"], "spark")
    assert json.dumps(sorted(path.name for path in folder.iterdir())) == '["master-0", "worker-0"]'
    assert not list(folder.glob("*/local"))
