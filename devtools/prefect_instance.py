"""A private Prefect server on 127.0.0.1, for the demo and for the test session.

The server, what serves deployments and the workers are processes of their own, each in its own session: one of them
can be killed with SIGKILL and started again alone. They are ended by their process ids, never by name. When the process
that started them ends in any way, SIGKILL included, a small guard process stops what is left.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from rallypoint.worker import context

MARK = "RALLYPOINT_PREFECT_INSTANCE"
_POLL_SECONDS = 0.2
_DETACH = b"detach"

_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}

_FAST_SETTINGS = {
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.3",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.3",
}


class PrefectInstanceError(RuntimeError):
    """A private Prefect server could not be started, or one of its processes is not what was asked for."""


class PrefectInstance:
    """A private Prefect server, and processes that run its deployments.

    Use it as a context manager, or call `start` and `stop`.

    Args:
        home: PREFECT_HOME. It may exist: a second start in the same home keeps its database.
        env: Further environment variables for every process; they win over the settings made here.
        python: The interpreter whose Prefect runs.
        fast: Short polling intervals, so that tests see a run start within a second.
        start_timeout: Seconds until the server has to answer.
    """

    def __init__(
        self,
        home: Path,
        *,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        fast: bool = False,
        start_timeout: float = 180,
    ) -> None:
        self.home = Path(home).absolute()
        self._extra_env = dict(env or {})
        self._python = python
        self._fast = fast
        self._start_timeout = start_timeout
        self._port = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of the UI."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def api_url(self) -> str:
        """The address of the REST API."""
        return f"{self.url}/api"

    @property
    def env(self) -> dict[str, str]:
        """The environment of every process: pass it to a command that shall act on this server."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        own = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_URL": self.url,
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self._port),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.home}/prefect.db",
            MARK: str(self.home),
        }
        return inherited | _SETTINGS | (_FAST_SETTINGS if self._fast else {}) | own | self._extra_env

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            PrefectInstanceError: If it does not.
        """
        (self.home / "processes").mkdir(parents=True, exist_ok=True)
        stop_home(self.home)
        self._port = _free_port()
        atexit.register(self.stop)
        # The guard reads a pipe that only this process writes to: it ends with this process, however that dies.
        self._guard = subprocess.Popen(
            [sys.executable, __file__, "--guard", str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        arguments = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port))
        process = self.run("server", arguments)
        deadline = time.monotonic() + self._start_timeout
        with httpx.Client(trust_env=False, timeout=5) as client:
            while not _is_healthy(client, self.api_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = self.log_tail("server")
                    self.stop()
                    raise PrefectInstanceError(
                        f"the server in {self.home} did not answer in {self._start_timeout:.0f} s "
                        f"(exit code {process.poll()}); its log ends with\n{tail}"
                    )
                time.sleep(_POLL_SECONDS)
        return self

    def run(
        self, name: str, arguments: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a Python process of this instance, such as one that serves a deployment.

        Args:
            name: What its log is called.
            arguments: Python's arguments.
            cwd: Its working directory; the home by default.
            env: Further environment variables.
        """
        with (self.home / "processes" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [self._python, *arguments],
                cwd=cwd or self.home,
                env=self.env | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches this process only, which then stops them
            )
        self._processes[name] = process
        return process

    def serve(self, script: Path, *, name: str = "serve") -> subprocess.Popen[bytes]:
        """Start a script that serves deployments, in the script's folder."""
        return self.run(name, (str(script),), cwd=script.parent)

    def worker(self, pool: str, *, name: str = "worker") -> subprocess.Popen[bytes]:
        """Start a process worker; its work pool is made if there is none."""
        return self.run(name, ("-m", "prefect", "worker", "start", "--type", "process", "--pool", pool))

    def end(self, name: str, *, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> None:
        """End one process by a signal, and with SIGKILL what is left of it after `timeout` seconds."""
        process = self._processes.pop(name)
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_tail(self, name: str, *, lines: int = 40) -> str:
        """Return the last lines of a process's log."""
        path = self.home / "processes" / f"{name}.log"
        if not path.exists():
            return f"(no log at {path})"
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def client(self) -> httpx.Client:
        """Return a client of the REST API; close it."""
        return httpx.Client(base_url=self.api_url, trust_env=False, timeout=30)

    def stop(self) -> list[str]:
        """Stop every process of this instance, the jobs of its tasks included; stopping twice is harmless.

        Returns:
            One line for each process that was neither the server nor one started by `run`, and still alive.
        """
        if self._guard is None:
            return []
        atexit.unregister(self.stop)
        own = set(self._processes)
        # The server goes last: what runs deployments says to it how its runs end.
        for name in sorted(own, key=lambda name: name == "server"):
            self.end(name)
        strays = stop_home(self.home)
        with contextlib.suppress(BrokenPipeError):
            self._guard.communicate(_DETACH)
        self._guard = None
        return strays

    def detach(self) -> None:
        """Let this server outlive this process; `stop_home` stops it later."""
        atexit.unregister(self.stop)
        if self._guard is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.communicate(_DETACH)
            self._guard = None


def stop_home(home: Path, *, grace: float = 5) -> list[str]:
    """Stop every living process of a home, its jobs too if they run below it: SIGTERM, and SIGKILL after the grace.

    Returns:
        One line for each of them.
    """
    found = _marked(home.absolute())
    lines = [_describe(process) for process in found]
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(found, timeout=grace)
    deadline = time.monotonic() + 10
    while (left := _marked(home.absolute())) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    return lines


def _marked(home: Path) -> list[psutil.Process]:
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = _is_of(process.environ(), home)
            if process.pid not in spared and ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _is_of(environment: Mapping[str, str], home: Path) -> bool:
    """Return whether a process belongs to a home: by the mark, or a job's by its run folder, for jobs get no mark."""
    return environment.get(MARK) == str(home) or Path(environment.get(context.RUN_DIR, "/")).is_relative_to(home)


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"pid {process.pid}: {' '.join(process.cmdline())}"
    return f"pid {process.pid}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_healthy(client: httpx.Client, api_url: str) -> bool:
    try:
        answer: Any = client.get(f"{api_url}/health").raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return False
    return answer is True


if __name__ == "__main__":
    if sys.argv[1:2] == ["--guard"] and sys.stdin.buffer.read() != _DETACH:
        stop_home(Path(sys.argv[2]))
