"""A Spark Connect server as a stage, and a job whose Python has only ``pyspark-client``."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest
from spark_head import INTERVAL, lives, processes_of, ready

from rallypoint.frameworks.spark.connect_server import SparkConnectServer
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[3]
SECRET = "hunter2-of-the-server"
UV = Path(sys.executable).parent / "uv"
SCRIPT = """
    from pathlib import Path

    import pyspark
    from pyspark.sql import SparkSession

    import rallypoint

    spark = SparkSession.builder.getOrCreate()
    rallypoint.stage().result({
        "rows": spark.range(1000).repartition(4).count(),
        "remote": type(spark).__module__,
        "jars": Path(pyspark.__file__).parent.joinpath("jars").exists(),
    })
"""


@pytest.fixture(scope="module")
def client_python(tmp_path_factory) -> str:
    """A Python with pyspark-client and what it needs, and without Spark itself."""
    folder = tmp_path_factory.mktemp("client")
    python = str(folder / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([str(UV), "pip", "install", "-q", "--python", python, *constraints, "pyspark-client"], check=True)
    return python


def environment_page(ui):
    """Return what the UI of the server's one application says of its properties."""

    def read(path):
        with urllib.request.urlopen(f"{ui}/api/v1/applications{path}", timeout=60) as answer:
            return answer.read().decode()

    (application,) = json.loads(read(""))
    return read(f"/{application['id']}/environment")


async def test_a_job_with_the_client_alone_runs_on_a_connect_server(client_python, spark_places, script, until):
    engine, jobs = spark_places("connect"), spark_places("client")
    server = SparkConnectServer(
        master="local[2]",
        driver_memory="700m",
        start_timeout=240,
        secret_conf={"spark.hadoop.fs.custom.pin": "PIN"},
        secrets={"PIN": SECRET},
    )
    started = await engine.start(server, Request(owner="try-1"))
    address = await ready(engine, started)
    lived = processes_of(started.attempt.handle.details["run_dir"])
    assert "fs.custom.pin" in environment_page(address["ui"])
    assert SECRET not in environment_page(address["ui"])

    # Neither Java nor Spark is on the path of the client.
    job = SparkJob(
        script(textwrap.dedent(SCRIPT)),
        connect=address["remote"],
        uses=[address],
        python=client_python,
        env={"PATH": str(Path(client_python).parent), "JAVA_HOME": "", "SPARK_HOME": ""},
    )
    run = await jobs.start(job, Request(owner="try-1"))
    async for update in jobs.watch(run.attempt, interval=INTERVAL):
        last = update
    assert last.outcome.state is State.SUCCEEDED, last.outcome.failure and last.outcome.failure.render()
    assert last.outcome.result == {"rows": 1000, "remote": "pyspark.sql.connect.session", "jars": False}

    assert await engine.cancel(1, owner=None, why="its teardown task ran")
    await until(lambda: not any(lives(process) for process in lived))
