"""Spark as a stage, on this machine: the code gets a session, a failure names its cause, a retry goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
import zipfile
from datetime import timedelta
from pathlib import Path

import pytest

from rallypoint import Function, Jar, Resources, Script, SparkJob
from rallypoint.frameworks.spark.s3a import S3A
from rallypoint.launchers.local import LocalLauncher
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

INTERVAL = timedelta(seconds=0.1)
SECRET = "hunter2-of-the-store"
S3A_SECRET = "hunter3-of-the-bucket"
# What makes a session small.
SMALL = {"master": "local[2]", "conf": {"spark.sql.shuffle.partitions": 2}}

DAG_FILE = """
import contextlib
import json
import os
import time
import urllib.request
from pathlib import Path


def look(spark, day):
    # What anybody on this host, or at the UI, sees of the job while it runs.
    rows = spark.range(1000).repartition(4).groupBy().count().collect()[0][0]
    ui = spark.sparkContext.uiWebUrl
    page = f"{ui}/api/v1/applications/{spark.sparkContext.applicationId}/environment"
    environment = urllib.request.urlopen(page, timeout=30).read().decode()
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            commands.append(path.read_bytes().decode(errors="replace"))
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    time.sleep(2.5)  # two looks of the progress
    return {
        "day": day, "rows": rows, "ui": ui, "environment": environment, "commands": commands,
        "is_set": hadoop.get("fs.custom.pin") == os.environ["PIN"], "app": spark.sparkContext.appName,
        "s3a": {key: hadoop.get(f"fs.s3a.{key}") for key in ("access.key", "endpoint", "path.style.access")},
        "s3a_secret_is_set": hadoop.get("fs.s3a.secret.key") == os.environ["S3A_SECRET_KEY"],
        "context": {key: spark.conf.get(f"spark.rallypoint.{key}") for key in ("stage", "attempt", "dataUri")},
    }


def double(spark, limit):
    from pyspark.sql.functions import udf

    @udf("long")
    def twice(number):
        if number >= limit:
            raise ValueError(f"no such tail number: {number}")
        return 2 * number

    return spark.range(8).select(twice("id").alias("n")).groupBy().sum("n").collect()[0][0]


def count(spark, marker, wait_at):
    import rallypoint

    stage = rallypoint.stage()
    latest = stage.latest_checkpoint()
    began = done = int(Path(latest, "done").read_text()) if latest else 0
    while done < 4:
        done = spark.range(done + 1).count()
        stage.save_checkpoint(lambda folder, done=done: Path(folder, "done").write_text(str(done)), step=done)
        stage.report(step=done, total=4, unit="part")
        if done == wait_at and stage.attempt == 1:
            jvm = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
            Path(marker).write_text(json.dumps({"driver": os.getpid(), "jvm": jvm}))
            time.sleep(600)
    return {"began": began, "done": done}


def wait(spark, marker):
    # Two tasks that never end: only the end of the application ends them.
    def forever(number):
        Path(marker).touch()
        time.sleep(600)
        return number

    return spark.sparkContext.parallelize(range(2), 2).map(forever).collect()


def lose_the_jvm(spark):
    import signal

    os.kill(spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid(), signal.SIGKILL)
    return spark.range(10).count()
