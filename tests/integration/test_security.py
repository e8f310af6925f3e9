"""Secrets, pickles and forged records with a real job on this machine; see docs/security.md."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cloudpickle
import pytest
from rich.console import Console

from rallypoint import PythonJob
from rallypoint.cli.plan import show_gang, show_placed
from rallypoint.errors import StageFailedError, StageUserError, StoreError
from rallypoint.launchers.base import Handle
from rallypoint.launchers.local import LocalLauncher
from rallypoint.launchers.placement import place
from rallypoint.spec.entry import Function, Script
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Record
from rallypoint.stages.news import Narrator
from rallypoint.stages.rule import State
from rallypoint.worker import hostprocs

pytestmark = pytest.mark.engine

KEY = StageKey(("flights", "r1", "train"))
SECRET = "hunter2-is-a-secret"
PROOF = hashlib.sha256(SECRET.encode()).hexdigest()
INTERVAL = timedelta(seconds=0.05)


@pytest.fixture
def engine(store, launcher):
    return Engine(store, KEY, launcher)


async def finish(engine, started):
    """Watch an attempt to its end; return how it ended and the lines of the task's log."""
    narrator = Narrator()
    lines = [str(news) for news in narrator.opening(started, KEY.text)]
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        lines += [str(news) for news in narrator.tell(update)]
        outcome = update.outcome
    return outcome, lines


def command_lines():
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes())
        except OSError:  # it has ended
            continue
    return lines


# Secrets -------------------------------------------------------------------------------------------------------------

PROVES = """
    import hashlib, os, select, sys
    from pathlib import Path
    import rallypoint

    print("proof", hashlib.sha256(os.environ["TOKEN"].encode()).hexdigest(), flush=True)
    rallypoint.stage().report(step=1, total=2)
    select.select([os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
    rallypoint.stage().save_checkpoint(lambda folder: Path(folder, "x").write_text("x"))
    {end}
"""


@pytest.mark.parametrize("end", ["rallypoint.stage().result(1)", "raise ValueError('loss is NaN')"])
async def test_a_secret_is_in_the_jobs_environment_and_nowhere_else(engine, script, gate, tmp_path, until, end):
    job = PythonJob(Script(script(PROVES.format(end=end)), [str(gate.path)]), secrets={"TOKEN": SECRET})
    started = await engine.start(job, Request(owner="x"))
    run_dir = Path(started.attempt.handle.details["run_dir"])
    await until(lambda: PROOF in (run_dir / "logs" / "main-0.log").read_text())
    running = command_lines()
    gate.open()
    outcome, lines = await finish(engine, started)
    assert any(PROOF in line for line in lines)  # it got the secret, and the log is the task's
    assert outcome.state is (State.FAILED if "raise" in end else State.SUCCEEDED)

    gang, placed = job.plan(), place(job.plan(), attempt="rp-x-a1", run_dir="/r", python="/p")
    console = Console(width=200, file=io.StringIO())
    console.print(show_gang(gang), show_placed(placed))
    shown = [
        *lines,
        console.file.getvalue(),
        json.dumps([gang.to_json(), placed, started.attempt.handle.to_json(), outcome.to_json(), job.fingerprint()]),
        *map(repr, (job, gang, started, outcome, engine, replace(job, params={"x": 1}))),
        str(gang.secrets["TOKEN"]),
    ]
    assert "TOKEN=***" in console.file.getvalue()
    assert not [text for text in shown if SECRET in text]
    assert not [line for line in running if SECRET.encode() in line]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 15
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("more", "root", "error"),
    [
        ({"python": "/bin/false"}, "runs", StageUserError),
        ({}, "file/runs", StageUserError),
        ({"secrets": {"TOKEN": SECRET, "LONG": SECRET * 20_000}}, "runs", StageFailedError),
    ],
    ids=["no Python", "no folder", "an environment that is too large"],
)
async def test_a_launch_that_failed_names_no_secret(store, script, tmp_path, more, root, error):
    (tmp_path / "file").touch()
    engine = Engine(store, KEY, LocalLauncher(tmp_path / root))
    job = PythonJob(Script(script("pass")), **{"secrets": {"TOKEN": SECRET}, **more})
    with pytest.raises(error) as raised:
        await engine.start(job, Request(owner="x"))
    causes = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert SECRET not in "".join(f"{cause}{cause!r}" for cause in causes) + raised.value.report.render()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


