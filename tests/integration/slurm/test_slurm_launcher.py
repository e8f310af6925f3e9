"""Gangs on a real Slurm: they end as the local launcher's do, on two nodes, and everything finds them again."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from datetime import timedelta

import pytest

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Phase
from rallypoint.launchers.slurm import SlurmLauncher, queue
from rallypoint.launchers.slurm.states import Meaning
from rallypoint.spec.gang import Secret

pytestmark = pytest.mark.engine

HELLO = """
    import os, socket
    print("hello from", os.environ["RALLYPOINT_PROCESS"], os.environ["SLURMD_NODENAME"], os.environ.get("TOKEN"))
"""
SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(600)"


async def ended(launcher, handle, until, deadline=60.0):
    async def look():
        status = await launcher.poll(handle)
        return status if status.phase is not Phase.RUNNING else None

    return await until(look, deadline=deadline)


async def logs_of(launcher, handle):
    return {chunk.process: chunk.data.decode() async for chunk in launcher.logs(handle, Cursor())}


async def test_a_gang_runs_on_two_nodes_and_completes(launcher, gang, script, until, slurm, tmp_path):
    handle = await launcher.launch(gang(script(HELLO), replicas=2), "rp-hello-1")
    status = await ended(launcher, handle, until)
    assert (status.phase, status.reason) == (Phase.ENDED, "completed"), status
    assert [(end.name, end.exit_code) for end in status.processes] == [("p-0", 0), ("p-1", 0)]
    text = await logs_of(launcher, handle)
    assert "hello from p-0 n1" in text["p-0"]
    assert "hello from p-1 n2" in text["p-1"]
    await until(lambda: slurm.jobs(tmp_path / "runs" / "rp-hello-1") == ["COMPLETED"])


async def test_a_process_that_fails_on_one_node_ends_the_others_and_is_named_first(launcher, gang, script, until):
    code = """
        import os, sys, time
        from pathlib import Path
        if os.environ["RALLYPOINT_PROCESS"] == "p-1":
            while not Path("p-0-is-up").exists():
                time.sleep(0.05)
            sys.exit(3)
        Path("p-0-is-up").touch()
        time.sleep(600)
    """
    handle = await launcher.launch(gang(script(code), replicas=2), "rp-fails-1")
    status = await ended(launcher, handle, until)
    assert (status.phase, status.reason) == (Phase.ENDED, "failed"), status
    assert [(end.name, end.exit_code, end.first) for end in status.processes if end.first] == [("p-1", 3, True)]


async def test_a_cancelled_gang_has_its_grace_and_leaves_nothing(launcher, gang, script, until, slurm, tmp_path):
    code = f"""
        import signal, sys, time
        from pathlib import Path
        here = Path({str(tmp_path)!r})
        def end(*_):
            time.sleep(1)
            (here / "ended-in-peace").touch()
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        (here / "up").touch()
        time.sleep(600)
    """
    handle = await launcher.launch(gang(script(code)), "rp-cancel-1")
    await until((tmp_path / "up").exists)
    await launcher.cancel(handle, timedelta(seconds=10))
    status = await launcher.poll(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "cancelled"), status
    assert (tmp_path / "ended-in-peace").exists()
    await launcher.cancel(handle, timedelta(seconds=10))  # once more does nothing
    await until(lambda: slurm.jobs(tmp_path / "runs" / "rp-cancel-1")[0] not in {"RUNNING", "COMPLETING"})


async def test_a_job_that_waits_is_cancelled_at_once_and_never_starts(uri, gang, script, tmp_path, slurm):
    launcher = SlurmLauncher.from_uri(uri(sbatch="--hold"))
    handle = await launcher.launch(gang(script(SLEEP)), "rp-held-1")
    assert (await launcher.poll(handle)).phase is Phase.RUNNING  # still there
    await launcher.cancel(handle, timedelta(seconds=10))
    assert (await launcher.poll(handle)).reason == "cancelled"
    assert slurm.jobs(tmp_path / "runs" / "rp-held-1") == ["CANCELLED"]


async def test_an_attempt_that_was_cancelled_before_it_was_submitted_never_runs(
    launcher, gang, script, slurm, tmp_path
):
    handle = await launcher.find("rp-never-1")
    assert handle is None
    await launcher.cancel(launcher._handle("rp-never-1"), timedelta(seconds=1))
    handle = await launcher.launch(gang(script(SLEEP)), "rp-never-1")
    assert (await launcher.poll(handle)).reason == "cancelled"
    assert slurm.jobs(tmp_path / "runs" / "rp-never-1") == []


async def test_secrets_reach_the_process_and_no_argument_list_or_file(launcher, gang, script, until, slurm, tmp_path):
    secret = "s3cr3t-8d1f"
    handle = await launcher.launch(gang(script(HELLO), secrets={"TOKEN": Secret(secret)}), "rp-secret-1")
    status = await ended(launcher, handle, until)
    assert status.reason == "completed"
    assert secret in (await logs_of(launcher, handle))["p-0"]
    shown = slurm.command("scontrol", "show", "job", str(handle.details["job"]))
    assert secret not in shown
    logs = tmp_path / "runs" / "rp-secret-1" / "logs"
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or path.parent == logs or secret.encode() not in path.read_bytes(), path


async def test_two_submissions_of_one_attempt_run_it_once(launcher, gang, script, until, slurm, tmp_path, monkeypatch):
    code = f"""
        from pathlib import Path
        with open({str(tmp_path / "witness")!r}, "a") as file:
            file.write("ran\\n")
    """
    job = gang(script(code))

    async def nobody(attempt):
        return None

    monkeypatch.setattr(launcher, "find", nobody)  # both submitters look before either has submitted
    first = await launcher.launch(job, "rp-twice-1")
    second = await launcher.launch(job, "rp-twice-1")
    monkeypatch.undo()
    assert first.details["job"] != second.details["job"]
    assert (await ended(launcher, first, until)).reason == "completed"
    assert (await ended(launcher, second, until)).reason == "completed"
    await until(lambda: slurm.jobs(tmp_path / "runs" / "rp-twice-1") == ["COMPLETED", "COMPLETED"])
    assert (tmp_path / "witness").read_text() == "ran\n"


async def test_a_python_without_what_the_job_needs_is_the_users_error(uri, gang, script, until):
    launcher = SlurmLauncher.from_uri(uri())
    handle = await launcher.launch(gang(script(HELLO), requires=("no_such_module_xyz",)), "rp-lacks-1")
    status = await ended(launcher, handle, until)
    assert status.reason == "preflight"
    assert "no_such_module_xyz" in status.message
    launcher = SlurmLauncher.from_uri(uri(python="/nowhere/bin/python"))
    handle = await launcher.launch(gang(script(HELLO)), "rp-lacks-2")
    status = await ended(launcher, handle, until)
    assert status.reason == "preflight"
    assert "/nowhere/bin/python" in status.message


async def test_what_slurm_refuses_is_the_users_error(uri, gang, script):
    launcher = SlurmLauncher.from_uri(uri("nopartition"))
    with pytest.raises(PreflightError, match="partition"):
        await launcher.launch(gang(script(HELLO)), "rp-refused-1")


async def test_the_shared_folder_goes_and_the_attempt_never_starts_again(launcher, gang, script, until, tmp_path):
    handle = await launcher.launch(gang(script(HELLO)), "rp-clean-1")
    await ended(launcher, handle, until)
    assert await launcher.left("rp-clean-1") > 0
    await until(lambda: launcher_is_free(launcher, "rp-clean-1"))
    await launcher.clean("rp-clean-1", forget=False)
    assert await launcher.left("rp-clean-1") == 0
    again = await launcher.launch(gang(script(HELLO)), "rp-clean-1")
    assert again.details["job"] == handle.details["job"]
    await launcher.clean("rp-clean-1", forget=True)
    assert not (tmp_path / "runs" / "rp-clean-1").exists()


async def launcher_is_free(launcher, attempt):
    return all(job.meaning is not Meaning.THERE for job in await launcher._jobs_of(attempt))


async def test_a_survey_says_what_the_nodes_have_and_lack(launcher, slurm):
    slurm.command("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=a broken fan")
    try:
        first, second = await launcher.survey(requires=("pytest", "no_such_module_xyz"))
    finally:
        slurm.command("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert (first.host, first.python, first.cpus) == ("n1", f"{sys.version_info[0]}.{sys.version_info[1]}", 4)
    assert first.versions == {"pytest": pytest.__version__}
    assert first.problems == ("n1 has no no_such_module_xyz",)
    assert abs(first.skew) < 5
    assert second.python == ""
    assert "a broken fan" in second.problems[0]


async def test_the_test_button_asks_slurm(launcher, uri, tmp_path):
    with pytest.raises(LaunchError, match="cannot be written"):
        await launcher.check()
    (tmp_path / "runs").mkdir()
    assert "partition main with 2 nodes" in await launcher.check()
    with pytest.raises(LaunchError, match="nopartition"):
        await SlurmLauncher.from_uri(uri("nopartition")).check()


async def test_two_hundred_waiting_stages_ask_slurm_as_one(uri, gang, script, tmp_path, monkeypatch):
    launcher = SlurmLauncher.from_uri(uri(sbatch="--hold"))
    job, few = gang(script(SLEEP)), asyncio.Semaphore(4)

    async def launch(number):
        async with few:
            return await launcher.launch(job, f"rp-many-{number}")

    handles = await asyncio.gather(*(launch(number) for number in range(200)))
    monkeypatch.setattr(queue, "SHORTEST", 2.0)
    monkeypatch.setattr(queue, "LONGEST", 3.0)
    count, shim = tmp_path / "count", tmp_path / "bin" / "squeue"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\necho "$*" >> {count}\nexec {shutil.which("squeue")} "$@"\n')
    shim.chmod(0o755)
    count.touch()
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    loop, looks = asyncio.get_running_loop(), 0
    end = loop.time() + 8
    while loop.time() < end:
        statuses = await asyncio.gather(*(launcher.poll(handle) for handle in handles))
        assert {status.phase for status in statuses} == {Phase.RUNNING}
        looks += len(statuses)
        await asyncio.sleep(0.05)
    asked = count.read_text().splitlines()
    assert looks >= 1_000
    assert 1 <= len(asked) <= 6, f"{len(asked)} questions for {looks} looks"  # one each 2 s, and one at the start