"""


@pytest.fixture
def dag(as_dag_file):
    return as_dag_file(DAG_FILE, "spark_stages")


async def run(engine, job, owner="try-1"):
    started = await engine.start(job, Request(owner=owner))
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def succeeded(engine, job, owner="try-1"):
    update = await run(engine, job, owner)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    return update


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# The session ----------------------------------------------------------------------------------------------------------


async def test_a_function_gets_a_session_and_no_secret_of_it_is_shown(engine, dag, jobs_left, tmp_path):
    # An empty jar of the connector's name, for the settings alone: Maven, which has the true one, cannot be reached.
    connector = tmp_path / "hadoop-aws-3.5.0.jar"
    with zipfile.ZipFile(connector, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    job = SparkJob(
        Function(dag.look, (), {"day": "2026-11-24"}),
        secrets={"PIN": SECRET},
        secret_conf={"spark.hadoop.fs.custom.pin": "PIN"},
        s3a=S3A(endpoint="http://minio.example.com:9000", path_style=True, access_key="AKIA", secret_key=S3A_SECRET),
        jars=[str(connector)],
        history_server="http://history.example.com:18080/",
        resources=Resources(cpus=2),
        conf={"spark.sql.shuffle.partitions": 2},
    )
    update = await succeeded(engine, job)
    result, view = update.outcome.result, update.view
    assert (result["day"], result["rows"], result["app"]) == ("2026-11-24", 1000, "flights/r1/train")
    assert result["context"]["stage"] == "flights/r1/train"
    assert result["context"]["dataUri"].startswith("file://")
    # It is live while the job runs, and listens on this host alone.
    assert view.links["Spark UI"] == result["ui"]
    assert result["ui"].startswith(("http://127.0.0.1:", "http://localhost:"))
    application = view.metrics["spark_application"]
    assert application.startswith("local-")
    assert view.links["Spark history"] == f"http://history.example.com:18080/history/{application}/"
    assert (view.unit, view.step) == ("task", view.total)
    assert view.step >= 4
    assert view.metrics["spark_stages"] >= 1
    # The secret has reached Spark, and is in no command line, page, ledger, log or file that is left.
    assert result["is_set"] is True
    assert result["s3a"] == {
        "access.key": "AKIA", "endpoint": "http://minio.example.com:9000", "path.style.access": "true"
    }  # fmt: skip
    assert result["s3a_secret_is_set"] is True
    assert {"spark.hadoop.fs.custom.pin", "spark.hadoop.fs.s3a.secret.key"} <= set(
        re.findall(r"spark\.hadoop\.[\w.]+", result["environment"])
    )
    for secret in (SECRET, S3A_SECRET):
        assert secret not in "".join(result["commands"])
        assert secret not in result["environment"]
        holding = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert holding == []
    assert '"spark.hadoop.fs.s3a.access.key","*********(redacted)"' in result["environment"].replace(" ", "")
    assert jobs_left() == {}


async def test_a_script_makes_its_session_as_it_always_did_and_may_forget_to_stop_it(engine, script, jobs_left):
    code = """
        import sys
        import rallypoint
        from pyspark.sql import SparkSession
        if __name__ == "__main__":
            spark = SparkSession.builder.appName("mine").config("spark.sql.ansi.enabled", "true").getOrCreate()
            stage = rallypoint.stage()
            for part in range(2):
                stage.report(step=part + 1, total=2, unit="part", rows=spark.range(100).count())
            stage.result({"argument": sys.argv[1], "app": spark.sparkContext.appName,
                          "partitions": spark.conf.get("spark.sql.shuffle.partitions"),
                          "ansi": spark.conf.get("spark.sql.ansi.enabled")})
    """
    update = await succeeded(engine, SparkJob(Script(script(code), ("--fast",)), **SMALL))
    # A builder's own settings count, as they do without Rallypoint.
    assert update.outcome.result == {"argument": "--fast", "app": "mine", "partitions": "2", "ansi": "true"}
    assert (update.view.unit, update.view.step, update.view.total) == ("part", 2, 2)
    assert jobs_left() == {}


async def test_a_jar_is_run_by_spark_submit(engine, counting_jar, tmp_path, jobs_left):
    witness = tmp_path / "counted"
    job = SparkJob(Jar(str(counting_jar), "Counting", (str(witness),)), env={"GREETING": "hello"}, **SMALL)
    update = await succeeded(engine, job)
    assert witness.read_text() == "1000 hello\n"
    assert update.outcome.result is None
    assert jobs_left() == {}


# Failures -------------------------------------------------------------------------------------------------------------


async def test_a_jar_that_throws_names_its_exception(engine, counting_jar, tmp_path, jobs_left):
    (tmp_path / "go").touch()
    words = (str(tmp_path / "counted"), str(tmp_path / "go"), "no rows of that day")
    failure = (await run(engine, SparkJob(Jar(str(counting_jar), "Counting", words), **SMALL))).outcome.failure
    assert (failure.exception, failure.exit_code) == ("java.lang.IllegalStateException", 1)
    assert "no rows of that day" in failure.message
    assert failure.kind is not Kind.USER
    assert jobs_left() == {}


async def test_an_exception_in_a_task_is_the_cause(engine, dag):
    failure = (await run(engine, SparkJob(Function(dag.double, (), {"limit": 5}), **SMALL))).outcome.failure
    assert (failure.exception, failure.message) == ("ValueError", "no such tail number: 5")
    assert 'raise ValueError(f"no such tail number: {number}")' in failure.traceback
    assert "in twice" in failure.traceback
    assert "DAGScheduler" not in failure.traceback


async def test_a_query_that_spark_cannot_analyse_is_a_user_error(engine, script):
    code = """
        from pyspark.sql import SparkSession
        SparkSession.builder.getOrCreate().table("no_such_table").count()
    """
    failure = (await run(engine, SparkJob(Script(script(code)), **SMALL))).outcome.failure
    assert (failure.kind, failure.title) == (Kind.USER, "Spark cannot analyse the query")
    assert "no_such_table" in failure.message


async def test_a_jvm_that_was_killed_may_be_retried(engine, dag, jobs_left):
    failure = (await run(engine, SparkJob(Function(dag.lose_the_jvm), **SMALL))).outcome.failure
    assert (failure.kind, failure.signal) == (Kind.RETRYABLE, "SIGKILL")
    assert failure.title == "Spark's driver was lost"
    assert jobs_left() == {}


async def test_s3a_without_hadoops_connector_is_told_before_spark_starts(engine, script):
    job = SparkJob(Script(script("raise SystemExit(3)")), conf={"spark.hadoop.fs.s3a.endpoint": "minio:9000"})
    failure = (await run(engine, job)).outcome.failure
    assert (failure.kind, failure.title) == (Kind.USER, "Spark cannot start here")
    assert "org.apache.hadoop:hadoop-aws:" in failure.message
    assert "packages=[" in failure.message


# The promises ---------------------------------------------------------------------------------------------------------


async def test_a_driver_that_was_killed_leaves_no_jvm_and_the_retry_continues(engine, dag, tmp_path, until, jobs_left):
    marker = tmp_path / "waiting"
    job = SparkJob(Function(dag.count, (), {"marker": str(marker), "wait_at": 2}), **SMALL)
    started = await engine.start(job, Request(owner="try-1"))
    await until(lambda: marker.exists() and marker.read_text(), deadline=120)
    pids = json.loads(marker.read_text())
    os.kill(pids["driver"], signal.SIGKILL)
    last = [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]
    failure = last.outcome.failure
    assert (failure.kind, failure.signal, failure.title) == (Kind.RETRYABLE, "SIGKILL", "killed")
    await until(lambda: not lives(pids["jvm"]))
    assert jobs_left() == {}
    update = await succeeded(engine, job, "try-2")
    assert update.outcome.result == {"began": 2, "done": 4}
    # What the code reports itself is the progress.
    assert (update.view.unit, update.view.step, update.view.total) == ("part", 4, 4)


async def test_a_cancelled_stage_is_gone_from_the_cluster(spark_cluster, dag, tmp_path, until, jobs_left):
    def applications(kind):
        page = f"{spark_cluster.address['ui']}/json/"
        with urllib.request.urlopen(page, timeout=30) as answer:
            return {each["id"]: each["state"] for each in json.load(answer)[kind]}

    engine = Engine(Store.open(tmp_path / "store"), StageKey(("d", "r", "wait")), LocalLauncher(tmp_path / "runs"))
    marker = tmp_path / "running"
    job = SparkJob(
        Function(dag.wait, (), {"marker": str(marker)}), master=spark_cluster.address, executor_memory="512m"
    )
    started = await engine.start(job, Request(owner="try-1"))
    await until(marker.exists, deadline=180)
    (mine,) = applications("activeapps")
    assert await engine.cancel(1, owner="try-1", why="the test has seen enough")
    last = [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]
    assert last.outcome.state is State.CANCELLED
    await until(lambda: mine not in applications("activeapps"))
    # It was asked to stop, and not only missed: a driver that vanishes leaves the same state, but tasks behind it.
    assert applications("completedapps")[mine] == "FINISHED"
    assert last.view.metrics["spark_application"] == mine
    assert jobs_left() == {}
