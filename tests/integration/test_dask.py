"""Dask as a stage: the code gets a connected client, and a retry computes only what is missing."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from rallypoint import DaskClusterClass, DaskJob, Function, Resources, Script
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

pytestmark = pytest.mark.engine

INTERVAL = timedelta(seconds=0.1)
SMALL = Resources(cpus=1, memory="1GiB")

DAG_FILE = """
from pathlib import Path


def where(path, client):
    info = client.scheduler_info()
    return {"path": path, "address": client.scheduler.address, "workers": len(info["workers"]),
            "total": client.submit(sum, [1, 2, 3]).result()}


def _one(number, folder):
    import pandas as pd

    with open(Path(folder, "computed"), "a") as file:
        file.write(f"{number}\\n")
    if number == 2 and Path(folder, "broken").exists():
        raise OSError("the source of partition 2 is down")
    return pd.DataFrame({"number": [number], "square": [number * number]})


def squares(folder):
    import dask.dataframe as dd
    import pandas as pd

    from rallypoint.frameworks.dask.partitions import write_partitions

    meta = pd.DataFrame({"number": pd.Series(dtype="int64"), "square": pd.Series(dtype="int64")})
    return {"uri": write_partitions(dd.from_map(_one, range(4), folder=folder, meta=meta), "squares")}
"""


@pytest.fixture
def dag(as_dag_file):
    return as_dag_file(DAG_FILE, "processing")


async def run(engine, job, owner="try-1"):
    started = await engine.start(job, Request(owner=owner))
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def succeeded(engine, job, owner="try-1"):
    update = await run(engine, job, owner)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    return update


# The client ----------------------------------------------------------------------------------------------------------


async def test_a_function_gets_a_client_of_a_local_cluster(engine, dag, jobs_left):
    update = await succeeded(engine, DaskJob(Function(dag.where, ("s3://flights",)), resources=Resources(cpus=2)))
    result = update.outcome.result
    assert (result["path"], result["workers"], result["total"]) == ("s3://flights", 2, 6)
    assert update.view.links["Dask dashboard"].startswith("http://127.0.0.1:")
    assert jobs_left() == {}


async def test_a_script_calls_client_without_arguments(engine, script):
    code = """
        import os
        import rallypoint
        from distributed import Client
        if __name__ == "__main__":
            with Client() as client:
                info = client.scheduler_info()
                same = client.scheduler.address == os.environ["DASK_SCHEDULER_ADDRESS"]
                rallypoint.stage().result({"same": same, "workers": len(info["workers"])})
    """
    update = await succeeded(engine, DaskJob(Script(script(code)), resources=SMALL))
    assert update.outcome.result == {"same": True, "workers": 1}


async def test_a_running_scheduler_is_used_and_stays(engine, dag):
    from distributed import Client, LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1"}
    async with (
        LocalCluster(asynchronous=True, **options) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        address = cluster.scheduler_address
        update = await succeeded(engine, DaskJob(Function(dag.where, ("x",)), cluster=address))
        assert update.outcome.result == {"path": "x", "address": address, "workers": 1, "total": 6}
        assert await client.submit(sum, [4, 5]) == 9


async def test_a_cluster_is_made_for_the_attempt_and_closed_with_it(engine, dag, jobs_left):
    options = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1"}
    cluster = DaskClusterClass(cls="distributed.LocalCluster", kwargs=options, workers=1)
    update = await succeeded(engine, DaskJob(Function(dag.where, ("x",)), cluster=cluster))
    assert update.outcome.result["total"] == 6
    assert jobs_left() == {}


async def test_a_scheduler_that_does_not_answer_is_named_with_what_to_do(engine, dag):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    failure = (
        await run(engine, DaskJob(Function(dag.where, ("x",)), cluster=address, connect_timeout=1))
    ).outcome.failure
    assert failure.exception.endswith("SchedulerUnreachableError")
    assert f"got the Dask scheduler {address}, at which nothing answered within 1 s" in failure.message
    assert failure.kind is not Kind.USER


async def test_a_cluster_class_that_is_not_there_is_a_user_error(engine, dag):
    cluster = DaskClusterClass(cls="no_such_package.SlurmCluster")
    failure = (await run(engine, DaskJob(Function(dag.where, ("x",)), cluster=cluster))).outcome.failure
    assert (failure.kind, failure.title) == (Kind.USER, "the entry cannot be loaded")
    assert "no_such_package.SlurmCluster" in failure.message


# Partitions ----------------------------------------------------------------------------------------------------------


async def test_a_retry_computes_only_the_partitions_that_are_missing(engine, dag, tmp_path):
    import pandas as pd

    job = DaskJob(Function(dag.squares, (str(tmp_path),)), resources=SMALL)
    computed = tmp_path / "computed"
    (tmp_path / "broken").touch()
    failure = (await run(engine, job)).outcome.failure
    assert (failure.exception, failure.message) == ("OSError", "the source of partition 2 is down")
    kept = {int(path.name[-5:]) for path in tmp_path.glob("store/stages/**/partitions/squares/part-*")}
    assert kept <= {0, 1, 3}
    (tmp_path / "broken").unlink()
    computed.write_text("")
    update = await succeeded(engine, job, "try-2")
    assert sorted(map(int, computed.read_text().split())) == sorted({0, 1, 2, 3} - kept)
    folder = Path(unquote(urlsplit(update.outcome.result["uri"]).path))
    assert sorted(path.name for path in folder.glob("*.parquet")) == [f"part-0000{n}.parquet" for n in range(4)]
    whole = pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("*.parquet")))
    assert whole["square"].tolist() == [0, 1, 4, 9]
    assert (update.view.step, update.view.total) == (4, 4)
