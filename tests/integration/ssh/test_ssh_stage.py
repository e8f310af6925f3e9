"""A stage on hosts that share nothing with the orchestrator but a bucket: its record, events, checkpoints, result."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta

import pytest

from rallypoint import Function, PythonJob
from rallypoint.errors import StageUserError
from rallypoint.launchers.ssh import SSHLauncher
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import Action, State
from rallypoint.stages.store import Store

INTERVAL = timedelta(seconds=0.2)
KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing-secret-key", "region": "us-east-1"}


def count(until):
    """Count in checkpoints; the first attempt dies on its way."""
    import os
    import signal
    from pathlib import Path

    import rallypoint

    stage = rallypoint.stage()
    latest = stage.latest_checkpoint()
    began = done = int(Path(latest, "done").read_text()) if latest else 0
    while done < until:
        done += 1
        stage.save_checkpoint(lambda folder, done=done: Path(folder, "done").write_text(str(done)), step=done)
        stage.report(step=done, total=until)
        if done == 2 and began == 0:
            print("two is enough for a first try", flush=True)  # noqa: T201 - what it leaves in its log
            os.kill(os.getpid(), signal.SIGKILL)
    return {"began": began, "done": done, "ssh": os.environ["SSH_CONNECTION"].split()[2]}


def wait_for_ever():
    """Say something and wait."""
    import signal

    print("still here", flush=True)  # noqa: T201 - what is left of it
    while True:
        signal.pause()


@pytest.fixture
def bucket(network):
    """The options of a bucket on the orchestrator's side of the network, which the hosts reach."""
    import boto3
    from moto.server import ThreadedMotoServer
    from net_hosts import NETWORK

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(f"{NETWORK}.1", 0, verbose=False)
    server.start()
    options = {**KEYS, "endpoint_url": "http://{}:{}".format(*server.get_host_and_port())}
    client = boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=KEYS["aws_access_key_id"],
        aws_secret_access_key=KEYS["aws_secret_access_key"],
        region_name=KEYS["region"],
    )
    client.create_bucket(Bucket="hosts")
    yield f"s3://hosts/{uuid.uuid4().hex}", options
    server.stop()


async def watched(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1].outcome


async def test_a_stage_continues_on_another_host_from_the_bucket(uri, network, hosts, bucket):
    store, options = bucket
    launcher = SSHLauncher.from_uri(uri(), {"client_keys": str(network.key)})
    engine = Engine(Store.open(store, options=options), StageKey(("flights", "r1", "count")), launcher)
    job = PythonJob(Function(count, (4,), by_value=True))
    first = await engine.start(job, Request(owner="try-1"))
    failure = (await watched(engine, first)).failure
    assert (failure.signal, failure.kind) == ("SIGKILL", Kind.RETRYABLE)
    assert failure.last_lines[-1:] == ("two is enough for a first try",)
    hosts[0].kill()  # half of the hosts are enough for a launch
    second = await engine.start(job, Request(owner="try-2"))
    assert second.decision.action is Action.LAUNCH
    outcome = await watched(engine, second)
    assert outcome.state is State.SUCCEEDED, outcome.failure.render()
    assert (outcome.result["began"], outcome.result["done"]) == (2, 4)
    assert outcome.result["ssh"] == hosts[1].address


async def test_what_a_lost_host_had_printed_is_read_from_the_bucket(uri, network, hosts, bucket, until):
    store, options = bucket
    launcher = SSHLauncher.from_uri(uri(), {"client_keys": str(network.key)})
    engine = Engine(Store.open(store, options=options), StageKey(("flights", "r1", "wait")), launcher)
    started = await engine.start(PythonJob(Function(wait_for_ever, by_value=True)), Request(owner="try-1"))

    async def kept():
        return await engine.store.list(engine.ledger.logs_prefix(1))

    await until(kept)
    hosts[0].kill()
    assert (await watched(engine, started)).state is State.LOST
    assert await engine.tail(1, "main-0", 1000) == "still here\n"


async def test_what_a_host_lacks_is_the_users_to_correct(engine, hosts):
    job = PythonJob(Function(count, (4,), by_value=True), python="/no/such/python")
    with pytest.raises(StageUserError, match=r"expected the path of a Python interpreter"):
        await engine.start(job, Request(owner="try-1"))
