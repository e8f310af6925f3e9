"""Copies a node's logs to a bucket as they grow, from a process of its own that gives way to everything else.

``python -m rallypoint.worker.log_upload FOLDER URI``: its supervisor starts it where the store is a bucket, and waits
for it at no point. When the supervisor has ended, which its standard input tells, it sends what is left, for at most
`LAST_WORD` seconds, and ends too.

An object cannot be appended to. A log is kept in parts, ``URI/<log>/<offset>``: its last one is written anew while it
is small, so nothing is sent twice but the last `PART` bytes, and a large log has few objects.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rallypoint.worker import variables
from rallypoint.worker.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

INTERVAL = 10.0  # seconds between two rounds
PART = 1 << 18  # bytes from which on a part is not written anew
MOST = 1 << 23  # bytes of one part, where much is new at once
LAST_WORD = 30.0  # seconds that the end of the logs may take, counted from the supervisor's end
_TURN = 4  # parts of one log in one round: one that floods does not keep the others waiting
_SHARE = 10.0  # a round that took a second is followed by a pause of ten
_ADDRESS_DIGITS = 15
_OWN = (variables.ATTEMPT_ID, variables.RUN_DIR, variables.PROCESS, variables.LOGS_DIR)


def start(run_dir: str, settings: Mapping[str, Any]) -> int | None:
    """Start it for a run folder, and return its process id; None if it cannot be: the logs then stay where they are.

    Args:
        run_dir: The folder.
        settings: ``uri`` and ``python``, and in ``env`` how that finds this module.
    """
    argv = [settings["python"], "-m", __name__, os.path.join(run_dir, "logs"), settings["uri"]]
    inherited = {name: value for name, value in os.environ.items() if name not in _OWN}
    try:
        reading, _ = os.pipe()  # the other end is this process's alone, and never written to
        child = subprocess.Popen(
            argv, env={**inherited, **settings["env"]}, cwd="/", stdin=reading, stdout=2, start_new_session=True
        )
        os.close(reading)
    except OSError as error:
        _say(str(error), "")
        return None
    child.returncode = 0  # its supervisor reaps whatever ends
    return child.pid


class Logs:
    """The logs of a folder, and how much of them is kept.

    Args:
        folder: The folder.
        write: Writes an object.
    """

    def __init__(self, folder: str, write: Callable[[str, bytes], None]) -> None:
        self._folder = folder
        self._write = write
        self._parts: dict[str, tuple[int, int]] = {}  # of each log the last part's start, and how far it is kept

    def send(self) -> bool:
        """Write what is new, up to a bounded amount, and return whether that was all.

        Raises:
            StorageError: The bucket cannot be written.
        """
        whole = True
        for name, size in self._found():
            for _ in range(_TURN):
                if not self._send(name, size):
                    break
            whole = whole and self._parts.get(name, (0, 0))[1] >= size
        return whole

    def send_ends(self) -> None:
        """Write the end of every log that is far behind, before there is time for what comes before it.

        Raises:
            StorageError: The bucket cannot be written.
        """
        for name, size in self._found():
            if size - self._parts.get(name, (0, 0))[1] > MOST:
                self._write(_object(name, size - PART), self._read(name, size - PART, PART))

    def _send(self, name: str, size: int) -> bool:
        start, kept = self._parts.get(name, (0, 0))
        if kept - start >= PART:
            start = kept
        if kept >= size:
            return False
        data = self._read(name, start, min(MOST, size - start))
        if len(data) <= kept - start:  # it was cut
            return False
        self._write(_object(name, start), data)
        self._parts[name] = (start, start + len(data))
        return True

    def _found(self) -> Iterator[tuple[str, int]]:
        for name in sorted(os.listdir(self._folder)):
            if name.endswith(".log") and not name.startswith("."):
                found = os.lstat(os.path.join(self._folder, name))
                if stat.S_ISREG(found.st_mode) and found.st_size:
                    yield name.removesuffix(".log"), found.st_size

    def _read(self, name: str, start: int, size: int) -> bytes:
        file = os.open(os.path.join(self._folder, f"{name}.log"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.pread(file, size, start)
        finally:
            os.close(file)


def _object(name: str, offset: int) -> str:
    return f"{name}/{offset:0{_ADDRESS_DIGITS}d}"


def _watch(over: threading.Event) -> None:
    """Wait for the supervisor's end, and see to this process's own: a bucket may never answer."""
    while os.read(0, 1):
        pass
    signal.alarm(int(LAST_WORD))
    over.set()


def main(argv: list[str]) -> int:
    """Upload until the supervisor has ended."""
    folder, uri = argv
    # What ends a gang ends its supervisor, and then this: who asks a whole session to end does not cut the logs.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())  # of what the supervisor waits for
    over = threading.Event()
    threading.Thread(target=_watch, args=(over,), name="rallypoint-end", daemon=True).start()
    logs, pause, said = Logs(folder, Bucket(uri).write), INTERVAL, ""
    # After the imports, which would take minutes where every core is busy. SCHED_IDLE would give way even more: on such
    # a host, which is what a training makes of it, nothing would be uploaded at all.
    os.nice(19)
    while not over.wait(pause):
        began = time.monotonic()
        try:
            logs.send()
        except OSError as error:  # the next round tries again
            said = _say(str(error), said)
        pause = max(INTERVAL, _SHARE * (time.monotonic() - began))
    try:
        logs.send_ends()
        while not logs.send():
            pass
    except OSError as error:
        _say(f"the end of the logs was not kept: {error}", said)
        return 1
    return 0


def _say(what: str, said: str) -> str:
    if what != said:
        print(f"rallypoint: logs were not uploaded: {what}", file=sys.stderr, flush=True)  # noqa: T201 - supervisor.log
    return what


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
