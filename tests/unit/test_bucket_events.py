"""A bucket cannot append, and yet every event line arrives in it once, in order and soon."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rallypoint.stages.events import EventReader
from rallypoint.stages.store import Store
from rallypoint.worker import context, events
from rallypoint.worker.bucket import Bucket, StorageError
from rallypoint.worker.events import EventWriter


@pytest.fixture
def store(s3_store_uri, monkeypatch):
    """An empty bucket prefix, with the job's environment as the orchestrator makes it."""
    uri, options = s3_store_uri
    store = Store.open(uri, options=options)
    for name, value in store.job_env().items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def uri(store):
    return store.child_uri("events")


@pytest.fixture
def reader(store):
    return EventReader(store, "events")


async def _steps(reader):
    return [event.data["step"] for event in await reader.read()]


async def _steps_soon(reader):
    for _ in range(200):
        if steps := await _steps(reader):
            return steps
        await asyncio.sleep(0.05)
    return []


async def test_what_was_written_is_read_after_a_flush(uri, reader):
    writer = EventWriter(uri, "rank-0.r0")
    writer.write("progress", step=1, total=3, metrics={"loss": 0.5})
    writer.flush()
    (event,) = await reader.read()
    assert (event.kind, event.process) == ("progress", "rank-0.r0")
    assert event.data == {"step": 1, "total": 3, "metrics": {"loss": 0.5}}


async def test_only_what_is_new_is_read(uri, reader):
    writer = EventWriter(uri, "rank-0.r0")
    for step in range(3):
        writer.write("progress", step=step)
        writer.flush()
        assert await _steps(reader) == [step]
    writer.flush()
    assert await _steps(reader) == []


async def test_a_large_file_is_continued_in_a_second_part(uri, store, reader, monkeypatch):
    monkeypatch.setattr(events, "PART_SIZE", 200)
    writer = EventWriter(uri, "rank-0.r0")
    for step in range(4):  # three of them are larger than a part
        writer.write("progress", step=step)
        writer.flush()
    assert await store.children("events") == ["rank-0.r0.000000.jsonl", "rank-0.r0.000001.jsonl"]
    assert await _steps(reader) == [0, 1, 2, 3]
    writer.write("progress", step=4)
    writer.flush()
    assert [(event.process, event.data["step"]) for event in await reader.read()] == [("rank-0.r0", 4)]


async def test_what_a_killed_process_wrote_before_the_last_interval_is_there(uri, reader):
    code = textwrap.dedent("""
        import sys, time
        from rallypoint.worker.events import EventWriter
        EventWriter(sys.argv[1], "rank-0.r0").write("progress", step=1)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code, uri], env=_environment()) as process:
        found = await _steps_soon(reader)
        process.kill()
    assert found == [1]


def test_everything_is_there_when_a_process_has_ended(uri, reader):
    code = textwrap.dedent("""
        import sys
        from rallypoint.worker import process
        def body():
            process.writer().write("progress", step=1)
            return {"rows": 3}
        code = process.run(body, name="process-0")
        process.writer().write("link", name="written afterwards", url="x")
        sys.exit(code)
    """)
    subprocess.run([sys.executable, "-c", code], env={**_environment(), context.EVENTS_URI: uri}, check=True)
    assert [event.kind for event in asyncio.run(reader.read())] == ["opened", "progress", "result", "closed", "link"]


def test_a_bucket_that_is_gone_for_a_while_neither_stops_the_job_nor_loses_a_line(uri, reader, monkeypatch):
    monkeypatch.setattr(events, "UPLOAD_INTERVAL", 0.05)
    tried = threading.Semaphore(0)

    def refuse(self, path, data):
        tried.release()
        raise StorageError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "write", refuse)
        writer = EventWriter(uri, "rank-0.r0")
        writer.write("progress", step=1)
        assert tried.acquire(timeout=20)
        assert tried.acquire(timeout=20)
    assert asyncio.run(_steps_soon(reader)) == [1]


def test_the_stall_timer_sees_every_event(uri, tmp_path, monkeypatch):
    monkeypatch.setenv(context.LOGS_DIR, str(tmp_path))
    writer = EventWriter(uri, "rank-0.r0")
    os.utime(tmp_path / ".events-rank-0.r0", (0, 0))
    writer.write("progress", step=1)
    assert (tmp_path / ".events-rank-0.r0").stat().st_mtime > time.time() - 60
    writer.flush()


def test_a_forked_process_is_told_instead_of_losing_lines(uri):
    writer = EventWriter(uri, "rank-0.r0")
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(20)
        try:
            writer.write("progress", step=1)
        except StorageError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert b"forked after the bucket was opened" in pipe.read()
    os.waitpid(child, 0)


def test_a_python_without_obstore_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ModuleNotFoundError, match="install obstore in the job's Python"):
        EventWriter("s3://bucket/events", "rank-0.r0")


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def test_a_process_that_starts_again_in_its_attempt_keeps_what_it_wrote_before(uri, reader, monkeypatch):
    first = EventWriter(uri, "agent-0")
    first.write("progress", step=1)
    first.flush()
    assert await _steps(reader) == [1]
    monkeypatch.setenv(context.INCARNATION, "1")
    second = EventWriter(uri, "agent-0")
    second.write("progress", step=2)
    second.flush()
    assert await _steps(reader) == [2]
    assert await _steps(EventReader(reader._store, "events")) == [1, 2]