async def test_the_interpreter_that_is_asked_what_it_has_sees_nothing_of_the_orchestrators(
    engine, script, tmp_path, monkeypatch
):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", SECRET)
    spy = tmp_path / "python"
    spy.write_text(f'#!/bin/sh\nenv >> {tmp_path}/environment\nexec {sys.executable} "$@"\n')
    spy.chmod(0o755)
    await finish(engine, await engine.start(PythonJob(Script(script("pass")), python=str(spy)), Request(owner="x")))
    assert "PATH=" in (tmp_path / "environment").read_text()
    assert SECRET not in (tmp_path / "environment").read_text()


# Pickles -------------------------------------------------------------------------------------------------------------


async def test_the_orchestrator_unpickles_nothing(engine, monkeypatch):
    def trap(*args, **kwargs):
        raise AssertionError("something was unpickled in the orchestrator")

    job = PythonJob(Function(lambda x: {"x": x}, (3,)))
    for module in (pickle, cloudpickle):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, name, trap, raising=False)
    outcome, _ = await finish(engine, await engine.start(job, Request(owner="x")))
    assert outcome.result == {"x": 3}
    assert (await engine.start(job, Request(owner="y"))).attempt.outcome.result == {"x": 3}
    assert (await engine.inspect(1)).state is State.SUCCEEDED


# Forged records ------------------------------------------------------------------------------------------------------


def forged(**more):
    fields = {"generation": 1, "resumed": False, "kind": "python", "owner": "x", "number": 1}
    return Record(**{"id": KEY.attempt_id(1), "fingerprint": {}, **fields, **more})


@pytest.fixture
def bystander():
    """A process that has nothing to do with any stage."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


async def test_a_recorded_launcher_never_runs_anything(engine, script, tmp_path):
    job = PythonJob(Script(script("import rallypoint; rallypoint.stage().result(7)")))
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    evil.chmod(0o755)
    uri = f"local://{tmp_path}/elsewhere?python={evil}"
    await engine.ledger.claim(forged(launcher=uri, fingerprint=job.fingerprint()))
    started = await engine.start(job, Request(owner="x"))
    assert started.attempt.record.number == 2
    assert (await finish(engine, started))[0].result == 7
    assert not (tmp_path / "ran").exists()
    written = [str(file.relative_to(tmp_path)) for file in (tmp_path / "elsewhere").rglob("*") if file.is_file()]
    assert written == [f"elsewhere/{KEY.attempt_id(1)}/cancel.json"]


async def test_who_changes_the_launcher_before_a_launch_was_finished_goes_on_there(engine, store, script, tmp_path):
    job = PythonJob(Script(script("import rallypoint; rallypoint.stage().result(7)")))
    await engine.ledger.claim(forged(launcher=engine._own_launcher().uri, fingerprint=job.fingerprint()))
    other = Engine(store, KEY, LocalLauncher(tmp_path / "other"))
    started = await other.start(job, Request(owner="x"))
    assert (await finish(other, started))[0].result == 7
    assert (await engine.ledger.read(1)).outcome.state is State.CANCELLED


async def test_a_forged_id_ends_no_other_stages_job(engine, launcher, store, script, gate):
    code = """
        import os, select, sys
        select.select([os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
    """
    waits = PythonJob(Script(script(code), [str(gate.path)]))
    victim = Engine(store, StageKey(("flights", "r1", "other")), launcher)
    started = await victim.start(waits, Request(owner="x"))
    await engine.ledger.claim(forged(launcher=launcher.uri, id=started.attempt.record.id))
    for action in (engine.start(waits, Request(owner="y")), engine.cancel(1, owner=None, why="x"), engine.inspect(1)):
        with pytest.raises(StoreError, match="look who else can write there"):
            await action
    assert (await victim.inspect(1)).state is State.LIVE
    gate.open()
    assert (await finish(victim, started))[0].state is State.SUCCEEDED


async def test_a_pid_in_a_file_is_never_signalled(engine, script, tmp_path, bystander):
    """A store's writer points a record at a folder whose start record names a process of somebody else."""
    job = PythonJob(Script(script("import rallypoint; rallypoint.stage().result(7)")))
    uri = f"local://{tmp_path}/elsewhere"
    await engine.ledger.claim(forged(launcher=uri, fingerprint=job.fingerprint()))
    await engine.ledger.launched(1, Handle(uri, KEY.attempt_id(1)))
    folder = tmp_path / "elsewhere" / KEY.attempt_id(1)
    folder.mkdir(parents=True)
    started = {"v": 1, "host": os.uname().nodename, "pid": bystander.pid, "boot_id": hostprocs.boot_id(), "t": 0}
    (folder / "started.json").write_text(json.dumps({**started, "start_time": 1}))
    assert (await engine.inspect(1)).state is State.LOST
    outcome, _ = await finish(engine, await engine.start(job, Request(owner="x")))
    assert outcome.result == 7
    assert bystander.poll() is None
