"""A gang on this machine runs once, ends together, leaves nothing, and says how it went."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers import local
from rallypoint.launchers.base import Cursor, Handle, Phase
from rallypoint.launchers.local import LocalLauncher
from rallypoint.launchers.registry import open_launcher
from rallypoint.spec.gang import Gang, Macro, Role, Secret

pytestmark = pytest.mark.engine

ID = "rp-test-0123456789-a1"
GRACE = timedelta(seconds=20)

# Appends a line at every start, which tells how often the job ran.
WITNESS = """
    import os, sys, time
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
"""
WAITS = (
    WITNESS
    + """
    while True:
        time.sleep(0.1)
"""
)


def _starts(witness):
    return len(witness.read_text().splitlines()) if witness.exists() else 0


@pytest.fixture
def witness(tmp_path):
    return tmp_path / "witness"


@pytest.fixture
def ended(launcher, until):
    """Waits for a gang's end and returns its status."""

    async def wait(handle, by=launcher):
        async def poll():
            status = await by.poll(handle)
            return status if status.phase is not Phase.RUNNING else None

        return await until(poll)

    return wait


@pytest.fixture
def waiting(launcher, gang, script, witness, until):
    """Launches processes that wait for their end, and returns when they do."""

    async def launch(code=WAITS, replicas=1, **more):
        handle = await launcher.launch(gang(script(code), str(witness), replicas=replicas, **more), ID)
        await until(lambda: _starts(witness) == replicas)
        return handle

    return launch


def _supervisor(handle):
    return json.loads(Path(handle.details["run_dir"], "started.json").read_text())["pid"]


async def _read(launcher, handle, cursor=None):
    return [chunk async for chunk in launcher.logs(handle, cursor or Cursor())]


# Once ----------------------------------------------------------------------------------------------------------------


async def test_a_gang_runs_and_the_end_of_every_process_is_known(launcher, gang, script, ended, witness):
    handle = await launcher.launch(gang(script(WITNESS), str(witness), replicas=3), ID)
    status = await ended(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "completed")
    assert [(end.name, end.exit_code, end.signal) for end in status.processes] == [
        (f"p-{n}", 0, None) for n in range(3)
    ]
    assert {end.host for end in status.processes} == {socket.gethostname()}
    assert _starts(witness) == 3


async def test_a_wait_ends_with_the_gang_and_says_whether_it_did(launcher, waiting):
    handle = await waiting()
    longest = asyncio.create_task(launcher.wait(handle, 100_000))
    assert await launcher.wait(handle, 0.01) is True
    assert not longest.done()
    await launcher.cancel(handle, timedelta(seconds=5))
    async with asyncio.timeout(30):
        assert await longest is False
        assert await launcher.wait(handle, 100_000) is False  # of one that has ended


async def test_launched_twice_it_runs_once(launcher, waiting, gang, script, witness, ended):
    first = await waiting()
    second = await launcher.launch(gang(script(WAITS), str(witness)), ID)
    assert first == second
    await launcher.cancel(first, timedelta(0))
    await ended(first)
    assert _starts(witness) == 1


async def test_launched_again_after_its_end_it_does_not_run_again(launcher, gang, script, witness, ended):
    handle = await launcher.launch(gang(script(WITNESS), str(witness)), ID)
    await ended(handle)
    await launcher.launch(gang(script(WITNESS), str(witness)), ID)
    assert (await ended(handle)).reason == "completed"
    assert _starts(witness) == 1


async def test_launched_by_many_threads_at_once_it_runs_once(tmp_path, gang, script, witness, ended):
    what = gang(script(WITNESS), str(witness))
    launchers = [LocalLauncher(tmp_path / "runs") for _ in range(8)]
    handles = await asyncio.gather(*(one.launch(what, ID) for one in launchers))
    assert all(handle == handles[0] for handle in handles)
    await ended(handles[0])
    assert _starts(witness) == 1


