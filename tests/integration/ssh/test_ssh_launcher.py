"""Gangs on two hosts: found again, ended together, never started twice, and on their own when the network is away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import asyncssh
import psutil
import pytest

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, Phase
from rallypoint.launchers.registry import open_launcher
from rallypoint.launchers.ssh import SSHLauncher
from rallypoint.spec.gang import Gang, Macro, Role, Secret
from rallypoint.spec.shipment import ARCHIVE, archive
from rallypoint.worker import hostprocs

ID = "rp-train-0123456789-a1"
# Says what it was told, and what it is to do: wait, end, or end with an error on one host.
CODE = """
import os, select, signal, sys
from pathlib import Path
folder, what = Path(sys.argv[1]), sys.argv[2]
name = os.environ["RALLYPOINT_PROCESS"]
with open(folder / "starts", "a") as file:
    file.write(f"{name} {os.getpid()} {os.environ.get('ONLY_HERE', '-')}\\n")
print(name, *sys.argv[3:], os.environ.get("TOKEN", "")[::-1], flush=True)
if what == "fails" and name.endswith("-1"):
    sys.exit(3)
gate = os.open(folder / "go", os.O_RDONLY | os.O_NONBLOCK)
while what == "speaks on one" and name.endswith("-0") and not select.select([gate], [], [], 1)[0]:
    print("still here", flush=True)
if what != "ends":
    select.select([gate], [], [], 600)
