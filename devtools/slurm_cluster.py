"""A private Slurm on this machine, as a context manager: one controller, and node daemons that come and go.

Munge with a key and a socket of its own, slurmctld, and a slurmd per node; everything lies in one folder and listens on
free ports of this machine. It has to be root, as slurmd has. Every process of it carries the configuration's path in
its environment (Slurm gives it to jobs, too): that is how all of them are found again after any crash. Accounting is
Slurm's own memory (``accounting_storage/none``): slurmdbd needs a MySQL. Run as a script, this module runs a command
beside such a cluster; it is also the guard that ends a cluster whose owner died.
"""

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from airflow_processes import free_ports, is_alive, tail, wait_gone

NEEDED = ("sbatch", "squeue", "scancel", "scontrol", "srun", "slurmctld", "slurmd", "munged")
_MARK = "SLURM_CONF"
_START_SECONDS = 60
_BACK_SECONDS = 30  # that a living node's daemon has to be used again, before it is started anew
_KILL_SECONDS = 10
_TRIES = 3  # a port that was free may be taken before Slurm binds it
_SBIN = "/usr/sbin"  # where Debian puts daemons, which is not on every user's path


class SlurmCluster:
    """A Slurm of one controller and some nodes, all on this machine, that lasts as long as the ``with`` block.

    Its partitions: ``main`` (the default), and ``low`` and ``high``, where a job of ``high`` preempts one of ``low``.

    Args:
        nodes: The names of the nodes.
        cpus: CPUs that each node offers, whatever the machine has.

    Attributes:
        conf: The path of ``slurm.conf``, for ``SLURM_CONF``.
        folder: Everything of the cluster.
    """

    def __init__(self, nodes: Iterable[str] = ("n1", "n2"), *, cpus: int = 4) -> None:
        self.nodes = tuple(nodes)
        self.folder = Path()
        self.conf = ""
        self._cpus = cpus
        self._ports: dict[str, int] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str:
        """Return why no Slurm can be started here; empty if one can."""
        if os.geteuid() != 0:
            return "slurmd has to be started as root"
        missing = [name for name in NEEDED if _which(name) is None]
        return f"there is no {', '.join(missing)}: apt-get install slurm-wlm munge" if missing else ""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="rp-slurm-", dir="/tmp"))
        self.folder.chmod(0o711)  # munge's clients have to reach its socket
        self.conf = str(self.folder / "slurm.conf")
        self._guard = subprocess.Popen(
            [sys.executable, __file__, "--guard", self.conf], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands reach this cluster."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return clean | {_MARK: self.conf, "PATH": f"{clean.get('PATH', os.defpath)}{os.pathsep}{_SBIN}"}

    def command(self, *argv: str) -> str:
        """Run a command of Slurm's and return what it prints.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
        return done.stdout

    def jobs(self, folder: Path) -> list[str]:
        """Return the states of the jobs whose comment is a folder, as squeue writes them."""
        said = self.command("squeue", "--noheader", "--states=all", "--format=%T %k")
        found = (line.strip().partition(" ") for line in said.splitlines())
        return [state for state, _, comment in found if comment == str(folder)]

    def nodes_of(self, name: str) -> list[str]:
        """Return the names of the nodes that the jobs of a name have, and all components of one."""
        found = self.command("squeue", "--noheader", f"--name={name}", "--format=%N").split()
        return self.command("scontrol", "show", "hostnames", ",".join(found)).split() if found else []

    def node_state(self, node: str) -> str:
        """Return the state of a node, such as ``idle`` or ``down*``."""
        return self.command("sinfo", "--noheader", f"--nodes={node}", "--format=%T").split("\n")[0].strip()

    def start_controller(self) -> None:
        """Start slurmctld, again after it was stopped: it takes up its jobs.

        Raises:
            RuntimeError: It does not answer, also after more tries: its port may have been taken while it was stopped.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self._spawn("slurmctld", ["slurmctld", "-D", "-f", self.conf])
            try:
                self._until(self._answers, "slurmctld does not answer", "slurmctld")
            except RuntimeError:
                self._kill("slurmctld")
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs run on.

        It is asked to, so that it saves its state. One that is killed forgets the jobs of the last seconds, gives their
        ids to others, and takes the nodes on which they still run out of service.
        """
        process = self._running["slurmctld"]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_START_SECONDS)
        self._kill("slurmctld")

    def start_node(self, node: str) -> None:
        """Start a node's daemon, again after it was killed, and have the controller use it."""
        self._spawn(node, ["slurmd", "-D", "-N", node, "-f", self.conf])
        self._until(lambda: self._usable(node), f"the node {node} did not come up", node)

    def ensure_node(self, node: str) -> None:
        """Have the controller use a node; its daemon is started if it was killed, and anew if that is what it takes."""
        if node in self._running:
            with contextlib.suppress(RuntimeError):
                self._until(lambda: self._usable(node), f"the node {node} did not come back", node, _BACK_SECONDS)
                return
            self._kill(node)
        # What the controller still tries to tell a dead node, it tells the one that comes back: to end a job by its id,
        # which runs there again by then.
        self._until(self._has_told_everything, "the controller still has something to tell", "slurmctld")
        self.start_node(node)

    def _has_told_everything(self) -> bool:
        return re.search(r"^Agent count: +0$", self.command("sdiag"), re.MULTILINE) is not None

    def cancel_all(self) -> None:
        """End every job, and wait until none of its processes lives.

        Raises:
            RuntimeError: One does not end.
        """
        self.command("scancel", "--full", f"--user={os.getuid()}")
        self.command("scancel", f"--user={os.getuid()}")
        self._until(lambda: not self.command("squeue", "--noheader").strip(), "a job does not end", "slurmctld")

    def kill_daemon(self, node: str) -> None:
        """Kill a node's slurmd and nothing else: its jobs run on, and the controller takes the node for dead."""
        self._kill(node)

    def kill_node(self, node: str) -> None:
        """Kill everything of a node at once, as a machine dies: slurmd, the step daemons and the jobs' processes."""
        self._kill(node)
        jobs = marked(self.conf, node=node)
        # The step daemons first: one that outlives its step reports how it ended, which a dead machine does not.
        steps = {parent for job in jobs for parent in _parents(job) if parent.name().startswith("slurmstepd")}
        for step in steps:
            with contextlib.suppress(psutil.NoSuchProcess):
                step.kill()
        kill_all(self.conf, node=node)

    def stop(self) -> None:
        """End every process of the cluster and remove its files.

        Raises:
            TimeoutError: A process does not die of SIGKILL.
        """
        for name in [*reversed(self._running)]:
            self._kill(name)
        kill_all(self.conf)
        if self._guard and self._guard.stdin:
            self._guard.stdin.close()
            self._guard.wait(_START_SECONDS)
            self._guard = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def left(self) -> list[psutil.Process]:
        """Return the living processes of the cluster and of its jobs; none after `stop`."""
        return marked(self.conf)

    def log(self, name: str, lines: int = 40) -> str:
        """Return the last lines of a daemon's log: ``slurmctld``, ``munged``, or a node's name."""
        return tail(self.folder / f"{name}.log", lines)

    def _start(self) -> None:
        for left in range(_TRIES - 1, -1, -1):
            try:
                self._configure()
                self._spawn("munged", self._munge())
                self._until((self.folder / "munge.socket").exists, "munged did not start", "munged")
                self.start_controller()
                for node in self.nodes:
                    self.start_node(node)
            except RuntimeError:
                for name in [*reversed(self._running)]:
                    self._kill(name)
                if not left:
                    raise
            else:
                return

    def _configure(self) -> None:
        for name in ("state", "spool", "logs"):
            (self.folder / name).mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        controller, *daemons = free_ports(1 + len(self.nodes))
        host = socket.gethostname().partition(".")[0]
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} RealMemory=16000"
            f" Gres=accel:2 Features={name} State=UNKNOWN"
            for name, port in zip(self.nodes, daemons, strict=True)
        ]
        every = ",".join(self.nodes)
        settings = {
            "ClusterName": "rallypoint",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": controller,
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge.socket,cred_expire=5",
            "CredType": "cred/munge",
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/slurmd-%n.pid",
            "MpiDefault": "none",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SlurmdParameters": "config_overrides",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "GresTypes": "accel",
            "AccountingStorageType": "accounting_storage/none",
            "JobCompType": "jobcomp/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=1,bf_interval=1,sched_min_interval=100000",
            "MaxJobCount": 2000,
            "MinJobAge": 300,
            "KillWait": 2,
            "SlurmdTimeout": 8,  # on two busy cores a daemon was silent for more than four
            "SlurmctldTimeout": 10,
            "InactiveLimit": 0,
            "ReturnToService": 2,
            "OverTimeLimit": 0,
        }
        gres = "".join(f"NodeName={name} Name=accel Count=2\n" for name in self.nodes)
        (self.folder / "gres.conf").write_text(gres, encoding="ascii")
        lines = [
            *(f"{name}={value}" for name, value in settings.items()),
            *nodes,
            f"PartitionName=main Nodes={every} Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF",
            f"PartitionName=low Nodes={every} MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=2",
            f"PartitionName=high Nodes={every} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
        ]
        Path(self.conf).write_text("\n".join(lines) + "\n", encoding="ascii")

    def _munge(self) -> list[str]:
        where = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={self.folder}/munge.{name}" for option, name in where.items()]
        return ["munged", "--foreground", "--force", "--num-threads=2", *files]

    def _spawn(self, name: str, argv: list[str]) -> None:
        program = _which(argv[0]) or argv[0]
        with (self.folder / f"{name}.log").open("ab") as output:
            self._running[name] = subprocess.Popen(
                [program, *argv[1:]],
                env=self.environment | {"RALLYPOINT_SLURM_NODE": name},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _kill(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def _until(self, condition: Callable[[], object], what: str, name: str, seconds: float = _START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                msg = f"{what}, its last lines:\n{self.log(name)}\n\nthe nodes:\n{self._nodes()}"
                raise RuntimeError(msg)
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(subprocess.SubprocessError):
            return "UP" in self.command("scontrol", "ping")
        return False

    def _nodes(self) -> str:
        with contextlib.suppress(subprocess.SubprocessError):
            return self.command("scontrol", "show", "node")
        return "slurmctld does not answer"

    def _usable(self, node: str) -> bool:
        with contextlib.suppress(subprocess.SubprocessError):
            state = self.node_state(node)
            if state in {"idle", "mixed", "allocated"}:
                return True
            if state.startswith(("down", "drain")):  # drained: "Kill task failed", of a job that died slowly
                self.command("scontrol", "update", f"NodeName={node}", "State=RESUME")
        return False


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), _SBIN]))


