"""Slurm through a login node: its commands run there, and the shared folder is seen there and not here."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from airflow_processes import free_ports
from net_hosts import missing

from rallypoint.errors import LaunchError
from rallypoint.launchers.base import Cursor, Phase
from rallypoint.launchers.registry import launcher_of
from rallypoint.launchers.slurm import SlurmLauncher
from rallypoint.launchers.slurm.site import LoginSite
from rallypoint.spec.gang import Secret

pytestmark = pytest.mark.engine

SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
"""


class Login:
    """A login node: an sshd on this machine, whose sessions see the cluster."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_ports(1)[0]
        self.process = None

    def start(self):
        (self.folder / "sshd.conf").write_text(SSHD.format(port=self.port, folder=self.folder))
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
        self.process = subprocess.Popen(
            [sshd, "-D", "-e", "-f", str(self.folder / "sshd.conf")], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError("the sshd does not answer")

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def login(tmp_path, slurm):
    if why := missing():
        pytest.skip(f"NO LOGIN NODE IS TESTED HERE: {why}")
    folder = tmp_path / "login"
    folder.mkdir()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # which only its own start-up script makes
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    found = Login(folder)
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{found.port} {kind} {key}\n")
    found.start()
    yield found
    found.stop()


@pytest.fixture
def far(login, uri):
    """A launcher that reaches Slurm through the login node."""
    more = {
        "login": f"root@127.0.0.1:{login.port}",
        "login_python": sys.executable,
        "known_hosts": str(login.folder / "known_hosts"),
    }
    return SlurmLauncher.from_uri(uri(**more), {"client_keys": [str(login.folder / "key")]})


async def ended(launcher, handle, until):
    async def look():
        status = await launcher.poll(handle)
        return status if status.phase is not Phase.RUNNING else None

    return await until(look)


async def test_a_gang_is_submitted_watched_read_and_cancelled_through_the_login_node(
    far, gang, script, until, tmp_path, monkeypatch
):
    assert isinstance(far._site, LoginSite)
    monkeypatch.setenv("PATH", "/nowhere")  # no command of Slurm's is on this side
    (tmp_path / "runs").mkdir()
    assert "partition main" in await far.check()
    hello = script("import os\nprint('hello from', os.environ['SLURMD_NODENAME'], os.environ['TOKEN'])")
    handle = await far.launch(gang(hello, replicas=2, secrets={"TOKEN": Secret("t0ken")}), "rp-far-1")
    status = await ended(far, handle, until)
    assert status.reason == "completed", status
    assert [end.name for end in status.processes] == ["p-0", "p-1"]
    text = {chunk.process: chunk.data.decode() async for chunk in far.logs(handle, Cursor())}
    assert text["p-0"] == "hello from n1 t0ken\n"
    assert (await far.find("rp-far-1")).details["job"] == handle.details["job"]
    assert await far.left("rp-far-1") > 0
    sleeps = script("import time\nprint('up', flush=True)\ntime.sleep(600)", "sleeps.py")
    handle = await far.launch(gang(sleeps), "rp-far-2")
    monkeypatch.undo()
    await until((tmp_path / "runs" / "rp-far-2" / "logs" / "p-0.log").exists)
    await far.cancel(handle, timedelta(seconds=5))
    assert (await far.poll(handle)).reason == "cancelled"


async def test_a_login_node_that_is_away_says_nothing_about_the_job(far, login, gang, script, until, gate):
    code = """
        import os, select, sys
        select.select([os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
    """
    handle = await far.launch(gang(script(code), str(gate.path)), "rp-away-1")
    link = await far._site._link()
    login.stop()
    await link.close()
    assert (await far.poll(handle)).phase is Phase.RUNNING
    assert [chunk async for chunk in far.logs(handle, Cursor())] == []
    with pytest.raises(LaunchError):
        await far.find("rp-away-2")  # what is not known is not called absent
    await asyncio.to_thread(login.start)
    gate.open()
    assert (await ended(far, handle, until)).reason == "completed"


async def test_a_record_of_another_place_gets_no_keys(far, uri):
    older = launcher_of(far.uri + "&time=5", far)
    assert older._access == far._access
    other = launcher_of(uri(login="root@192.0.2.1"), far)
    assert other._access != far._access
    assert not other._ambient