"""


@pytest.fixture
def gang(tmp_path, gate):
    def make(what="ends", *, replicas=2, least=None, secrets=None, **more):
        argv = (Macro.PYTHON, "-c", CODE, str(tmp_path), what, Macro.HOST, Macro.ADDRESS, Macro.port("p"), Macro.NODES)
        role = Role(name="p", argv=argv, replicas=replicas, min_replicas=least, ports=("p",))
        hidden = {name: Secret(value) for name, value in (secrets or {}).items()}
        return Gang(name="test", roles=(role,), files={ARCHIVE: archive()}, secrets=hidden, **more)

    return make


@pytest.fixture
def starts(tmp_path):
    def read():
        path = tmp_path / "starts"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(name, int(pid), here) for name, pid, here in lines]

    return read


@pytest.fixture
def ended(launcher, until):
    async def wait(handle, of=None):
        async def status():
            found = await (of or launcher).poll(handle)
            return found if found.phase is not Phase.RUNNING else None

        return await until(status)

    return wait


@pytest.fixture
async def waiting(launcher, gang, starts, until):
    """Launches a gang that waits, and ends it."""
    handles = []

    async def launch(**more):
        handle = await launcher.launch(gang("waits", **more), ID)
        handles.append(handle)
        await until(lambda: len(starts()) >= len(handle.details["hosts"]))
        return handle

    yield launch
    for handle in handles:
        await launcher.cancel(handle, timedelta(0))


def _names(starts):
    return sorted(name for name, _, _ in starts)


# Started -------------------------------------------------------------------------------------------------------------


async def test_each_host_runs_its_part_and_knows_the_others(launcher, gang, hosts, ended):
    handle = await launcher.launch(gang(secrets={"TOKEN": "terces"}), ID)
    status = await ended(handle)
    assert (status.reason, [end.exit_code for end in status.processes]) == ("completed", [0, 0])
    said = {chunk.process: chunk.data.decode().split() async for chunk in launcher.logs(handle, Cursor())}
    first, second = (host.address for host in hosts)
    port = said["p-0"][3]
    assert said == {
        "p-0": ["p-0", first, first, port, "2", "secret"],
        "p-1": ["p-1", first, second, port, "2", "secret"],
    }
    assert json.loads(json.dumps(handle.to_json())) == handle.to_json()


async def test_a_secret_is_in_no_command_line_and_in_no_file(launcher, waiting, starts, tmp_path, network):
    await waiting(secrets={"TOKEN": "s3cr3t-t0ken"})
    assert all(hostprocs.environment(pid)["TOKEN"] == "s3cr3t-t0ken" for _, pid, _ in starts())
    lines = []
    for process in psutil.process_iter():
        try:
            lines += process.cmdline()
        except psutil.Error:
            continue
    assert any("rallypoint.worker.supervisor" in line for line in lines)
    assert not [line for line in lines if "s3cr3t-t0ken" in line]
    for folder in (tmp_path, network.folder):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if b"s3cr3t-t0ken" in path.read_bytes()]


async def test_a_host_has_its_own_environment_and_python(uri, network, hosts, gang, starts, until, tmp_path):
    python = tmp_path / "python-of-h2"
    python.symlink_to(sys.executable)
    more = {hosts[1].address: {"env": {"ONLY_HERE": "eth1"}, "python": str(python)}}
    launcher = SSHLauncher.from_uri(uri(), {"client_keys": str(network.key), "hosts": more})
    handle = await launcher.launch(gang("waits"), ID)
    try:
        await until(lambda: len(starts()) == 2)
        found = {name: (psutil.Process(pid).cmdline()[0], here) for name, pid, here in starts()}
        assert found == {"p-0": (sys.executable, "-"), "p-1": (str(python), "eth1")}
    finally:
        await launcher.cancel(handle, timedelta(0))


# Found again ---------------------------------------------------------------------------------------------------------


async def test_an_attempt_is_found_from_anywhere_and_launching_it_again_starts_nothing(
    launcher, gang, waiting, starts, uri, network
):
    handle = await waiting()
    other = SSHLauncher.from_uri(uri(), {"client_keys": str(network.key)})
    assert await other.find(ID) == handle
    assert await other.find("rp-train-0123456789-a2") is None
    again = await asyncio.gather(*(other.launch(gang("waits"), ID) for _ in range(3)))
    assert {json.dumps(found.to_json()) for found in again} == {json.dumps(handle.to_json())}
    assert _names(starts()) == ["p-0", "p-1"]


async def test_of_many_launches_at_once_one_counts(launcher, gang, starts, ended, tmp_path):
    handles = await asyncio.gather(*(launcher.launch(gang(), ID) for _ in range(5)))
    assert len({json.dumps(handle.to_json()) for handle in handles}) == 1
    assert (await ended(handles[0])).reason == "completed"
    assert _names(starts()) == ["p-0", "p-1"]


async def test_a_launch_that_was_cut_off_between_two_hosts_is_finished(launcher, gang, starts, ended, monkeypatch):
    real = SSHLauncher._start

    async def start(self, link, attempt, plan, number, *more):
        if number == 1:
            raise LaunchError("the submitter died here")
        return await real(self, link, attempt, plan, number, *more)

    monkeypatch.setattr(SSHLauncher, "_start", start)
    with pytest.raises(LaunchError, match="died here"):
        await launcher.launch(gang(), ID)
    monkeypatch.undo()
    assert await launcher.find(ID) is None
    assert (await ended(await launcher.launch(gang(), ID))).reason == "completed"
    assert _names(starts()) == ["p-0", "p-1"]


async def test_an_attempt_that_was_cancelled_before_its_launch_never_starts(launcher, gang, starts, ended):
    await launcher.cancel(Handle(launcher.uri, ID), timedelta(0))
    handle = await launcher.launch(gang(), ID)
    assert (await ended(handle)).reason == "cancelled"
    assert await launcher.find(ID) == handle
    assert starts() == []


# Ended together ------------------------------------------------------------------------------------------------------


async def test_a_process_that_fails_on_one_host_ends_the_gang(launcher, gang, ended, starts):
    handle = await launcher.launch(gang("fails"), ID)
    status = await ended(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "failed")
    assert [(end.name, end.first, end.exit_code) for end in status.processes] == [
        ("p-0", False, None),
        ("p-1", True, 3),
    ]
    assert all(hostprocs.start_time(pid) is None for _, pid, _ in starts())


async def test_a_cancel_ends_every_host_and_can_be_repeated(launcher, waiting, starts):
    handle = await waiting()
    for _ in range(2):
        await launcher.cancel(handle, timedelta(seconds=5))
    status = await launcher.poll(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "cancelled")
    assert all(hostprocs.start_time(pid) is None for _, pid, _ in starts())


async def test_a_host_that_dies_ends_the_rest_of_a_gang_of_fixed_size(launcher, waiting, ended, starts, hosts):
    handle = await waiting()
    hosts[1].kill()
    status = await ended(handle)
    assert (status.phase, status.reason) == (Phase.LOST, "host lost")
    assert hosts[1].address in status.message
    assert all(hostprocs.start_time(pid) is None for _, pid, _ in starts())


async def test_a_supervisor_that_is_killed_is_seen_at_once_on_its_host(launcher, waiting, ended, starts):
    handle = await waiting()
    pid = next(pid for name, pid, _ in starts() if name == "p-1")
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    status = await ended(handle)
    assert (status.phase, status.reason) == (Phase.LOST, "host lost")
    assert "is gone and left no final record" in status.message


async def test_a_host_that_returns_with_a_part_of_an_older_attempt_ends_it(
    launcher, waiting, gang, starts, ended, hosts
):
    handle = await waiting()
    hosts[1].link_down()
    assert (await ended(handle)).phase is Phase.LOST
    left = next(pid for name, pid, _ in starts() if name == "p-1")
    assert hostprocs.start_time(left) is not None
    hosts[1].link_up()
    second = await launcher.launch(gang(), ID[:-1] + "2")
    assert (await ended(second)).reason == "completed"
    assert hostprocs.start_time(left) is None


async def test_a_gang_is_hung_only_if_no_host_says_a_word(launcher, gang, gate, ended, until):
    handle = await launcher.launch(gang("waits", stall_timeout=3.0), ID)
    status = await ended(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "stalled")
    assert "no event and no output from any process on any host for " in status.message
    assert "was doing this" in status.message
    spoken = await launcher.launch(gang("speaks on one", stall_timeout=3.0), ID[:-1] + "2")

    async def has_spoken():
        said = [chunk.data async for chunk in launcher.logs(spoken, Cursor()) if chunk.process == "p-0"]
        return b"".join(said).count(b"still here") >= 6  # one each second, while the other one is silent

    await until(has_spoken)
    gate.open()
    assert (await ended(spoken)).reason == "completed"


# Elastic --------------------------------------------------------------------------------------------------------------


async def test_an_elastic_gang_starts_without_a_host_that_comes_late_dies_and_comes_back(
    launcher, gang, hosts, starts, until, gate, ended
):
    hosts[1].kill()
    elastic = gang("waits", replicas=4, least=1, secrets={"TOKEN": "terces"})
    handle = await launcher.launch(elastic, ID)
    running = []

    async def joined(count):
        running.append((await launcher.poll(handle)).phase)
        return len(starts()) == count

    await until(lambda: joined(1))
    assert _names(starts()) == ["p-0"]
    for count in (2, 3):
        hosts[1].start()
        await until(lambda count=count: joined(count), deadline=120)
        name, pid, _ = starts()[-1]
        assert (name, hostprocs.environment(pid)["TOKEN"]) == ("p-1", "terces")
        if count == 2:
            hosts[1].kill()
    assert set(running) == {Phase.RUNNING}
    gate.open()
    status = await ended(handle)
    assert (status.reason, [end.exit_code for end in status.processes]) == ("completed", [0, 0])
    said = {chunk.process: chunk.data.decode().split() async for chunk in launcher.logs(handle, Cursor())}
    assert {name: words[-2:] for name, words in said.items()} == {"p-0": ["1:2", "secret"], "p-1": ["1:2", "secret"]}


async def test_a_cancelled_elastic_gang_takes_in_nobody(launcher, gang, hosts, starts, until):
    handle = await launcher.launch(gang("waits", replicas=2, least=1), ID)
    await until(lambda: len(starts()) == 2)
    hosts[1].kill()
    await launcher.cancel(handle, timedelta(0))
    hosts[1].start()
    for _ in range(3):
        assert (await launcher.poll(handle)).reason == "cancelled"
    assert await launcher.find(ID) == handle
    assert len(starts()) == 2


# On their own --------------------------------------------------------------------------------------------------------


async def test_a_connection_that_drops_ends_nothing_and_comes_back(launcher, waiting, hosts, starts, gate, ended):
    handle = await waiting()
    for host in hosts:
        for pid in host.processes:
            if "sshd: root" in " ".join(psutil.Process(pid).cmdline()):
                os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        assert (await launcher.poll(handle)).phase is Phase.RUNNING
    assert all(hostprocs.start_time(pid) is not None for _, pid, _ in starts())
    gate.open()
    assert (await ended(handle)).reason == "completed"


async def test_a_gang_outlives_a_cut_link_that_is_healed_in_time(uri, network, gang, hosts, gate, until, starts):
    launcher = SSHLauncher.from_uri(uri(lost_after=600), {"client_keys": str(network.key)})
    handle = await launcher.launch(gang("waits"), ID)
    await until(lambda: len(starts()) == 2)
    hosts[1].link_down()
    began = time.monotonic()
    assert (await launcher.poll(handle)).phase is Phase.RUNNING
    assert time.monotonic() - began < 15  # it waits for a silent host, but not long
    gate.open()
    await until(lambda: all(hostprocs.start_time(pid) is None for _, pid, _ in starts()))
    assert (await launcher.poll(handle)).phase is Phase.RUNNING
    hosts[1].link_up()

    async def completed():
        return (await launcher.poll(handle)).reason == "completed"

    await until(completed)


async def test_too_few_hosts_do_not_say_that_an_attempt_was_never_launched(launcher, gang, hosts):
    hosts[1].kill()
    with pytest.raises(LaunchError, match=f"too few hosts answer to say whether {ID} runs"):
        await launcher.find(ID)
    with pytest.raises(LaunchError, match=r"1 of 2 hosts answer, expected 2 for this test job"):
        await launcher.launch(gang(), ID)


# Who is trusted ------------------------------------------------------------------------------------------------------


async def test_a_host_whose_key_is_not_known_is_refused(uri, network, gang, tmp_path, hosts):
    empty = tmp_path / "known_hosts"
    empty.touch()
    launcher = SSHLauncher.from_uri(uri(known_hosts=empty), {"client_keys": str(network.key)})
    with pytest.raises(LaunchError, match="its host key is not the one in"):
        await launcher.launch(gang(), ID)
    text = network.known_hosts.read_text()
    trusting = SSHLauncher.from_uri(uri(known_hosts=empty), {"client_keys": str(network.key), "host_keys": text})
    assert await trusting.find(ID) is None


async def test_a_key_that_a_host_does_not_take_is_refused(uri, gang, tmp_path):
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "other")
    launcher = SSHLauncher.from_uri(uri(), {"client_keys": str(tmp_path / "other")})
    with pytest.raises(LaunchError, match="it refuses the user or key"):
        await launcher.launch(gang(), ID)


async def test_the_uri_of_a_record_gets_no_credentials_but_for_the_own_hosts(launcher, uri, network, hosts):
    assert launcher.reopen(uri(names=["10.77.0.99"])) is None
    assert launcher.reopen(uri(root="elsewhere")) is None
    assert launcher.reopen("local:///tmp/runs") is None
    other = launcher.reopen(uri(names=[hosts[0].address], python="/bin/false"))
    assert ([host.name for host in other.address.hosts], other.address.python) == ([hosts[0].address], sys.executable)
    with pytest.raises(LaunchError, match="it refuses the user or key"):
        await open_launcher(uri(), ambient=False).find(ID)


# Checked before ------------------------------------------------------------------------------------------------------


async def test_a_python_without_the_framework_is_said_before_anything_starts(launcher, gang, hosts):
    with pytest.raises(PreflightError, match=rf"{hosts[0].address}: the job's Python .* does not have no_such_module"):
        await launcher.launch(gang(requires=("no_such_module",)), ID)
    assert await launcher.find(ID) is None


async def test_a_python_that_is_not_there_is_said(uri, network, gang, hosts):
    launcher = SSHLauncher.from_uri(uri(python="/no/such/python"), {"client_keys": str(network.key)})
    with pytest.raises(LaunchError, match="/no/such/python could not be started there"):
        await launcher.launch(gang(), ID)


async def test_a_survey_compares_the_hosts(launcher, hosts):
    reports = await launcher.survey(requires=("psutil", "no_such_module"))
    assert [report.host for report in reports] == [host.address for host in hosts]
    assert {report.python for report in reports} == {f"{sys.version_info[0]}.{sys.version_info[1]}"}
    assert all(abs(report.skew) < 5 and report.versions["psutil"] == psutil.__version__ for report in reports)
    assert reports[1].problems == (f"{hosts[1].address} has no no_such_module",)
    hosts[1].kill()
    found = await launcher.survey()
    assert f"{hosts[1].address} does not answer" in found[1].problems[0]


# Removed -------------------------------------------------------------------------------------------------------------


async def test_what_an_attempt_left_is_removed_and_it_never_starts_again(launcher, gang, waiting, starts, ended, gate):
    handle = await waiting()
    with pytest.raises(LaunchError, match="still running"):
        await launcher.clean(ID, forget=False)
    gate.open()
    await ended(handle)
    assert await launcher.left(ID) > 100_000
    await launcher.clean(ID, forget=False)
    assert await launcher.left(ID) == 0
    assert (await ended(await launcher.launch(gang(), ID))).reason == "cancelled"
    assert len(starts()) == 2
    await launcher.clean(ID, forget=True)
    assert not Path(launcher.address.root, ID).exists()