async def test_launched_by_many_processes_at_once_it_runs_once(tmp_path, gang, script, witness, ended, launcher):
    path = script(WAITS)
    code = """
        import asyncio, sys
        from pathlib import Path
        from rallypoint.launchers.local import LocalLauncher
        from rallypoint.spec.gang import Gang, Macro, Role
        from rallypoint.spec.shipment import ARCHIVE, archive
        root, path, witness, attempt = sys.argv[1:]
        role = Role(name="p", argv=(Macro.PYTHON, "-m", "rallypoint.worker", "script", path, witness))
        gang = Gang(name="test", roles=(role,), files={ARCHIVE: archive()})
        print("ready", flush=True)
        sys.stdin.readline()
        asyncio.run(LocalLauncher(Path(root)).launch(gang, attempt))
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "runs"), path, str(witness), ID]
    tries = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for one in tries:
        assert one.stdout.readline() == "ready\n"
    for one in tries:
        one.stdin.write("go\n")
        one.stdin.flush()
    assert [(one.communicate(), one.returncode)[1] for one in tries] == [0] * 6
    handle = await launcher.find(ID)
    await launcher.cancel(handle, timedelta(0))
    await ended(handle)
    assert _starts(witness) == 1


async def test_a_submitter_that_is_late_does_not_undo_a_cancel(launcher, gang, script, witness, monkeypatch, ended):
    late_is_here, go_on = threading.Event(), threading.Event()
    what, real = gang(script(WAITS), str(witness)), local.place

    def place(*args, **kwargs):
        if not late_is_here.is_set():
            late_is_here.set()
            assert go_on.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(local, "place", place)
    late = asyncio.create_task(asyncio.to_thread(launcher._prepare, what, ID))
    await asyncio.to_thread(late_is_here.wait, 30)
    await asyncio.to_thread(launcher._prepare, what, ID)
    await launcher.cancel(Handle(launcher.uri, ID), timedelta(0))
    go_on.set()
    await late
    assert (await ended(await launcher.launch(what, ID))).reason == "cancelled"
    assert _starts(witness) == 0


# Found again ---------------------------------------------------------------------------------------------------------


async def test_an_attempt_that_was_never_launched_is_not_found(launcher):
    assert await launcher.find(ID) is None


async def test_an_attempt_is_found_by_its_id_from_anywhere(launcher, waiting, tmp_path):
    handle = await waiting()
    other = open_launcher(launcher.uri)
    assert await other.find(ID) == handle
    assert (await other.poll(handle)).phase is Phase.RUNNING
    await other.cancel(handle, timedelta(0))
    assert (await launcher.poll(handle)).phase is Phase.ENDED


async def test_a_handle_is_the_same_after_json(waiting, launcher):
    handle = await waiting()
    assert Handle.from_json(json.loads(json.dumps(handle.to_json()))) == handle
    await launcher.cancel(handle, timedelta(0))


@pytest.mark.parametrize("folder", ["/var/lib/runs", "/with space/ünï", "/per%cent"])
@pytest.mark.parametrize("python", [None, "/venv/a b/bin/python"])
def test_a_launcher_is_opened_by_its_uri(folder, python):
    there = open_launcher(LocalLauncher(Path(folder), python=python).uri)
    assert (there.root, there.python) == (Path(folder), python or sys.executable)


@pytest.mark.parametrize("uri", ["slurm:///x", "local://host/x", "local:relative", "/just/a/path", ""])
def test_a_wrong_uri_says_what_is_expected(uri):
    with pytest.raises(LaunchError, match="expected"):
        open_launcher(uri)


# Together ------------------------------------------------------------------------------------------------------------


async def test_if_one_fails_the_others_are_ended(launcher, gang, script, witness, ended, jobs_left):
    code = (
        WITNESS
        + """
    while int(os.environ["RALLYPOINT_PROCESS"][-1]) != 1 or len(open(sys.argv[1]).readlines()) < 3:
        time.sleep(0.05)
    sys.exit(3)
    """
    )
    status = await ended(await launcher.launch(gang(script(code), str(witness), replicas=3), ID))
    assert status.reason == "failed"
    assert [(end.name, end.exit_code) for end in status.processes if end.first] == [("p-1", 3)]
    assert all(end.exit_code != 0 for end in status.processes)
    assert jobs_left() == {}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 3])
async def test_a_process_that_a_signal_ended_says_which(launcher, gang, script, ended, number):
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    (end,) = (await ended(await launcher.launch(gang(script(code)), ID))).processes
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {int(number)}"
    assert (end.exit_code, end.signal, end.first) == (None, name, True)


async def test_what_a_process_left_behind_ends_with_the_gang(launcher, gang, script, ended, jobs_left, tmp_path):
    code = """
        import subprocess, sys
        child = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", child],
                         start_new_session=True)
    """
    assert (await ended(await launcher.launch(gang(script(code)), ID))).reason == "completed"
    assert jobs_left() == {}


STUBBORN = (
    WITNESS
    + """
    import signal, subprocess
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = (
        "import signal, sys, time; signal.signal(15, signal.SIG_IGN);"
        "open(sys.argv[1], 'a').write('child\\\\n'); time.sleep(600)"
    )
    subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], start_new_session=True)
    while True:
        time.sleep(0.1)
