"""Logs that a bucket keeps: nothing is sent again and again, and what a host no longer says is read from there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from rallypoint.launchers.base import Cursor, Handle, LogChunk
from rallypoint.stages.logs import AttemptLogs
from rallypoint.stages.store import Store
from rallypoint.worker.bucket import Bucket
from rallypoint.worker.log_upload import MOST, PART, Logs

EVERYTHING = Cursor()


class Gone:
    """The launcher of a host that answers no more."""

    said: tuple[LogChunk, ...] = ()

    async def logs(self, handle, cursor):
        for chunk in self.said:
            yield chunk


@pytest.fixture
def store(s3_store_uri, monkeypatch):
    uri, options = s3_store_uri
    store = Store.open(uri, options=options)
    for name, value in store.job_env().items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def sent():
    return []


@pytest.fixture
def node(store, folder, sent):
    """Makes the logs of a node whose parts go to the store."""

    def make(part="0-0"):
        bucket = Bucket(store.child_uri(f"logs/{part}"))

        def write(path, data):
            sent.append((path, len(data)))
            bucket.write(path, data)

        return Logs(str(folder), write)

    return make


def _reader(store, launcher=None):
    return AttemptLogs(launcher or Gone(), Handle("local:///r", "rp-x-0123456789-a1"), store, "logs")


async def _text(store, **more):
    reader, offsets, found = _reader(store), {}, {}
    while chunks := await reader.new(Cursor(offsets, **more), ended=True):
        for chunk in chunks:
            offsets[chunk.process] = chunk.offset
            found[chunk.process] = found.get(chunk.process, b"") + chunk.data
    return found


def _append(folder, name, data):
    with (folder / f"{name}.log").open("ab") as log:
        log.write(data)


async def test_what_was_sent_is_read(node, folder, store):
    logs = node()
    _append(folder, "agent-0", b"one\ntwo\n")
    _append(folder, "rank-0.r0", b"three\n")
    assert logs.send()
    assert await _text(store) == {"agent-0": b"one\ntwo\n", "rank-0.r0": b"three\n"}
    _append(folder, "agent-0", b"more")
    assert logs.send()
    assert (await _text(store))["agent-0"] == b"one\ntwo\nmore"


def test_of_a_log_that_grows_only_its_last_small_part_is_sent_again(node, folder, sent):
    logs, line = node(), b"x" * 99_999 + b"\n"
    for _ in range(30):
        _append(folder, "agent-0", line)
        logs.send()
    assert max(size for _, size in sent) < 2 * PART
    assert sum(size for _, size in sent) < 3 * 30 * len(line)
    assert len({path for path, _ in sent}) <= 1 + 30 * len(line) // PART


async def test_of_much_at_once_nothing_is_sent_twice(node, folder, sent, store):
    logs, size = node(), 3 * MOST + 5
    _append(folder, "agent-0", b"y" * (size - 1) + b"\n")
    assert logs.send()
    assert [length for _, length in sent] == [MOST, MOST, MOST, 5]
    assert logs.send()
    assert len(sent) == 4
    (text,) = (await _text(store)).values()
    assert len(text) == size


def test_a_log_that_floods_does_not_keep_the_others_waiting(node, folder, sent):
    logs = node()
    _append(folder, "a", b"z" * (9 * MOST))
    _append(folder, "b", b"short\n")
    assert not logs.send()
    assert sent[-1][0].startswith("b/")


async def test_a_cursor_is_as_on_a_host(node, folder, store):
    _append(folder, "agent-0", b"one\ntwo\nthree\nfour")
    _append(folder, "agent-1", b"other\n")
    node().send()
    reader = _reader(store)
    (end,) = await reader.new(Cursor({"agent-0": -8}, others=None), ended=True)
    assert (end.data, end.offset) == (b"ree\nfour", 18)
    (rest,) = await reader.new(Cursor({"agent-0": 4}, others=None), ended=True)
    assert (rest.data, rest.offset, rest.skipped) == (b"two\nthree\n", 14, 0)
    (late,) = await reader.new(Cursor({"agent-0": 0}, others=None, max_behind=9), ended=True)
    assert (late.data, late.skipped) == (b"four", 14)
    assert await reader.new(Cursor({"agent-0": 18}, others=None), ended=True) == []


async def test_where_time_was_short_the_end_is_there_and_the_gap_is_said(node, folder, store):
    logs = node()
    _append(folder, "agent-0", b"begin\n")
    logs.send()
    _append(folder, "agent-0", b"n" * (MOST + PART) + b"\nlast words\n")
    logs.send_ends()
    reader, offset, found = _reader(store), 0, []
    while chunks := await reader.new(Cursor({"agent-0": offset}), ended=True):
        found += chunks
        offset = chunks[0].offset
    assert found[0].data == b"begin\n"
    assert found[1].data == b"last words\n"
    assert found[1].offset - len(found[1].data) - found[1].skipped == 6
    assert logs.send()
    (text,) = (await _text(store)).values()
    assert len(text) == (folder / "agent-0.log").stat().st_size


async def test_of_a_node_that_began_anew_the_newest_start_counts(node, folder, store):
    _append(folder, "agent-1", b"first\n")
    node("1-0").send()
    (folder / "agent-1.log").write_bytes(b"again\n")
    node("1-10").send()
    assert await _text(store) == {"agent-1": b"again\n"}


async def test_the_host_is_asked_first_and_the_store_only_for_what_has_ended(node, folder, store):
    _append(folder, "agent-0", b"kept\n")
    _append(folder, "agent-1", b"kept too\n")
    node().send()
    launcher = Gone()
    launcher.said = (LogChunk("agent-0", b"kept\nand more\n", 14),)
    reader = _reader(store, launcher)
    assert {chunk.data for chunk in await reader.new(EVERYTHING, ended=True)} == {b"kept\nand more\n", b"kept too\n"}
    assert [chunk.process for chunk in await reader.new(EVERYTHING, ended=False)] == ["agent-0"]


async def test_a_folder_keeps_no_logs(tmp_path):
    assert await _reader(Store.open(tmp_path / "store")).new(EVERYTHING, ended=True) == []


def test_nothing_but_regular_logs_is_sent(node, folder, sent, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_bytes(b"s")
    (folder / "agent-0.log").symlink_to(secret)
    (folder / ".stack-1.txt").write_bytes(b"s")
    os.mkfifo(folder / "agent-1.log")
    assert node().send()
    assert sent == []


def test_its_process_ends_with_an_unreachable_bucket(tmp_path):
    """It takes connections and never answers."""
    code = "import sys; from rallypoint.worker import log_upload as u; u.LAST_WORD = 1; sys.exit(u.main(sys.argv[1:]))"
    _append(tmp_path, "agent-0", b"never\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        env = {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_REGION": "us-east-1",
        }
        argv = [sys.executable, "-c", code, str(tmp_path), "s3://bucket/logs"]
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, timeout=30, check=False)
    assert done.returncode == -signal.SIGALRM
