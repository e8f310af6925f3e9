"""Logs of a stage whose store is a bucket: they are there when the host is not, and keep no attempt from its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import psutil
import pytest

from rallypoint import Function, PythonJob
from rallypoint.launchers.base import Phase
from rallypoint.launchers.local import LocalLauncher
from rallypoint.spec.gang import Secret
from rallypoint.stages.attempt import Request
from rallypoint.stages.retention import Policy, What, remove, survey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store
from rallypoint.worker import context
from rallypoint.worker.log_upload import LAST_WORD

ID = "rp-train-0123456789-a1"


def work(gate):
    """Say something, and wait for the gate."""
    import os
    import select

    print("said before the gate", flush=True)  # noqa: T201 - what is looked for
    if gate:
        select.select([os.open(gate, os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
    print("last words", flush=True)  # noqa: T201 - likewise
    if gate:
        raise RuntimeError("the gate is open")
    return {"done": True}


@pytest.fixture
def store(s3_store_uri):
    uri, options = s3_store_uri
    return Store.open(uri, options=options)


@pytest.fixture
def uploaders(tmp_path):
    """Returns the processes that upload logs of this test's attempts."""

    def find():
        found = []
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if "rallypoint.worker.log_upload" in line and any(word.startswith(str(tmp_path)) for word in line):
                found.append(process)
        return found

    return find


async def finished(engine, job):
    started = await engine.start(job, Request(owner="try-1"))
    return [update async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.1))][-1].outcome


async def kept(store, engine, number=1):
    """Return the text of every log that the store keeps."""
    paths = [path for path, _ in await store.list(engine.ledger.logs_prefix(number))]
    return {path.split("/")[-2]: (await store.get(path)).decode() for path in paths}


async def test_the_logs_of_an_attempt_are_read_when_its_host_is_gone(engine, store, until, tmp_path, s3_store_uri):
    outcome = await finished(engine, PythonJob(Function(work, (None,), by_value=True)))
    assert outcome.state is State.SUCCEEDED

    async def whole():
        return "last words" in (await kept(store, engine)).get("main-0", "")

    await until(whole)
    shutil.rmtree(tmp_path / "runs")
    assert await engine.tail(1, "main-0", 1000) == "said before the gate\nlast words\n"
    environment = {**os.environ, **store.job_env(), "HOME": str(tmp_path), "RALLYPOINT_STORE": s3_store_uri[0]}
    command = [sys.executable, "-m", "rallypoint.cli", "logs", "flights/r1/train"]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "said before the gate\nlast words\n"), done.stderr


async def test_while_a_job_runs_its_logs_are_kept_by_a_process_that_gives_way(
    engine, store, until, gate, uploaders, s3_store_uri
):
    started = await engine.start(PythonJob(Function(work, (str(gate.path),), by_value=True)), Request(owner="try-1"))
    try:

        async def begun():
            return "said before the gate" in (await kept(store, engine)).get("main-0", "")

        await until(begun)
        (uploader,) = uploaders()
        assert uploader.nice() == 19
        assert s3_store_uri[1]["aws_secret_access_key"] not in " ".join(uploader.cmdline())
    finally:
        gate.open()
        updates = [update async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.1))]
    assert updates[-1].outcome.failure.last_lines[-1] == "last words"
    await until(lambda: not uploaders())


async def test_what_a_killed_supervisor_left_is_uploaded_and_its_uploader_ends(
    engine, store, until, gate, tmp_path, uploaders
):
    started = await engine.start(PythonJob(Function(work, (str(gate.path),), by_value=True)), Request(owner="try-1"))
    log = tmp_path / "runs" / started.attempt.record.id / "logs" / "main-0.log"
    await until(lambda: log.exists() and "said before" in log.read_text())
    os.kill(started.attempt.handle.details["pid"], signal.SIGKILL)
    updates = [update async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.1))]
    assert updates[-1].outcome.state is State.LOST
    await until(lambda: not uploaders())
    assert "said before the gate" in (await kept(store, engine))["main-0"]


async def test_a_bucket_that_never_answers_delays_no_end(gang, script, until, tmp_path, uploaders):
    launcher = LocalLauncher(tmp_path / "runs")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        secrets = {
            "AWS_ENDPOINT_URL": Secret(f"http://127.0.0.1:{silent.getsockname()[1]}"),
            "AWS_ALLOW_HTTP": Secret("true"),
            "AWS_ACCESS_KEY_ID": Secret("testing"),
            "AWS_SECRET_ACCESS_KEY": Secret("testing-secret-key"),
            "AWS_REGION": Secret("us-east-1"),
        }
        job = gang(script("print('soon over')"), env={context.LOGS_URI: "s3://nowhere/logs"}, secrets=secrets)
        handle = await launcher.launch(job, ID)
        began = time.monotonic()

        async def over():
            return (await launcher.poll(handle)).phase is Phase.ENDED

        await until(over)
        assert uploaders()  # it is still trying
        await launcher.wait(handle, LAST_WORD)  # and its supervisor is gone
        assert time.monotonic() - began < LAST_WORD
        await until(lambda: not uploaders(), deadline=LAST_WORD + 60)


async def test_prune_removes_what_the_store_keeps_of_logs(engine, store, until, uploaders):
    await finished(engine, PythonJob(Function(work, (None,), by_value=True)))
    await until(lambda: not uploaders())
    (going,) = await survey(store, Policy(older_than=timedelta(0)))
    sizes = {part.what: part.size for part in going.parts}
    assert sizes[What.STORED] == len("said before the gate\nlast words\n")
    await remove(store, going)
    assert await kept(store, engine) == {}