"""
)


async def test_when_its_supervisor_is_killed_it_is_lost_and_nothing_is_left(
    launcher, gang, script, witness, until, ended, jobs_left
):
    handle = await launcher.launch(gang(script(STUBBORN), str(witness)), ID)
    await until(lambda: _starts(witness) == 2)  # the process and its child, which ignores everything
    os.kill(_supervisor(handle), signal.SIGKILL)
    status = await ended(handle)
    assert status.phase is Phase.LOST
    assert "is gone and left no final record" in status.message
    await until(lambda: jobs_left() == {}, deadline=10)


async def test_a_supervisor_that_is_terminated_ends_its_gang_and_says_so(waiting, ended, jobs_left):
    handle = await waiting()
    os.kill(_supervisor(handle), signal.SIGTERM)
    status = await ended(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "terminated")
    assert "SIGTERM" in status.message
    assert jobs_left() == {}


async def test_a_pid_that_was_used_again_is_not_taken_for_the_supervisor(waiting, ended, launcher):
    handle = await waiting()
    os.kill(_supervisor(handle), signal.SIGKILL)
    await ended(handle)
    path = Path(handle.details["run_dir"], "started.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": os.getpid()}))
    assert (await launcher.poll(handle)).phase is Phase.LOST


async def test_it_outlives_the_process_that_launched_it(launcher, script, witness, until):
    code = f"""
        import asyncio
        from pathlib import Path
        from rallypoint.launchers.local import LocalLauncher
        from rallypoint.spec.gang import Gang, Macro, Role
        from rallypoint.spec.shipment import ARCHIVE, archive
        argv = (Macro.PYTHON, "-m", "rallypoint.worker", "script", {script(WAITS)!r}, {str(witness)!r})
        role = Role(name="p", argv=argv)
        gang = Gang(name="test", roles=(role,), files={{ARCHIVE: archive()}})
        asyncio.run(LocalLauncher(Path({str(launcher.root)!r})).launch(gang, {ID!r}))
    """
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], start_new_session=True)
    await until(lambda: _starts(witness) == 1)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    handle = await launcher.find(ID)
    assert (await launcher.poll(handle)).phase is Phase.RUNNING
    await launcher.cancel(handle, timedelta(0))


# Cancelled -----------------------------------------------------------------------------------------------------------


async def test_a_cancelled_process_has_time_for_its_own_end(waiting, launcher, tmp_path, jobs_left):
    code = (
        WITNESS
        + """
    import signal
    def stop(*_):
        time.sleep(1)
        open(sys.argv[1] + ".saved", "w").write("saved")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    open(sys.argv[1], "a").write("ready\\n")
    while True:
        time.sleep(0.1)
    """
    )
    handle = await waiting(code.replace('file.write(f"{os.getpid()}\\n")', "pass"))
    await launcher.cancel(handle, GRACE)
    assert (tmp_path / "witness.saved").read_text() == "saved"
    assert (await launcher.poll(handle)).reason == "cancelled"
    assert jobs_left() == {}


async def test_after_the_grace_it_is_killed(launcher, gang, script, witness, until, jobs_left):
    handle = await launcher.launch(gang(script(STUBBORN), str(witness)), ID)
    await until(lambda: _starts(witness) == 2)
    await launcher.cancel(handle, timedelta(seconds=0.5))
    status = await launcher.poll(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "cancelled")
    assert [end.signal for end in status.processes] == ["SIGKILL"]
    assert jobs_left() == {}


async def test_cancelled_twice_and_after_its_end_nothing_changes(waiting, launcher):
    handle = await waiting()
    await asyncio.gather(*(launcher.cancel(handle, timedelta(0)) for _ in range(3)))
    status = await launcher.poll(handle)
    await launcher.cancel(handle, timedelta(0))
    assert await launcher.poll(handle) == status


async def test_cancelled_after_a_success_it_stays_one(launcher, gang, script, witness, ended):
    handle = await launcher.launch(gang(script(WITNESS), str(witness)), ID)
    await ended(handle)
    await launcher.cancel(handle, timedelta(0))
    assert (await launcher.poll(handle)).reason == "completed"


async def test_cancelled_before_its_launch_it_never_starts(launcher, gang, script, witness, ended):
    await launcher.cancel(Handle(launcher.uri, ID), timedelta(0))
    handle = await launcher.launch(gang(script(WITNESS), str(witness)), ID)
    assert (await ended(handle)).reason == "cancelled"
    assert (await launcher.poll(handle)).phase is Phase.ENDED
    assert _starts(witness) == 0


async def test_cancelled_before_its_launch_it_is_found_as_cancelled(launcher):
    await launcher.cancel(Handle(launcher.uri, ID), timedelta(0))
    status = await launcher.poll(await launcher.find(ID))
    assert (status.phase, status.reason) == (Phase.ENDED, "cancelled")


# Stalled -------------------------------------------------------------------------------------------------------------


async def test_a_silent_gang_is_ended_and_says_what_it_was_doing(launcher, gang, script, ended, jobs_left):
    code = """
        import time
        def waits_for_ever():
            while True:
                time.sleep(60)
        waits_for_ever()
    """
    status = await ended(await launcher.launch(gang(script(code), stall_timeout=1.5), ID))
    assert (status.phase, status.reason) == (Phase.ENDED, "stalled")
    assert "no event and no output from any process for" in status.message
    assert "waits_for_ever" in status.message
    assert "p-0" in status.message
    assert jobs_left() == {}


async def test_a_gang_that_says_something_is_not_stalled(launcher, gang, script, ended):
    code = """
        import time
        for _ in range(30):
            print("still here", flush=True)
            time.sleep(0.1)
    """
    status = await ended(await launcher.launch(gang(script(code), stall_timeout=2), ID))
    assert status.reason == "completed"


# Logs ----------------------------------------------------------------------------------------------------------------


async def test_each_process_has_its_log(launcher, gang, script, ended):
    code = "import os, sys; print('out', os.environ['RALLYPOINT_PROCESS']); print('err', file=sys.stderr)"
    handle = await launcher.launch(gang(script(code), replicas=2), ID)
    await ended(handle)
    assert {chunk.process: chunk.data for chunk in await _read(launcher, handle)} == {
        "p-0": b"out p-0\nerr\n",
        "p-1": b"out p-1\nerr\n",
    }


async def test_only_what_is_new_is_read_and_whole_lines_where_there_are_some(
    launcher, gang, script, tmp_path, until, ended
):
    code = """
        import os, sys, time
        print("one\\ntw", end="", flush=True)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.05)
        print("o\\nthree", end="", flush=True)
    """
    handle = await launcher.launch(gang(script(code), str(tmp_path / "go")), ID)
    (first,) = await until(lambda: _read(launcher, handle))
    assert (first.data, first.offset) == (b"one\n", 4)
    (tmp_path / "go").touch()
    await ended(handle)
    (second,) = await _read(launcher, handle, Cursor({"p-0": first.offset}))
    assert second.data == b"two\n"
    (last,) = await _read(launcher, handle, Cursor({"p-0": second.offset}))
    assert last.data == b"three"
    assert await _read(launcher, handle, Cursor({"p-0": last.offset})) == []


async def test_the_end_of_a_log_is_read_with_its_unfinished_line(launcher, gang, script, ended):
    code = "print('first line\\nsecond line\\nlast words', end='')"
    handle = await launcher.launch(gang(script(code)), ID)
    await ended(handle)
    (tail,) = await _read(launcher, handle, Cursor({"p-0": -22}))
    assert tail.data == b"second line\nlast words"
    (everything,) = await _read(launcher, handle, Cursor({"p-0": -10_000}))
    assert everything.data == b"first line\nsecond line\nlast words"


async def test_processes_that_are_not_named_can_be_left_out(launcher, gang, script, ended):
    handle = await launcher.launch(gang(script("print('x')"), replicas=2), ID)
    await ended(handle)
    assert [chunk.process for chunk in await _read(launcher, handle, Cursor({"p-1": 0}, others=None))] == ["p-1"]
    assert [chunk.data for chunk in await _read(launcher, handle, Cursor(others=-1))] == [b"\n", b"\n"]


async def test_a_reader_that_is_too_far_behind_goes_on_near_the_end_with_a_whole_line(launcher, gang, script, ended):
    handle = await launcher.launch(gang(script("print(*range(100_000), sep='\\n')")), ID)
    await ended(handle)
    size = Path(handle.details["run_dir"], "logs/p-0.log").stat().st_size
    (chunk,) = await _read(launcher, handle, Cursor({"p-0": 4}, max_behind=1_000))
    assert chunk.data.split()[-1] == b"99999"
    assert b"\n".join(b"%d" % n for n in range(99_900, 100_000)) in chunk.data
    assert chunk.data.split()[0] in {b"%d" % n for n in range(99_700, 99_900)}
    assert (chunk.skipped, chunk.offset) == (size - len(chunk.data) - 4, size)
    (near,) = await _read(launcher, handle, Cursor({"p-0": size - 1_000}, max_behind=1_000))
    assert (near.skipped, len(near.data)) == (0, 1_000)


async def test_what_an_attempt_left_is_removed_and_it_never_starts_again(launcher, gang, script, ended, tmp_path):
    handle = await launcher.launch(gang(script("open('file', 'w').write('x' * 1000)")), ID)
    await ended(handle)
    assert await launcher.left(ID) > 1_000
    await launcher.clean(ID, forget=False)
    assert await launcher.left(ID) == 0
    (tmp_path / "ran").unlink(missing_ok=True)
    again = await launcher.launch(gang(script(f"open({str(tmp_path / 'ran')!r}, 'w')")), ID)
    assert (await ended(again)).reason == "completed"
    assert not (tmp_path / "ran").exists()
    await launcher.clean(ID, forget=True)
    assert await launcher.find(ID) is None
    assert list(launcher.root.iterdir()) == []
    await launcher.clean(ID, forget=True)


# What processes get --------------------------------------------------------------------------------------------------


async def test_a_port_is_free_and_the_same_for_every_process(launcher, gang, script, ended, tmp_path):
    code = """
        import os, socket, sys
        port = int(sys.argv[2])
        assert os.environ["ENDPOINT"] == f"127.0.0.1:{port}"
        if os.environ["RALLYPOINT_PROCESS"] == "p-0":
            socket.create_server(("127.0.0.1", port)).close()
        open(f"{sys.argv[1]}/{os.environ['RALLYPOINT_PROCESS']}.port", "w").write(str(port))
    """
    env = {"ENDPOINT": f"{Macro.HOST}:{Macro.port('rdzv')}"}
    what = gang(script(code), str(tmp_path), Macro.port("rdzv"), replicas=2, ports=("rdzv",), env=env)
    assert (await ended(await launcher.launch(what, ID))).reason == "completed"
    assert len({(tmp_path / f"p-{n}.port").read_text() for n in range(2)}) == 1


async def test_a_secret_reaches_the_environment_and_nothing_else(waiting, launcher, tmp_path):
    code = (
        WITNESS
        + """
    assert os.environ["TOKEN"] == "hunter2-secret"
    while True:
        time.sleep(0.1)
    """
    )
    handle = await waiting(code, secrets={"TOKEN": Secret("hunter2-secret")})
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    await launcher.cancel(handle, timedelta(0))
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all(b"hunter2-secret" not in text for text in [*lines, *(path.read_bytes() for path in files)])
    assert b"TOKEN" in (Path(handle.details["run_dir"]) / "gang.json").read_bytes()


async def test_the_orchestrators_own_settings_stay_with_it(launcher, gang, script, ended, monkeypatch, tmp_path):
    withheld = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "x",
        "AIRFLOW_CONN_DB": "x",
        "_AIRFLOW_PROCESS_CONTEXT": "x",
        "PREFECT_API_KEY": "x",
        "RALLYPOINT_STAGE_FILE": "/of/another/stage.json",
        "PYTHONHOME": "/x",
        "VIRTUAL_ENV": "/x",
    }
    for name, value in (withheld | {"HTTPS_PROXY": "kept"}).items():
        if name != "PYTHONHOME":
            monkeypatch.setenv(name, value)
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    handle = await launcher.launch(gang(script(code), str(tmp_path / "env")), ID)
    assert (await ended(handle)).reason == "completed"
    env = json.loads((tmp_path / "env").read_text())
    assert set(env) & set(withheld) == set()
    assert env["HTTPS_PROXY"] == "kept"
    assert env["PYTHONPATH"] == str(Path(handle.details["run_dir"], "rallypoint.zip"))


# What cannot run here ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"python": "/nowhere/bin/python"},
            "got python='/nowhere/bin/python', expected the path of a Python interpreter",
        ),
        ({"python": "/bin/false"}, "the job's Python /bin/false cannot be run"),
        ({"requires": ("json", "no_such_module")}, "does not have no_such_module, which a test job needs: install it"),
        ({"needs_files": ("/nowhere/train.py",)}, "got the script '/nowhere/train.py', expected the absolute path"),
        ({"needs_files": ("relative.py",)}, "got the script 'relative.py', expected the absolute path"),
        ({"pickled_by": "3.8"}, "and the function was pickled by 3.8: use the same minor version for both"),
    ],
)
async def test_what_cannot_run_here_is_said_before_anything_starts(launcher, gang, script, more, says):
    with pytest.raises(PreflightError) as raised:
        await launcher.launch(gang(script("pass"), **more), ID)
    assert says in str(raised.value)
    assert await launcher.find(ID) is None


async def test_a_folder_that_cannot_be_written_is_said(tmp_path, gang, script):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="cannot write to the launcher's folder"):
        await LocalLauncher(tmp_path / "file" / "runs").launch(gang(script("pass")), ID)


async def test_a_command_that_cannot_be_started_ends_the_gang_and_says_why(launcher, ended, jobs_left):
    what = Gang(name="test", roles=(Role(name="p", argv=("/nowhere/command",)),), files={})
    status = await ended(await launcher.launch(what, ID))
    assert (status.phase, status.reason) == (Phase.ENDED, "error")
    assert "/nowhere/command" in status.message
    assert jobs_left() == {}


async def test_the_same_attempt_of_another_store_is_left_alone(tmp_path, gang, script, ended):
    """Two orchestrators on one host may run the same DAG for the same date, and so have attempts of one id."""
    code = "import time\ntime.sleep(60)"
    mine, theirs = LocalLauncher(tmp_path / "mine"), LocalLauncher(tmp_path / "theirs")
    handle = await mine.launch(gang(script(code)), ID)
    other = await theirs.launch(gang(script(code)), ID)
    started = json.loads((tmp_path / "mine" / ID / "started.json").read_text())
    os.kill(started["pid"], signal.SIGKILL)
    assert (await ended(handle, by=mine)).phase is Phase.LOST
    assert (await theirs.poll(other)).phase is Phase.RUNNING
    await theirs.cancel(other, timedelta(0))
