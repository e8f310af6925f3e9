"""A private Airflow of four processes, for the demo and for the test session.

The api-server, the scheduler, the dag-processor and the triggerer run as four commands of their own rather than
under `airflow standalone`, for four reasons:

* one of them can be killed with SIGKILL and started again alone. `standalone` never restarts a child, so its
  replacement would be a process of our own anyway, beside a parent that knows nothing of it;
* they start side by side the moment the database is there, and a home that was migrated by this Airflow version
  skips the migration. `standalone` loads Airflow once more, for itself, before it starts the same four;
* each has a log file of its own. `standalone` mixes the four into one pipe, and when it dies its children block on it;
* `standalone` starts `airflow` from PATH, which need not be the Airflow of the wanted interpreter.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import airflow_processes as processes
import httpx
import psutil

_POLL_SECONDS = 0.2

_SETTINGS = {
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__PARALLELISM": "4",
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__TEST_CONNECTION": "Enabled",  # the button on a connection's form, which Airflow hides by default
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "CORE__HOSTNAME_CALLABLE": "socket.gethostname",  # the default asks the name server for this host's full name
    "API__HOST": "127.0.0.1",
    "API__WORKERS": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "DAG_PROCESSOR__PARSING_PROCESSES": "1",
    # By default every file is read again every 30 s, which keeps a core busy. One that has changed is read at once.
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    "LOGGING__COLORED_CONSOLE_LOG": "False",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
}

_FAST_SETTINGS = {
    "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    # A new triggerer takes over a dead one's triggers only after this long.
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
}


class Component(StrEnum):
    """The processes of an Airflow; each value is the name of its command."""

    API_SERVER = "api-server"
    SCHEDULER = "scheduler"
    DAG_PROCESSOR = "dag-processor"
    TRIGGERER = "triggerer"


# The log servers listen on every interface, whatever the settings say. All processes share one folder of logs, so
# the api-server reads them from there, and leaving the servers out keeps this Airflow on the loopback interface.
# It asks the servers all the same, so their ports in the settings are those of nobody else's servers.
_OPTIONS: dict[Component, tuple[str, ...]] = {
    Component.API_SERVER: (),
    Component.SCHEDULER: ("--skip-serve-logs",),
    Component.DAG_PROCESSOR: (),
    Component.TRIGGERER: ("--skip-serve-logs",),
}


class AirflowInstanceError(RuntimeError):
    """A private Airflow could not be started, or one of its processes is not what was asked for."""


class AirflowInstance:
    """A private Airflow on 127.0.0.1, whose processes can be killed and started again one by one.

    Use it as a context manager, or call `start` and `stop`. When this process ends in any way, SIGKILL included, a
    small guard process stops the Airflow; `detach` releases it.

    Args:
        home: AIRFLOW_HOME. It may exist: a second start in the same home keeps its database, and first stops what an
            earlier instance left there.
        dags: The folder of DAG files.
        env: Further environment variables for every process; they win over the settings made here.
        python: The interpreter whose Airflow runs.
        fast: Short heartbeats and time-outs, so that tests see a crash within seconds.
        start_timeout: Seconds until every process has to be healthy.
    """

    def __init__(  # noqa: PLR0913 - every option is named at the call
        self,
        home: Path,
        dags: Path,
        *,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        fast: bool = False,
        start_timeout: float = 180,
    ) -> None:
        self.home = Path(home).absolute()
        self.dags = Path(dags).absolute()
        self._extra_env = dict(env or {})
        self._python = python
        self._fast = fast
        self._start_timeout = start_timeout
        self._port = 0
        self._log_port = 0
        self._processes: dict[Component, subprocess.Popen[bytes]] = {}
        self._sessions: list[int] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of the UI and of the REST API."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of every process: pass it to an `airflow` command that shall act on this instance."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        settings = _SETTINGS | (_FAST_SETTINGS if self._fast else {})
        settings |= {
            "CORE__DAGS_FOLDER": str(self.dags),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "API__PORT": str(self._port),
            "API__BASE_URL": self.url,
            "LOGGING__WORKER_LOG_SERVER_PORT": str(self._log_port),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(self._log_port),
            # SQLite gives up a lock after 5 s by default, and a component of Airflow ends of it: on a busy machine all
            # of them did while the api-server made a run.
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}?timeout=120",
        }
        no_proxy = [part for part in (os.environ.get("NO_PROXY") or os.environ.get("no_proxy", "")).split(",") if part]
        loopback = ",".join([*no_proxy, "127.0.0.1", "localhost"])
        return {
            **inherited,
            "AIRFLOW_HOME": str(self.home),
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
            processes.MARK: str(self.home),
            # Without it Airflow's process titles overwrite the environment that /proc shows, and with it the marker.
            "SPT_NOENV": "1",
            "NO_PROXY": loopback,
            "no_proxy": loopback,
            "PATH": f"{Path(self._python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            **self._extra_env,
        }

    def start(self) -> Self:
        """Migrate the database, start the four processes and wait until all of them are healthy.

        Raises:
            BlockingIOError: If another process runs an Airflow in this home.
            AirflowInstanceError: If a process ended or the deadline passed; the message shows the ends of the logs.
        """
        if self._lock is not None:
            raise AirflowInstanceError(f"the Airflow in {self.home} was started already: call stop() before start()")
        self.home.mkdir(parents=True, exist_ok=True)
        processes.processes_folder(self.home).mkdir(exist_ok=True)
        self._lock = processes.lock_home(self.home)
        try:
            processes.stop_home(self.home)
            self._port, self._log_port = processes.free_ports(2)
            self._sessions.clear()
            self._start_guard()
            atexit.register(self.stop)
            deadline = time.monotonic() + self._start_timeout
            since = datetime.now(UTC)
            self._migrate(deadline)
            for component in Component:
                self._launch(component)
            self._wait_healthy(list(Component), since, deadline)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> list[str]:
        """Stop every process of this instance, the jobs of its tasks included; stopping twice is harmless.

        Returns:
            One line for each process that had left Airflow's sessions and was still alive: jobs that outlived the
            tasks that started them.
        """
        if self._lock is None:
            return []
        atexit.unregister(self.stop)
        strays = processes.stop_home(self.home)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        self._release()
        return strays

    def detach(self) -> None:
        """Let this Airflow outlive this process; `stop_home` stops it later."""
        atexit.unregister(self.stop)
        self._processes.clear()
        self._release()

    def process(self, component: Component) -> psutil.Process:
        """Return the main process of a component.

        Raises:
            AirflowInstanceError: If it does not run.
        """
        process = self._processes.get(component)
        if process is None or process.poll() is not None:
            raise AirflowInstanceError(f"the {component} of {self.home} does not run: start it with restart()")
        return psutil.Process(process.pid)

    def task_process(self, task_instance_id: str) -> psutil.Process:
        """Return the process that runs a task's code; its parent is the executor's worker that supervises it.

        Args:
            task_instance_id: The `id` of the running task instance; Airflow makes a new one for every try.

        Raises:
            AirflowInstanceError: If no process runs that task instance.
        """
        for process in processes.marked(self.home):
            with contextlib.suppress(psutil.Error):
                if f"airflow worker -- {task_instance_id}" in " ".join(process.cmdline()):
                    return process
        raise AirflowInstanceError(f"no process runs task instance {task_instance_id}: it ended or has not started")

    def kill(self, component: Component, *, children: bool = True) -> None:
        """Kill a component with SIGKILL.

        Args:
            component: The one to kill.
            children: Also kill the processes it started in its session, as a host's crash would: the
                triggerer's runner, the scheduler's executor workers and their tasks. Jobs that a task detached in a
                session of their own live on either way.
        """
        leader = self.process(component)
        victims = [leader]
        if children:
            victims += [child for child in leader.children(recursive=True) if processes.session(child) == leader.pid]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self._processes[component].wait()
        processes.wait_gone(victims, 10)

    def restart(self, component: Component) -> None:
        """Start a component again and wait until it is healthy; one that still runs is killed first.

        Raises:
            AirflowInstanceError: If it does not become healthy.
        """
        if self._processes[component].poll() is None:
            self.kill(component)
        since = datetime.now(UTC)
        self._launch(component)
        self._wait_healthy([component], since, time.monotonic() + self._start_timeout)

    def log_tail(self, component: Component, *, lines: int = 30) -> str:
        """Return the last lines of a component's log."""
        return processes.tail(self._log(component), lines)

    def _log(self, name: str) -> Path:
        return processes.processes_folder(self.home) / f"{name}.log"

    def _spawn(self, name: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        # The -X entry says in a list of processes which instance this is, and makes room for the titles that Airflow
        # writes over the arguments.
        command = [self._python, "-X", f"airflow_instance={self.home}", "-m", "airflow", *arguments]
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.home,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches this process only, which then stops them
            )
        self._sessions.append(process.pid)
        processes.InstanceRecord(self.url, tuple(self._sessions)).write(self.home)
        return process

    def _launch(self, component: Component) -> None:
        self._processes[component] = self._spawn(component, (component, *_OPTIONS[component]))

    def _migrate(self, deadline: float) -> None:
        version = _airflow_version(self._python)
        stamp = processes.processes_folder(self.home) / "migrated"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == version and (self.home / "airflow.db").exists():
            return
        process = self._spawn("migrate", ("db", "migrate"))
        try:
            code = process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise AirflowInstanceError(
                f"'airflow db migrate' in {self.home} ended with {code}, expected 0 in {self._start_timeout:.0f} s; "
                f"its log ends with\n{processes.tail(self._log('migrate'), 30)}"
            )
        stamp.write_text(version, encoding="utf-8")

    def _wait_healthy(self, components: list[Component], since: datetime, deadline: float) -> None:
        waiting = list(components)
        with httpx.Client(trust_env=False, timeout=5) as client:
            while True:
                for component in waiting:
                    code = self._processes[component].poll()
                    if code is not None:
                        raise AirflowInstanceError(
                            f"the {component} of {self.home} ended with {code} while it started; "
                            f"its log ends with\n{self.log_tail(component)}"
                        )
                health = _health(client, self.url)
                waiting = [component for component in waiting if not _is_healthy(health, component, since)]
                if not waiting:
                    return
                if time.monotonic() > deadline:
                    tails = "\n".join(f"--- {component}\n{self.log_tail(component)}" for component in waiting)
                    raise AirflowInstanceError(
                        f"in {self._start_timeout:.0f} s the Airflow in {self.home} did not become healthy: "
                        f"{', '.join(waiting)} still missing in {health}; the logs end with\n{tails}"
                    )
                time.sleep(_POLL_SECONDS)

    def _start_guard(self) -> None:
        # The guard reads a pipe that only this process writes to: it ends with this process, however that dies.
        self._guard = subprocess.Popen(
            [sys.executable, processes.__file__, "--guard", str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _release(self) -> None:
        if self._guard is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.communicate(processes.DETACH)
            self._guard = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _health(client: httpx.Client, url: str) -> dict[str, Any] | None:
    try:
        response = client.get(f"{url}/api/v2/monitor/health")
        health: dict[str, Any] = response.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return health


def _is_healthy(health: dict[str, Any] | None, component: Component, since: datetime) -> bool:
    if health is None:
        return False
    if component is Component.API_SERVER:
        return True
    # A killed process reads as healthy until its last heartbeat is old, so only a new heartbeat counts.
    key = component.replace("-", "_")
    heartbeat = (health.get(key) or {}).get(f"latest_{key}_heartbeat")
    return heartbeat is not None and datetime.fromisoformat(heartbeat) > since


def _airflow_version(python: str) -> str:
    command = [python, "-c", "from importlib.metadata import version; print(version('apache-airflow-core'))"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise AirflowInstanceError(
            f"{python} has no Airflow: install rallypoint[airflow] there; it said {result.stderr}"
        )
    return result.stdout.strip()
