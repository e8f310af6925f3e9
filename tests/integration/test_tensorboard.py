"""``rallypoint tensorboard`` opens a real TensorBoard on a stage's event files, and ends it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from rallypoint.stages.history import tensorboard_prefix
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger, Record
from rallypoint.stages.store import Store

pytestmark = pytest.mark.engine

DEADLINE = 120.0  # seconds


@pytest.fixture(scope="module")
def event_file(tmp_path_factory):
    """What PyTorch's writer wrote."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path_factory.mktemp("events")
    with SummaryWriter(str(folder)) as writer:
        for step in range(3):
            writer.add_scalar("loss", 1.0 / (step + 1), step)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store.open(tmp_path / "store")
    uri, options = request.getfixturevalue("s3_store_uri")
    return Store.open(uri, options=options)


def record(store, *files):
    async def write():
        ledger = Ledger(store, StageKey(("flights", "r1", "train")))
        names = {"number": 1, "id": ledger.key.attempt_id(1), "generation": 1, "resumed": False, "kind": "torch"}
        await ledger.claim(Record(**names, fingerprint={}, launcher="local:///nonexistent/runs", owner="x"))
        for file in files:
            await store.put(f"{tensorboard_prefix(ledger, 1)}/train/{file.name}", file.read_bytes())

    asyncio.run(write())


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_it_answers_with_the_stages_runs_and_ends_with_the_command(store, event_file):
    record(store, event_file)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "rallypoint.cli", "tensorboard", "train", "--store", store.uri, "--port", str(port)],
        env={**os.environ, **store.job_env()}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    started = []
    try:
        deadline, runs = time.monotonic() + DEADLINE, []
        while runs != ["train"]:  # TensorBoard answers before it has loaded what is there
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, runs
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=30) as answer:
                    runs = json.load(answer)
            except urllib.error.URLError:
                time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=train&tag=loss"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert [step for _, step, _ in json.load(answer)] == [0, 1, 2]
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + DEADLINE
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stage_that_ended_without_event_files_is_told_where_they_go(tmp_path):
    store = Store.open(tmp_path / "store")
    record(store)

    async def end():
        from rallypoint.stages.outcome import Outcome
        from rallypoint.stages.rule import State

        ledger = Ledger(store, StageKey(("flights", "r1", "train")))
        await ledger.conclude(1, Outcome(state=State.SUCCEEDED))

    asyncio.run(end())
    argv = [sys.executable, "-m", "rallypoint.cli", "tensorboard", "train", "--store", store.uri]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert re.search(
        r"has no event files in file://.*tensorboard: write them to rallypoint", done.stderr.replace("\n", " ")
    )
