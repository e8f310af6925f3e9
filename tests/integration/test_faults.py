"""Real processes are really killed at named points; the next try ends with one completed run, and delivers its result.

The witness is a file to which the user's code appends a line when it starts, after every epoch and when it completes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rallypoint.stages.rule import State
from rallypoint.worker import faults, hostprocs

pytestmark = pytest.mark.engine

# Four epochs with a checkpoint after each; after the second one it waits while it is held.
TRAIN = """
    import os, sys, time
    from pathlib import Path
    import rallypoint

    here = Path(sys.argv[1])
    witness = os.open(here / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    for line in (here / "witness").read_text().splitlines():
        word, _, pid = line.partition(" ")
        if word == "pid" and alive(pid):
            os.write(witness, f"beside {pid}\\n".encode())
    os.write(witness, f"pid {os.getpid()}\\n".encode())
    stage = rallypoint.stage()
    checkpoint = stage.latest_checkpoint()
    start = int(Path(checkpoint, "epoch").read_text()) if checkpoint else 0
    os.write(witness, f"start {start}\\n".encode())
    for epoch in range(start + 1, 5):
        stage.save_checkpoint(lambda folder: Path(folder, "epoch").write_text(str(epoch)), step=epoch)
        os.write(witness, f"epoch {epoch}\\n".encode())
        while epoch == 2 and (here / "held").exists():
            time.sleep(0.02)
    stage.result({"from": start})
    os.write(witness, b"completed 1\\n")
"""

# What an operator that waits in its worker does.
WORKER = """
    import asyncio, sys
    from dataclasses import dataclass
    from datetime import timedelta
    from pathlib import Path
    from rallypoint.frameworks.python.job import PythonJob
    from rallypoint.launchers import local
    from rallypoint.spec.entry import Script
    from rallypoint.spec.gang import Secret
    from rallypoint.stages.attempt import Request
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.outcome import raise_for
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.store import Store
    from rallypoint.worker import faults

    owner, folder, script, fault = sys.argv[1:]
    local.START_DEADLINE = 3.0

    class Armed(PythonJob):
        def plan(self):  # the supervisor gets none of this process's RALLYPOINT_ variables
            return super().plan().with_more(secrets={faults.VARIABLE: Secret(fault)} if fault else {})

    async def main():
        key = StageKey(("flights", "r1", "train"))
        engine = Engine(Store.open(f"{folder}/store"), key, local.LocalLauncher(Path(folder, "runs")))
        started = await engine.start(Armed(Script(script, [folder])), Request(owner=owner))
        async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.05)):
            pass
        raise_for(update.outcome)
        print("delivered", update.outcome.result)

    asyncio.run(main())