def _parents(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(process.parents())
    return []


def marked(conf: str, *, node: str | None = None) -> list[psutil.Process]:
    """Return the living processes of a cluster and its jobs, or of one node."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            env = process.environ()
            of_node = node is None or node in {env.get("RALLYPOINT_SLURM_NODE"), env.get("SLURMD_NODENAME")}
            # A step daemon writes its title over its environment; it has been started in the cluster's folder.
            stepd = node is None and process.name() == "slurmstepd" and process.cwd().startswith(str(Path(conf).parent))
            if (env.get(_MARK) == conf and of_node) or stepd:
                found |= {process, *process.children(recursive=True)}
    return [process for process in found if process.pid != os.getpid() and is_alive(process)]


def kill_all(conf: str, *, node: str | None = None) -> None:
    """Kill every process of a cluster and its jobs, or of one node, and wait for its end.

    Raises:
        TimeoutError: A process does not die of SIGKILL.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    found: set[psutil.Process] = set()
    while left := {process for process in found | set(marked(conf, node=node)) if is_alive(process)}:
        if time.monotonic() > deadline:
            msg = f"{left} still live {_KILL_SECONDS} s after SIGKILL, expected none of {conf}"
            raise TimeoutError(msg)
        found |= left
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(list(left), 1)


def _guard(conf: str) -> int:
    sys.stdin.buffer.read()  # until the owner closes it, or dies
    kill_all(conf)
    shutil.rmtree(Path(conf).parent, ignore_errors=True)
    return 0


def _run(command: list[str]) -> int:
    if why := SlurmCluster.why_not():
        print(f"no Slurm can be started here: {why}", file=sys.stderr)
        return 1
    with SlurmCluster() as cluster:
        return subprocess.run(command, env=cluster.environment, check=False).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Run a command beside a private Slurm of two nodes, which ends with it."
    )
    parser.add_argument("--guard", metavar="CONF", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help="the command, such as -- rallypoint run jobs.py:train --launcher …")
    given = parser.parse_args()
    if not given.guard and not given.command:
        parser.error("expected a command")
    sys.exit(_guard(given.guard) if given.guard else _run(given.command))
