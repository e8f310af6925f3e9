"""Supervisors that share a folder find each other through it: the first one says where it is and what ports it took."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from rallypoint.launchers.base import Phase
from rallypoint.launchers.placement import Node, place_on
from rallypoint.launchers.supervised import ask_end, start_supervisor, status_of, write_folder
from rallypoint.spec.gang import Gang, Macro, Role
from rallypoint.spec.shipment import ARCHIVE, archive
from rallypoint.worker import context

ATTEMPT = "rp-meeting-0123456789-a1"
CODE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(' '.join(sys.argv[2:]))"


@pytest.fixture
def meeting(tmp_path, monkeypatch):
    """Prepares two nodes in one folder, and starts them one by one."""
    argv = (Macro.PYTHON, "-c", CODE, f"{tmp_path}/said-{Macro.REPLICA}", Macro.HOST, Macro.ADDRESS, Macro.port("p"))
    gang = Gang(name="g", roles=(Role(name="r", argv=argv, replicas=2, ports=("p",)),), files={ARCHIVE: archive()})
    folders = [tmp_path / "runs" / str(number) for number in range(2)]
    nodes = [Node(run_dir=str(folder), python="python3", address=None) for folder in folders]

    def prepare(timeout=30):
        specs = place_on(gang, attempt=ATTEMPT, nodes=nodes)
        for number, (folder, spec) in enumerate(zip(folders, specs, strict=True)):
            folder.mkdir(parents=True)
            where = {"file": str(tmp_path / "ports.json"), "leads": number == 0, "timeout": timeout}
            write_folder(folder, spec | {"meeting": where}, files=gang.files, gang=gang.to_json())
        return folders

    async def start(number, address):
        secrets = {context.ADDRESS: address}
        await asyncio.to_thread(start_supervisor, folders[number], attempt=ATTEMPT, python="python3", secrets=secrets)

    return prepare, start


async def test_the_others_wait_for_the_first_and_take_its_address_and_ports(meeting, tmp_path, until):
    prepare, start = meeting
    folders = prepare()
    await start(1, "10.0.0.2")
    await until((folders[1] / "heartbeat.json").exists)
    assert status_of(folders[1]).phase is Phase.RUNNING
    await start(0, "10.0.0.1")
    for folder in folders:
        await until(lambda folder=folder: status_of(folder).reason == "completed")
    said = json.loads((tmp_path / "ports.json").read_text())
    port = str(said["ports"]["p"])
    assert said["host"] == "10.0.0.1"
    assert (tmp_path / "said-0").read_text().split() == ["10.0.0.1", "10.0.0.1", port]
    assert (tmp_path / "said-1").read_text().split() == ["10.0.0.1", "10.0.0.2", port]


async def test_a_first_node_that_never_comes_is_an_error_that_says_so(meeting, until):
    prepare, start = meeting
    folders = prepare(timeout=0.5)
    await start(1, "10.0.0.2")
    await until(lambda: status_of(folders[1]).phase is Phase.ENDED)
    assert status_of(folders[1]).reason == "error"
    assert "the first node did not say where it is within 0.5 s" in status_of(folders[1]).message


async def test_who_waits_for_the_first_can_be_ended(meeting, until):
    prepare, start = meeting
    folders = prepare()
    await start(1, "10.0.0.2")
    await until((folders[1] / "heartbeat.json").exists)  # asked before that, its start is forbidden: also an end
    began = time.monotonic()
    ask_end(folders[1], grace=1, reason="followed", message="h0 was lost")
    await until(lambda: status_of(folders[1]).phase is Phase.ENDED)
    assert status_of(folders[1]).reason == "followed"
    assert time.monotonic() - began < 25