"""


class Place:
    """Where the tries and the job of one stage are."""

    def __init__(self, folder, script, engine):
        self.folder, self.script, self.engine = folder, script, engine
        self.tries = 0
        self.armed = folder / "armed"

    def a_try(self, point=""):
        """Start a worker; at a point of the supervisor it is the supervisor that is to die."""
        self.tries += 1
        fault = f"{point}={self.armed}"
        env = dict(os.environ) | ({faults.VARIABLE: fault} if point in faults.ORCHESTRATOR else {})
        there = fault if point in faults.SUPERVISOR else ""
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), f"try-{self.tries}", self.folder, self.script, there],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, word):
        path = self.folder / "witness"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.partition(" ")[2]) for line in lines if line.startswith(f"{word} ")]

    def delivered(self):
        """Return what the next try delivers."""
        out, err = self.a_try().communicate(timeout=60)
        assert "delivered" in out, err
        return out.strip()


@pytest.fixture
def place(tmp_path, script, engine):
    made = Place(tmp_path, script(TRAIN), engine)
    yield made
    (tmp_path / "held").unlink(missing_ok=True)
    assert made.said("beside") == [], "two copies ran at the same time"


@pytest.mark.parametrize("point", faults.ORCHESTRATOR)
async def test_a_worker_that_is_killed_leaves_one_run_whose_result_the_next_try_delivers(place, point, jobs_left):
    place.armed.touch()
    worker = place.a_try(point)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL, err
    assert not place.armed.exists()
    assert place.delivered() == "delivered {'from': 0}"
    assert place.delivered() == "delivered {'from': 0}"
    assert (place.said("start"), place.said("epoch"), place.said("completed")) == ([0], [1, 2, 3, 4], [1])
    assert await place.engine.ledger.numbers() == [1]
    assert jobs_left() == {}


@pytest.mark.parametrize(
    ("point", "ended", "starts", "completed"),
    [
        ("supervisor-before-started", State.FAILED, [0], [1]),
        ("supervisor-after-started", State.LOST, [0], [1]),
        ("supervisor-running", State.LOST, [0, 2], [1]),
        # It had said its last word, and how it ended is not known: the next one finds nothing left to do.
        ("supervisor-before-ended", State.LOST, [0, 4], [1, 1]),
    ],
)
async def test_a_supervisor_that_is_killed_loses_the_attempt_and_the_next_one_continues(
    place, until, jobs_left, point, ended, starts, completed
):
    running = point == "supervisor-running"
    (place.folder / "held" if running else place.armed).touch()
    worker = place.a_try(point)
    if running:
        await until(lambda: 2 in place.said("epoch"))
        place.armed.touch()
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 1, err
    assert not place.armed.exists()
    (place.folder / "held").unlink(missing_ok=True)
    assert (await place.engine.read(1)).outcome.state is ended
    assert place.delivered() == f"delivered {{'from': {starts[-1]}}}"
    assert (place.said("start"), place.said("completed")) == (starts, completed)
    assert place.said("epoch") == [1, 2, 3, 4]
    assert await place.engine.ledger.numbers() == [1, 2]
    assert jobs_left() == {}


async def test_a_supervisor_that_is_killed_when_the_ends_are_recorded_loses_nothing(place, jobs_left):
    place.armed.touch()
    out, err = place.a_try("supervisor-before-final").communicate(timeout=60)
    assert "delivered {'from': 0}" in out, err
    assert not place.armed.exists()
    assert place.delivered() == "delivered {'from': 0}"
    assert (place.said("start"), place.said("epoch"), place.said("completed")) == ([0], [1, 2, 3, 4], [1])
    assert await place.engine.ledger.numbers() == [1]
    assert jobs_left() == {}


async def test_after_a_reboot_of_the_machine_the_attempt_is_lost_and_the_next_one_continues(place, until, jobs_left):
    (place.folder / "held").touch()
    worker = place.a_try()
    await until(lambda: 2 in place.said("epoch"))
    (record,) = (place.folder / "runs").glob("*/started.json")
    started = json.loads(record.read_text())
    for pid in (worker.pid, started["pid"], *place.said("pid")):
        os.kill(pid, signal.SIGKILL)
    worker.communicate()
    await until(lambda: not jobs_left())
    # After the boot another process has the supervisor's pid, and even its start time.
    there_now = {"boot_id": "of-before", "pid": os.getpid(), "start_time": hostprocs.start_time(os.getpid())}
    record.write_text(json.dumps(started | there_now))
    (place.folder / "held").unlink()
    assert place.delivered() == "delivered {'from': 2}"
    assert (await place.engine.read(1)).outcome.state is State.LOST
    assert (place.said("start"), place.said("epoch")) == ([0, 2], [1, 2, 3, 4])
    assert place.said("completed") == [1]
    assert jobs_left() == {}


FILLS = """
    from pathlib import Path
    import rallypoint

    def fill(folder):
        with Path(folder, "model").open("wb") as file:
            while True:
                file.write(b"x" * 65536)

    stage = rallypoint.stage()
    if (checkpoint := stage.latest_checkpoint()) is None:
        stage.save_checkpoint(lambda folder: Path(folder, "epoch").write_text("1"), step=1)
        stage.save_checkpoint(fill, step=2)
    stage.result({"from": int(Path(checkpoint, "epoch").read_text())})
"""


def test_a_job_that_fills_the_disk_of_the_store_says_so_and_the_next_try_continues(tmp_path, script):
    """The disk is a file system of 2 MiB, in a mount namespace of its own."""
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*alone, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this host lets nobody mount a file system of his own")
    (tmp_path / "store").mkdir()
    both = 'mount -t tmpfs -o size=2m none "$1/store"; "$0" -c "$3" try-1 "$1" "$2" ""; "$0" -c "$3" try-2 "$1" "$2" ""'
    command = [*alone, both, sys.executable, tmp_path, script(FILLS), textwrap.dedent(WORKER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "disk full: OSError: [Errno 28] No space left on device" in done.stderr
    assert done.stdout.strip() == "delivered {'from': 1}", done.stderr


def test_every_point_is_in_the_code():
    package = Path(faults.__file__).parent.parent
    code = "".join(path.read_text() for path in package.rglob("*.py"))
    points = (*faults.ORCHESTRATOR, *faults.SUPERVISOR)
    assert [code.count(f'faults.reach("{point}")') for point in points] == [1] * len(points)
