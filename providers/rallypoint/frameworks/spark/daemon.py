"""Inside the job: a JVM of Spark that leaves nothing behind, and where Spark is on this host. Standard library only."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.frameworks.spark import properties
from rallypoint.frameworks.spark.environment import FileMissingError
from rallypoint.frameworks.spark.java import require_java, require_version
from rallypoint.worker import context, reaper

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

LOOK = 0.25  # seconds between two looks at a daemon
STOP_SECONDS = 8.0  # until a daemon that was asked to end is killed
_LAST_LINES = 20
# What the processes of a job on this cluster would take for their own stage. The marks by which an attempt's processes
# are found again stay.
_STAGES_OWN = (context.STAGE_FILE, context.EVENTS_URI, context.PROCESS, context.LOGS_DIR, context.LEASE_URI)


class DaemonStartError(RuntimeError):
    """A process of Spark did not start or did not join."""


class DaemonLostError(RuntimeError):
    """A process of Spark has ended although nobody asked it to."""


class Installation:
    """Spark and Java on this host.

    Args:
        spark_home: Spark's folder; None for ``SPARK_HOME``, or the one of this Python's ``pyspark`` package.
        java_home: Java's folder; None for ``JAVA_HOME``, or the ``java`` on the path.

    Raises:
        FileMissingError: Spark is not here.
        JavaMissingError: Java is not here, or too old.
    """

    def __init__(self, spark_home: str | None = None, java_home: str | None = None) -> None:
        self.home = spark_home or os.environ.get("SPARK_HOME") or _package()
        self.java_home = java_home or os.environ.get("JAVA_HOME")
        if not Path(self.home, "bin", "spark-class").is_file() or not Path(self.home, "jars").is_dir():
            msg = (
                f"got {self.home} as Spark's folder, which has no bin/spark-class and jars: correct spark_home=, or "
                f"install the package pyspark (pyspark-client has none of it) for {sys.executable}"
            )
            raise FileMissingError(msg)
        require_version(require_java(self.java_home), self.home)

    def environment(self) -> dict[str, str]:
        """Return the variables that Spark's own scripts want."""
        found = {"SPARK_HOME": self.home}
        return found if self.java_home is None else {**found, "JAVA_HOME": self.java_home}

    def command(self, *words: str) -> list[str]:
        """Return the command line of ``spark-class``."""
        return [str(Path(self.home, "bin", "spark-class")), *words]


def _package() -> str:
    try:
        spec = importlib.util.find_spec("pyspark")
    except ValueError:
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        msg = f"there is no Spark for {sys.executable}: install the package pyspark, or give spark_home="
        raise FileMissingError(msg)
    return folders[0]


class Daemon:
    """A process of Spark below a `rallypoint.worker.reaper`: nothing of it outlives this process, however it ends.

    Args:
        argv: Its command line.
        env: Variables that it gets beside this process's own.
        log: The name of its log, beside this process's.
    """

    def __init__(self, argv: list[str], *, env: Mapping[str, str], log: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _STAGES_OWN}
        self._log = Path(os.environ.get(context.LOGS_DIR, "."), f"{log}.log")
        file = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._process = subprocess.Popen(
            reaper.command(argv), env={**environment, **env}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        os.close(file)

    def last_lines(self) -> str:
        """Return the end of what it printed."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])

    def ended(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, stop: threading.Event) -> int | None:
        """Wait until it has ended, and return its exit code; None if `stop` was set before."""
        while not stop.wait(LOOK):
            if (code := self._process.poll()) is not None:
                return code
        return None

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(reaper.KILL)
            self._process.wait()


def run_folder(name: str) -> Path:
    """Return a folder of this user alone for what a daemon writes, below the attempt's."""
    base = os.environ.get(context.RUN_DIR)
    folder = Path(base, "spark", name) if base else Path.cwd() / f"spark-{name}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_properties(path: Path, values: Mapping[str, str]) -> None:
    """Write a file of Java properties that nobody else can read."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "w", encoding="ascii") as opened:
        opened.write(properties.dump(values))


def answers(address: str) -> bool:
    """Return whether something listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def own_address(master: str) -> str:
    """Return the address by which the others of a cluster reach this host: that of the interface towards the master.

    Args:
        master: The master's ``host:port``.
    """
    host, _, port = master.rpartition(":")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return str(probe.getsockname()[0])
    return host
