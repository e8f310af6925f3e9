"""Code with a connected Ray as a stage: on a Ray of its own, and on a cluster that was there before."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from rallypoint import Function, RayJob, Resources
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

INTERVAL = timedelta(seconds=0.1)
DEADLINE = 240.0  # seconds that a Ray may take to start on a busy machine


async def finish(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def run(engine, job, owner="try-1"):
    return await finish(engine, await engine.start(job, Request(owner=owner)))


def entry(call, *args, **kwargs):
    return Function(call, args, kwargs, by_value=True)


def squares(count):
    import hashlib
    import os
    from pathlib import Path

    import ray

    import rallypoint

    @ray.remote
    def square(number):
        stage = rallypoint.stage()
        stage.save_artifact(lambda folder: Path(folder, str(number)).touch(), name=f"square-{number}")
        token = hashlib.sha256(os.environ["TOKEN"].encode()).hexdigest()
        return {"square": number * number, "stage": stage.name, "token": token, "of": os.environ["FROM"]}

    rallypoint.stage().report(step=1, total=1, cpus=ray.cluster_resources()["CPU"])
    return ray.get([square.remote(number) for number in range(count)])


def broken():
    import ray

    @ray.remote
    def divide(number):
        return "one" / number

    return ray.get(divide.remote(0))


def waits(folder):
    import time
    from pathlib import Path

    import ray

    @ray.remote
    def wait():
        Path(folder, "task.waits").touch()
        while True:
            time.sleep(0.1)

    ray.get(wait.remote())


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _artifacts(folder):
    return sorted(path.name for path in folder.glob("store/stages/**/artifacts/square-*"))


async def test_a_function_runs_with_a_ray_of_its_own_that_is_gone_afterwards(engine, tmp_path, jobs_left):
    job = RayJob(entry(squares, 2), secrets={"TOKEN": "hunter2"}, env={"FROM": "here"}, resources=Resources(cpus=2))
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    row = {"stage": "flights/r1/train", "token": _digest("hunter2"), "of": "here"}
    assert update.outcome.result == [{"square": 0, **row}, {"square": 1, **row}]
    assert _artifacts(tmp_path) == ["square-0", "square-1"]
    assert update.view.metrics["cpus"] == 2
    assert update.view.links["Ray dashboard"].startswith("http://127.0.0.1:")
    assert jobs_left() == {}


async def test_a_killed_driver_takes_its_ray_with_it(engine, tmp_path, until, jobs_left):
    job = RayJob(entry(waits, str(tmp_path)), dashboard=False, resources=Resources(cpus=1))
    started = await engine.start(job, Request(owner="try-1"))
    await until((tmp_path / "task.waits").exists, deadline=DEADLINE)
    drivers = [pid for pid, line in jobs_left().items() if "frameworks.ray.driver" in line]
    assert len(jobs_left()) > 3
    os.kill(drivers[0], signal.SIGKILL)
    failure = (await finish(engine, started)).outcome.failure
    assert (failure.process, failure.signal, failure.kind) == ("driver-0", "SIGKILL", Kind.RETRYABLE)
    assert jobs_left() == {}


async def test_a_cluster_that_is_there_is_used_and_shows_no_secret(engine, ray_head, tmp_path):
    job = RayJob(
        entry(squares, 1),
        address={"address": ray_head.address, "dashboard_url": ray_head.dashboard_url},
        secrets={"TOKEN": "a-secret-of-the-job"},
        env={"FROM": "afar"},
    )
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    row = {"stage": "flights/r1/train", "token": _digest("a-secret-of-the-job"), "of": "afar"}
    assert update.outcome.result == [{"square": 0, **row}]
    assert _artifacts(tmp_path) == ["square-0"]
    shown = json.dumps([ray_head.get("/api/jobs/"), ray_head.get("/api/v0/workers?limit=1000&detail=true")])
    assert "a-secret-of-the-job" not in shown
    assert "a-secret-of-the-job" not in "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*.json*") if path.is_file()
    )


async def test_what_a_task_raises_is_named_as_the_users_own_error(engine, ray_head):
    failure = (await run(engine, RayJob(entry(broken), address=ray_head.address))).outcome.failure
    assert (failure.kind, failure.exception) == (Kind.USER, "TypeError")
    assert "unsupported operand" in failure.headline
    assert 'return "one" / number' in failure.traceback
    assert "RayTaskError" not in failure.headline


async def test_an_address_at_which_nothing_answers_is_named_with_what_to_do(engine):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    failure = (await run(engine, RayJob(entry(broken), address=address, connect_timeout=1))).outcome.failure
    assert failure.exception.endswith("ClusterUnreachableError")
    assert f"got the Ray address {address}, at which nothing answered within 1 s" in failure.message
    assert failure.kind is Kind.RETRYABLE


async def test_a_script_finds_ray_initialised(engine, ray_head, script):
    code = """
        import ray
        import rallypoint
        rallypoint.stage().result({"nodes": len(ray.nodes()), "initialised": ray.is_initialized()})
    """
    update = await run(engine, RayJob(script(code), address=ray_head.address))
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result["initialised"] is True
    assert Path(script(code)).exists()
