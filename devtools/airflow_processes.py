"""The processes of a private Airflow: found by a mark in their environment, stopped in the right order.

Every process of an instance carries the instance's home in its environment. That is how all of them are found again
after any crash: LocalExecutor's workers outlive a scheduler that was killed, and a task's jobs may have left its
session. Run as a script, this module is the guard that stops an instance when the process that started it dies.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

import psutil

MARK = "RALLYPOINT_AIRFLOW_INSTANCE"
DETACH = b"detach"
_POLL_SECONDS = 0.05
_DEAD_SECONDS = 10
_GUARD_SECONDS = 30
_GUARD_OWNER = "a guard"


@dataclasses.dataclass(frozen=True)
class InstanceRecord:
    """What an instance notes in its home about itself.

    Attributes:
        url: The address of its UI and REST API.
        sessions: The ids of the process sessions its Airflow processes run in, one per process it started.
    """

    url: str
    sessions: tuple[int, ...]

    def write(self, home: Path) -> None:
        """Write the record into the home."""
        _record_file(home).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """Read the record of a home; None if there is none or it was cut off by a crash."""
        try:
            record = json.loads(_record_file(home).read_text(encoding="utf-8"))
            return cls(url=str(record["url"]), sessions=tuple(record["sessions"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def processes_folder(home: Path) -> Path:
    """Return the folder of a home that holds the logs of Airflow's processes and the instance's own files."""
    return home / "processes"


def lock_home(home: Path, *, owner: str = "") -> IO[str]:
    """Take a home for this process until the returned file is closed or the process ends.

    A guard that is about to stop an instance whose owner died is waited for.

    Args:
        home: The AIRFLOW_HOME.
        owner: What to tell others about the owner; the default names this process.

    Raises:
        BlockingIOError: If another process holds it.
    """
    lock = (processes_folder(home) / "lock").open("a+", encoding="utf-8")
    deadline = time.monotonic() + _GUARD_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read()
            if holder == _GUARD_OWNER and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            lock.close()
            raise BlockingIOError(
                f"{holder} holds {home}, expected nobody: stop that process first or use another home"
            ) from None
    lock.truncate(0)
    lock.write(owner or f"process {os.getpid()}")
    lock.flush()
    return lock


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on at this moment, all different."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a log, or a note that says why there are none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return f"(no log at {path})"
    return "\n".join(text.splitlines()[-lines:]) or f"(empty log at {path})"


def stop_home(home: Path, *, grace: float = 5) -> list[str]:
    """Stop every process of the instance in a home, whoever started it.

    Airflow's own processes go first, so that none of them starts a job again: SIGTERM, and SIGKILL after the grace
    (a scheduler waits for its running tasks). Then the same for what is left, jobs in sessions of their own.

    Args:
        home: The AIRFLOW_HOME of the instance.
        grace: Seconds between SIGTERM and SIGKILL, for each of the two steps.

    Returns:
        One line for each process outside Airflow's sessions that had to be stopped.

    Raises:
        TimeoutError: If a process does not die of SIGKILL.
    """
    home = home.absolute()
    record = InstanceRecord.read(home)
    sessions = record.sessions if record else ()

    def own() -> list[psutil.Process]:
        return [process for process in marked(home) if session(process) in sessions]

    leaders = [process for process in own() if process.pid in sessions]
    _signal(leaders, signal.SIGTERM)
    wait_gone(leaders, grace)
    _kill(own)
    strays = marked(home)
    descriptions = [_describe(process) for process in strays]
    _signal(strays, signal.SIGTERM)
    wait_gone(strays, grace)
    _kill(lambda: marked(home))
    return descriptions


def running_url(home: Path) -> str | None:
    """Return the address of the instance in a home, or None if none of its processes runs."""
    record = InstanceRecord.read(home)
    return record.url if record and marked(home.absolute()) else None


def marked(home: Path) -> list[psutil.Process]:
    """Return the living processes that carry the home in their environment, except this one and its parents."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(MARK) == str(home) and is_alive(process):
                found.append(process)
    return found


def session(process: psutil.Process) -> int | None:
    """Return the id of a process's session, None if the process is gone."""
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(processes: list[psutil.Process], timeout: float) -> None:
    """Wait until none of the processes is alive, at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while any(is_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _kill(find: Callable[[], list[psutil.Process]]) -> None:
    """Send SIGKILL until nothing is found any more: a process may start another between a look and a signal."""
    deadline = time.monotonic() + _DEAD_SECONDS
    while found := find():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{len(found)} processes still live {_DEAD_SECONDS} s after SIGKILL, expected none; "
                f"look for what keeps them: {'; '.join(map(_describe, found))}"
            )
        _signal(found, signal.SIGKILL)
        wait_gone(found, 1)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _describe(process: psutil.Process) -> str:
    try:
        return f"pid {process.pid}: {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"pid {process.pid}"


def _record_file(home: Path) -> Path:
    return processes_folder(home) / "instance.json"


def _guard(home: Path) -> None:
    """Wait until the owner of an instance lets it go or dies; stop the instance if it died."""
    if sys.stdin.buffer.read() == DETACH:
        return
    # Under the lock, so that it never stops the processes of a next instance; that one stops these itself.
    with contextlib.suppress(BlockingIOError), lock_home(home, owner=_GUARD_OWNER):
        stop_home(home)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Stop the Airflow in a home when the process that started it dies.")
    parser.add_argument("--guard", type=Path, required=True, metavar="HOME")
    _guard(parser.parse_args().guard)
