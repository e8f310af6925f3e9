"""Real processes on this machine: none of them outlives the session."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from gate import Gate

from rallypoint.launchers.local import LocalLauncher
from rallypoint.spec.gang import Gang, Macro, Role
from rallypoint.spec.shipment import ARCHIVE, archive
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store
from rallypoint.worker import context, hostprocs

DEADLINE = 60.0  # seconds that any condition may take on a busy machine


def _jobs_below(folder: Path) -> dict[int, str]:
    """Return the living processes of attempts whose files are below a folder, with their command lines."""
    found = {}
    for name in (path.name for path in Path("/proc").glob("[0-9]*")):
        if int(name) == os.getpid():
            continue
        env = hostprocs.environment(int(name))
        below = any(str(folder) in env.get(key, "") for key in (context.LOGS_DIR, context.RUN_DIR, "PYTHONPATH"))
        if context.ATTEMPT_ID in env and below and hostprocs.start_time(int(name)) is not None:
            with suppress(OSError):
                line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                # One that is ending has none; a supervisor is no process of the gang.
                found[int(name)] = line or (
                    "ending" if context.PROCESS in env else "rallypoint.worker.supervisor, ending"
                )
    return found


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_session(tmp_path_factory):
    yield
    root = tmp_path_factory.getbasetemp()
    deadline = time.monotonic() + 10  # a supervisor ends right after its final record
    while (left := _jobs_below(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"processes of jobs outlived the tests: {left}"


@pytest.fixture
def jobs_left(tmp_path):
    """Returns the living processes of this test's attempts, without the supervisors: they end by themselves."""
    return lambda: {pid: line for pid, line in _jobs_below(tmp_path).items() if "worker.supervisor" not in line}


@pytest.fixture
def until():
    """Waits until a condition holds, and returns its value."""

    async def wait(condition, *, deadline=DEADLINE):
        end = time.monotonic() + deadline
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            assert time.monotonic() < end, f"not within {deadline:g} s"
            await asyncio.sleep(0.05)

    return wait


@pytest.fixture
def script(tmp_path):
    """Writes a script and returns its path."""

    def write(code, name="job.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(code))
        return str(path)

    return write


@pytest.fixture
def gate(tmp_path):
    """A gate, called ``go``, at which a test's jobs wait."""
    with closing(Gate(tmp_path / "go")) as made:
        yield made


@pytest.fixture
def gang():
    """Makes a gang whose processes run a script with the standard library only."""

    def make(path, *args, replicas=1, env=None, ports=(), **more):
        argv = (Macro.PYTHON, "-m", "rallypoint.worker", "script", path, *args)
        role = Role(name="p", argv=argv, replicas=replicas, ports=ports, env=env or {})
        return Gang(name="test", roles=(role,), files={ARCHIVE: archive()}, **more)

    return make


@pytest.fixture
def launcher(tmp_path):
    return LocalLauncher(tmp_path / "runs")


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def engine(store, launcher):
    return Engine(store, StageKey(("flights", "r1", "train")), launcher)
