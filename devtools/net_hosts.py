"""Hosts on one machine, as a context manager: network namespaces with an address and an sshd of their own, on a bridge.

They share the files and process ids of the machine, and nothing of its network: a link can be cut, a host can die with
all that runs on it, and come back. The machine itself is on the bridge, too, as the orchestrator. It needs root. Run as
``net_hosts.py -- COMMAND …`` it gives them to a command; otherwise it is the guard of an owner that may die.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

NETWORK = "10.77.0"  # /24; the machine is .1, the hosts follow
_SECONDS = 20.0  # that anything here may take
_SSHD = """\
ListenAddress {address}
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/{name}.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PrintMotd no
"""


def missing() -> str:
    """Return why there can be no hosts on this machine; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in ("ip", "sshd", "ssh-keygen"):
        if shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{command} is not installed"
    probe = f"rp-{uuid.uuid4().hex[:8]}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return ""


class NetHost:
    """One host.

    Attributes:
        name: Its name, such as ``h1``.
        address: Its address.
    """

    def __init__(self, hosts: "NetHosts", name: str, address: str) -> None:
        self.name, self.address = name, address
        self._hosts = hosts
        self._netns = f"{hosts.id}-{name}"
        self._link = f"v{hosts.id[2:]}{name}"
        self._sshd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot it: its link is up, and its sshd runs."""
        folder = self._hosts.folder
        config = folder / f"{self.name}.conf"
        config.write_text(_SSHD.format(address=self.address, folder=folder, name=self.name))
        self.link_up()
        log = (folder / f"{self.name}.log").open("ab")
        sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin") or "sshd"
        # In the foreground: it is this process's child, and its end is seen.
        command = ["ip", "netns", "exec", self._netns, sshd, "-D", "-e", "-f", str(config)]
        self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            if self._sshd.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the sshd of {self.name} did not start: {(folder / f'{self.name}.log').read_text()}"
                )
            time.sleep(0.05)

    def kill(self) -> None:
        """Let it die: its link is cut first, so nobody is told, and then every process on it is killed."""
        self.link_down()
        deadline = time.monotonic() + _SECONDS
        while pids := self.processes:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._sshd is not None:
                self._sshd.poll()
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of {self.name} do not end: {pids}")
            time.sleep(0.02)
        if self._sshd is not None:
            self._sshd.wait(_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether its sshd runs."""
        return self._sshd is not None and self._sshd.poll() is None

    def link_down(self) -> None:
        """Cut its link; everything on it goes on."""
        _run("ip", "link", "set", self._link, "down")

    def link_up(self) -> None:
        """Heal its link."""
        _run("ip", "link", "set", self._link, "up")

    @property
    def processes(self) -> list[int]:
        """The living processes of its network namespace."""
        found = _run("ip", "netns", "pids", self._netns)
        return [int(pid) for pid in found.split() if not _is_zombie(int(pid))]

    def create(self) -> None:
        """Make the namespace and its link."""
        _run("ip", "netns", "add", self._netns)
        _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._netns)
        _run("ip", "link", "set", self._link, "master", self._hosts.bridge)
        _run("ip", "-n", self._netns, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _run("ip", "-n", self._netns, "link", "set", "eth0", "up")
        _run("ip", "-n", self._netns, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Remove it with all that runs on it."""
        with contextlib.suppress(RuntimeError, subprocess.SubprocessError):
            self.kill()
        for command in (("ip", "netns", "del", self._netns), ("ip", "link", "del", self._link)):
            subprocess.run(command, capture_output=True, check=False)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1) as connection:
            return connection.recv(3) == b"SSH"
        return False


class NetHosts:
    """Some hosts and the network between them.

    Args:
        count: How many.

    Attributes:
        hosts: The hosts.
        folder: Where their keys, settings and logs are.
    """

    def __init__(self, count: int = 2) -> None:
        self.id = f"rp{uuid.uuid4().hex[:5]}"
        self.bridge = f"br{self.id[2:]}"
        self.folder = Path()
        self.hosts = [NetHost(self, f"h{number}", f"{NETWORK}.{number + 10}") for number in range(1, count + 1)]
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="rallypoint-hosts-"))
        self._guard = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid()), self.id, str(len(self.hosts)), str(self.folder)],
            start_new_session=True,
        )
        try:
            # OpenSSH's sshd wants this folder, which only its own start-up script makes.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
            for name in ("host_key", "key"):
                _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
            shutil.copy(self.folder / "key.pub", self.folder / "authorized_keys")
            kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
            lines = [f"{host.address} {kind} {key}\n" for host in self.hosts]
            (self.folder / "known_hosts").write_text("".join(lines))
            _run("ip", "link", "add", self.bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", self.bridge)
            _run("ip", "link", "set", self.bridge, "up")
            for host in self.hosts:
                host.create()
                host.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def known_hosts(self) -> Path:
        """The file of the hosts' keys."""
        return self.folder / "known_hosts"

    @property
    def key(self) -> Path:
        """The private key that every host takes."""
        return self.folder / "key"

    def stop(self) -> None:
        """Remove the hosts and the network."""
        for host in self.hosts:
            host.remove()
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        if self._guard is not None:
            self._guard.terminate()
            self._guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _guard(owner: int, hosts: NetHosts) -> None:
    """Wait for the owner's end, and remove what it left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not _is_zombie(owner):
        time.sleep(0.5)
    hosts.stop()


def _run_command(words: list[str]) -> int:
    """Run a command with two hosts; ``{uri}`` in it is the URI of a launcher of them."""
    with NetHosts(2) as hosts:
        runs = hosts.folder / "runs"
        config = hosts.folder / "hosts.toml"
        config.write_text("".join(f'["{host.address}"]\nuser = "root"\n' for host in hosts.hosts))
        query = f"root={runs}&python={sys.executable}&known_hosts={hosts.known_hosts}&lost_after=10"
        uri = f"ssh://{','.join(host.address for host in hosts.hosts)}?{query}&hosts={config}"
        print(f"two hosts: {uri}", file=sys.stderr)
        socket_of_agent = hosts.folder / "agent"
        environment = {**os.environ, "SSH_AUTH_SOCK": str(socket_of_agent)}
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_of_agent)], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + _SECONDS
            while not socket_of_agent.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            subprocess.run(["ssh-add", "-q", str(hosts.key)], env=environment, check=True)
            return subprocess.run(
                [word.replace("{uri}", uri) for word in words], env=environment, check=False
            ).returncode
        finally:
            agent.terminate()
            agent.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"] and len(sys.argv) > 2:  # noqa: PLR2004 - a command follows
        sys.exit(missing() or _run_command(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("owner", "id", "count", "folder"):
        parser.add_argument(argument)
    given = parser.parse_args()
    left = NetHosts(int(given.count))
    left.id, left.bridge, left.folder = given.id, f"br{given.id[2:]}", Path(given.folder)
    left.hosts = [NetHost(left, host.name, host.address) for host in left.hosts]
    _guard(int(given.owner), left)
