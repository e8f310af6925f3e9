"""A service on this machine stays while somebody wants it, and leaves nothing behind when nobody does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from rallypoint.spec.entry import Script
from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.job import Job
from rallypoint.spec.service_job import ServiceJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.worker import reaper

pytestmark = pytest.mark.engine

INTERVAL = timedelta(seconds=0.1)

SERVICE = """
import sys, time
from rallypoint.worker import process

def serve():
    process.writer().write("ready", address={"address": "127.0.0.1:%s" % sys.argv[1]})
    while True:
        time.sleep(0.1)

sys.exit(process.run(serve, name="p-0", primary=False))
"""


@dataclass(frozen=True, kw_only=True)
class Service(ServiceJob):
    kind: ClassVar[str] = "service"

    def roles(self):
        return (Role(name="p", argv=(Macro.PYTHON, "-c", SERVICE, Macro.port("own")), ports=("own",)),)


@dataclass(frozen=True, kw_only=True)
class Python(Job):
    kind: ClassVar[str] = "python"

    def roles(self):
        return (Role(name="p", argv=(Macro.PYTHON, "-m", "rallypoint.worker", *self.code.command())),)


@pytest.fixture
def stage(store, launcher):
    return lambda name: Engine(store, StageKey(("flights", "r1", name)), launcher)


async def ready(engine, **options):
    started = await engine.start(Service(**options), Request(owner="try-1"))
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        last = update
    assert last.outcome is None, last.outcome and last.outcome.failure.render()
    return started, last.ready


async def test_a_service_is_ready_where_it_listens_and_is_stopped_by_its_teardown(stage, jobs_left, until):
    engine = stage("service")
    _, address = await ready(engine)
    assert address["address"].partition(":")[2].isdigit()
    assert jobs_left()
    assert await engine.cancel(1, owner=None, why="its teardown task ran")
    assert (await engine.read(1)).outcome.state is State.CANCELLED
    await until(lambda: not jobs_left())


async def test_nothing_of_it_lives_longer_than_its_lease_when_nobody_renews_it(stage, jobs_left, until):
    engine = stage("service")
    began = time.monotonic()
    await ready(engine, lease=2)
    await until(lambda: not jobs_left())
    assert time.monotonic() - began > 2

    async def ended():  # the supervisor records the end after the last process has gone
        shown = await engine.inspect(1)
        return shown if shown.state is not State.LIVE else None

    shown = await until(ended)
    assert (shown.state, shown.entry.outcome.failure.title) == (State.FAILED, "lease expired")
    assert "nobody renewed its lease for 2 s" in shown.entry.outcome.failure.message


async def test_it_outlives_its_lease_while_a_stage_that_uses_it_is_watched(stage, script, tmp_path, jobs_left, until):
    service, train = stage("service"), stage("train")
    _, address = await ready(service, lease=2)
    code = """
        import sys, time
        from pathlib import Path
        while not Path(sys.argv[1]).exists():
            time.sleep(0.05)
    """
    job = Python(Script(script(code), [str(tmp_path / "enough")]), uses=[address])
    started = await train.start(job, Request(owner="try-1"))

    async def watch():
        async for update in train.watch(started.attempt, interval=INTERVAL):
            last = update
        return last.outcome

    watching = asyncio.create_task(watch())
    began = time.monotonic()
    while time.monotonic() - began < 5:  # the lease, twice over
        assert (await service.inspect(1)).state is State.LIVE
        await asyncio.sleep(0.2)
    (tmp_path / "enough").touch()
    assert (await watching).state is State.SUCCEEDED
    await until(lambda: not jobs_left())


# From the command line -----------------------------------------------------------------------------------------------


def test_the_command_line_holds_a_service_until_ctrl_c(tmp_path):
    file = tmp_path / "cluster.py"
    file.write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from typing import ClassVar
        from rallypoint.spec.gang import Macro, Role
        from rallypoint.spec.service_job import ServiceJob

        SERVICE = %r

        @dataclass(frozen=True, kw_only=True)
        class Service(ServiceJob):
            kind: ClassVar[str] = "service"

            def roles(self):
                return (Role(name="p", argv=(Macro.PYTHON, "-c", SERVICE, Macro.port("own")), ports=("own",)),)

        service = Service(lease=30)
        """)
        % SERVICE
    )
    store = str(tmp_path / "store")

    def cli(*args):
        return [sys.executable, "-m", "rallypoint.cli", *args, "--store", store]

    run = subprocess.Popen(cli("run", f"{file}:service"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = json.loads(run.stdout.readline())
    assert address["service"]["stage"] == ["cli", "cluster.service"]
    status = subprocess.run(cli("status", "cluster.service"), capture_output=True, text=True, check=True).stdout
    assert address["address"] in status
    assert "30 s, renewed" in " ".join(status.split())
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert "is stopped" in said
    shown = subprocess.run(cli("status", "cluster.service", "--json"), capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["attempts"][-1]["state"] == "cancelled"


# The reaper ----------------------------------------------------------------------------------------------------------

# A command that leaves a daemon behind, in a session of its own.
LEAVES = """
    import subprocess, sys, time
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("started", flush=True)
    time.sleep(float(sys.argv[1]))
    sys.exit(7)
"""


@pytest.fixture
def reaped(tmp_path):
    """Starts a command under a reaper, below a process that does nothing but wait for it."""

    def begin(seconds):
        code = f"""
            import subprocess, sys
            from rallypoint.worker import reaper
            sys.exit(subprocess.call(reaper.command([sys.executable, "-c", sys.argv[1], "{seconds}"])))
        """
        argv = [sys.executable, "-c", textwrap.dedent(code), textwrap.dedent(LEAVES)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "started\n"
        return process, psutil.Process(process.pid).children(recursive=True)

    return begin


def gone(processes):
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


async def test_a_command_ends_with_its_exit_code_and_nothing_of_it_is_left(reaped, until):
    process, below = reaped(0.5)
    assert len(below) == 3  # the reaper, its command, and the daemon
    assert await asyncio.to_thread(process.wait, 60) == 7
    await until(lambda: gone(below))


async def test_a_sigterm_is_passed_on(reaped, until):
    process, below = reaped(600)
    below[0].send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 60) == 128 + signal.SIGTERM
    await until(lambda: gone(below))


async def test_nothing_is_left_when_the_process_above_is_killed(reaped, until):
    process, below = reaped(600)
    process.kill()
    await until(lambda: gone(below))
    process.wait()


def test_a_reaper_whose_parent_is_gone_starts_nothing(tmp_path):
    witness = tmp_path / "started"
    argv = reaper.command([sys.executable, "-c", f"open({str(witness)!r}, 'w')"])
    argv[3] = str(os.getppid())  # not this process
    assert subprocess.run(argv, check=False).returncode == 1
    assert not Path(witness).exists()
