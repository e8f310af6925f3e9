"""Runs gangs on this machine: one detached supervisor per attempt, and a folder that is its record.

The supervisor (`rallypoint.worker.supervisor`) outlives the worker that started it. Everything is found again through
the attempt's folder, so this class keeps no state.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, LogChunk, Phase, ProcessEnd, Status
from rallypoint.launchers.interpreters import ORCHESTRATORS, look_at
from rallypoint.launchers.placement import place
from rallypoint.launchers.removal import left_in, remove_folder, remove_output
from rallypoint.launchers.run_folder import (
    check_folder,
    folder_of,
    is_log,
    log_names,
    make_folder,
    open_inside,
    read_record,
    unreadable,
)
from rallypoint.launchers.waiting import until_gone
from rallypoint.spec.shipment import ARCHIVE
from rallypoint.worker import context, hostprocs
from rallypoint.worker.supervisor import write_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

    from rallypoint.spec.gang import Gang

START_DEADLINE = 30.0  # seconds until a supervisor has to have said that it started
STRAGGLERS = 5.0  # seconds that killed processes have for their end within one look
STALE_HEARTBEAT = 60.0  # seconds after which a supervisor on another host counts as gone
GRACE = 10.0  # seconds between SIGTERM and SIGKILL for the rest of a gang that failed
CHUNK = 1 << 18  # bytes of one log chunk
# From the package as it is installed here, which is compiled, and without site-packages: its start delays every launch.
_SUPERVISE = (
    "import sys; sys.path[:1] = []; sys.path.append(sys.argv[1]); from rallypoint.worker.supervisor import main; "
    "sys.exit(main(sys.argv[2]))"
)
_WITHHELD = (*ORCHESTRATORS, "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RALLYPOINT_")


class LocalLauncher:
    """Runs gangs on this machine.

    Args:
        root: The folder of the run folders. Processes that retry a stage on another host must see it too.
        python: The interpreter of jobs that name none; this process's own by default.
    """

    def __init__(self, root: Path, *, python: str | None = None) -> None:
        self.root = root
        self.python = python or sys.executable

    @classmethod
    def from_uri(cls, uri: str) -> LocalLauncher:
        """Return the launcher of ``local:///folder?python=/path/to/python``.

        Raises:
            LaunchError: The folder is no absolute path.
        """
        parts = urlsplit(uri)
        if parts.netloc or not parts.path.startswith("/"):
            msg = f"got the launcher {uri!r}, expected local:/// and an absolute folder, such as local:///var/lib/runs"
            raise LaunchError(msg)
        return cls(Path(unquote(parts.path)), python=parse_qs(parts.query).get("python", [None])[0])

    @property
    def uri(self) -> str:
        """How `open_launcher` finds this launcher again."""
        query = "" if self.python == sys.executable else f"?python={quote(self.python)}"
        return f"local://{quote(str(self.root))}{query}"

    async def launch(self, gang: Gang, attempt: str) -> Handle:
        """Start a gang here. Idempotent for one attempt id: a second call finds the first one's gang.

        Raises:
            PreflightError: This machine cannot run it, now or later.
            LaunchError: It could not be started this time.
        """
        await asyncio.to_thread(self._preflight, gang)
        await asyncio.to_thread(self._prepare, gang, attempt)
        await asyncio.to_thread(self._start_supervisor, gang, attempt)
        deadline = time.monotonic() + START_DEADLINE
        while not (handle := await self.find(attempt)):
            if time.monotonic() > deadline:
                log = self._folder(attempt) / "supervisor.log"
                msg = f"the supervisor of {attempt} did not start within {START_DEADLINE:g} s: see {log}"
                raise LaunchError(msg)
            await asyncio.sleep(0.02)
        return handle

    async def find(self, attempt: str) -> Handle | None:
        """Return the handle of an attempt that was started (or forbidden to start) here; None otherwise."""
        return await asyncio.to_thread(self._find, attempt)

    async def poll(self, handle: Handle) -> Status:
        """Return where the gang stands, from three small files."""
        return await asyncio.to_thread(self._poll, handle.attempt)

    async def wait(self, handle: Handle, seconds: float) -> None:
        """Return when the gang's supervisor is gone from this host, or after so many seconds."""
        if handle.details.get("host") != socket.gethostname():
            await asyncio.sleep(seconds)
        else:
            await until_gone(handle.details["pid"], seconds)

    async def cancel(self, handle: Handle, grace: timedelta) -> None:
        """End the gang, and forbid its start if it has not started. Returns when nothing of it is left."""
        folder = await asyncio.to_thread(make_folder, self.root, handle.attempt)
        request = {"v": 1, "t": time.time(), "grace": grace.total_seconds(), "by_host": socket.gethostname()}
        with suppress(FileExistsError):
            await asyncio.to_thread(write_json, str(folder / "cancel.json"), request, exclusive=True)
        deadline = time.monotonic() + grace.total_seconds() + START_DEADLINE
        while (await self.poll(handle)).phase is Phase.RUNNING:
            if time.monotonic() > deadline:
                msg = f"{handle.attempt} did not end within {grace.total_seconds() + START_DEADLINE:g} s: see {folder}"
                raise LaunchError(msg)
            await asyncio.sleep(0.05)

    async def logs(self, handle: Handle, cursor: Cursor) -> AsyncIterator[LogChunk]:
        """Yield what processes have written since the cursor; at most one chunk per process and call."""
        for chunk in await asyncio.to_thread(self._new_output, handle.attempt, cursor):
            yield chunk

    async def check(self) -> str:
        """Return which Python would run jobs here.

        Raises:
            PreflightError: This host does not have it.
        """
        found = await asyncio.to_thread(look_at, self.python, ())
        return f"Python {found['python']} at {self.python} on {socket.gethostname()}"

    async def left(self, attempt: str) -> int:
        """Return the bytes of an attempt's run folder, without the few by which it never starts again.

        Raises:
            LaunchError: The launcher's folder is not on this host.
        """
        return await asyncio.to_thread(self._left, attempt)

    async def clean(self, attempt: str, *, forget: bool) -> None:
        """Remove an ended attempt's logs and files; to `forget` it is to remove its whole folder.

        Raises:
            LaunchError: It is still running, or a part of it cannot be removed.
        """
        await asyncio.to_thread(self._clean, attempt, forget=forget)

    # Blocking halves, which run in threads -----------------------------------------------------------------------

    def _preflight(self, gang: Gang) -> None:
        python = gang.python or self.python
        found = look_at(python, gang.requires)
        if found["missing"]:
            names = ", ".join(found["missing"])
            msg = (
                f"the job's Python {python} does not have {names}, which a {gang.name} job needs: install it there, or "
                "name another interpreter with python= on the job or in the connection"
            )
            raise PreflightError(msg)
        if gang.pickled_by and gang.pickled_by != found["python"]:
            msg = (
                f"the job's Python {python} is {found['python']}, and the function was pickled by {gang.pickled_by}: "
                "use the same minor version for both, or give the code as a script"
            )
            raise PreflightError(msg)
        for path in gang.needs_files:
            if not Path(path).is_absolute() or not Path(path).is_file():
                msg = (
                    f"got the script {path!r}, expected the absolute path of a file on {socket.gethostname()}: "
                    "correct the path, or put the script there"
                )
                raise PreflightError(msg)

    def _prepare(self, gang: Gang, attempt: str) -> None:
        """Make the run folder; with ``processes.json``, which is written last, it is whole.

        Nothing in it is ever moved or removed: others prepare it, or cancel the attempt, at the same time.
        """
        folder = make_folder(self.root, attempt)
        if (folder / "processes.json").exists():
            return
        spec = place(gang, attempt=attempt, run_dir=str(folder), python=gang.python or self.python)
        for process in spec["processes"]:
            process["env"].setdefault("PYTHONPATH", str(folder / ARCHIVE))
        try:
            for name in ("logs", "work"):
                (folder / name).mkdir(exist_ok=True)
            for name, data in gang.files.items():
                _write_whole(folder / name, data)
            _write_whole(folder / "gang.json", json.dumps(gang.to_json(), indent=1).encode())
            _write_whole(folder / "processes.json", json.dumps(spec | {"grace": GRACE, "py_spy": _py_spy()}).encode())
        except OSError as error:
            msg = f"could not prepare the run folder {folder}: {error}"
            raise LaunchError(msg) from error

    def _start_supervisor(self, gang: Gang, attempt: str) -> None:
        folder = self._folder(attempt)
        if (folder / "cancel.json").exists():
            return  # it may not start, and nobody is to see a supervisor come and go
        python = gang.python or self.python
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)}
        environment |= {name: secret.reveal() for name, secret in gang.secrets.items()}
        environment["PATH"] = os.pathsep.join([str(Path(python).parent), environment.get("PATH", os.defpath)])
        environment[context.ATTEMPT_ID] = attempt
        environment[context.RUN_DIR] = str(folder)
        try:
            with (folder / "supervisor.log").open("ab") as log:
                # It forks and the first process ends at once, so nothing here has a child to wait for later.
                done = subprocess.run(
                    [sys.executable, "-S", "-c", _SUPERVISE, str(Path(__file__).parents[2]), str(folder)],
                    env=environment,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    check=False,
                )
        except OSError as error:
            msg = f"the supervisor of {attempt} could not be started: {error.strerror}"
            raise LaunchError(msg) from error
        if done.returncode != 0:
            msg = f"the supervisor of {attempt} ended with exit code {done.returncode}: see {folder}/supervisor.log"
            raise LaunchError(msg)

    def _find(self, attempt: str) -> Handle | None:
        folder = self._folder(attempt)
        started = read_record(folder, "started.json")
        if started is None and not (folder / "cancel.json").exists():
            return None
        where: dict[str, Any] = {name: started[name] for name in ("host", "pid")} if started else {}
        return Handle(self.uri, attempt, {"run_dir": str(folder), **where})

    def _poll(self, attempt: str) -> Status:
        folder = self._folder(attempt)
        if ended := _ended(folder):
            return ended
        started = read_record(folder, "started.json")
        if started is None:
            cancelled = (folder / "cancel.json").exists()
            return Status(Phase.ENDED if cancelled else Phase.LOST, "cancelled" if cancelled else "")
        if not (isinstance(started.get("pid"), int) and isinstance(started.get("host"), str)):
            raise unreadable(folder / "started.json")
        if self._alive(folder, started):
            return Status(Phase.RUNNING)
        if ended := _ended(folder):  # it ended between the two looks
            return ended
        if started["host"] == socket.gethostname() and not _end_stragglers(folder):
            return Status(Phase.RUNNING)  # what is called lost may be launched anew
        message = f"its supervisor (pid {started['pid']} on {started['host']}) is gone and left no final record"
        # It may have been killed between its last two records, and then how everything ended is known.
        return _ended(folder, "ended.json") or Status(Phase.LOST, message=message)

    def _alive(self, folder: Path, started: dict[str, Any]) -> bool:
        if started["host"] == socket.gethostname():
            same_boot = started.get("boot_id") == hostprocs.boot_id()
            return bool(same_boot and hostprocs.start_time(started["pid"]) == started.get("start_time"))
        beat = read_record(folder, "heartbeat.json") or started
        said = beat.get("t")
        return isinstance(said, int | float) and time.time() - said < STALE_HEARTBEAT

    def _new_output(self, attempt: str, cursor: Cursor) -> list[LogChunk]:
        chunks = []
        folder = self._folder(attempt)
        for name in log_names(folder) if cursor.others is not None else filter(is_log, cursor.offsets):
            start = cursor.offsets.get(name, cursor.others)
            if start is None or _is_no_longer_than(folder / "logs" / f"{name}.log", start):
                continue
            try:
                log = os.fdopen(open_inside(folder, "logs", f"{name}.log"), "rb")
            except OSError:  # a link, or no longer there
                continue
            with log:
                size, wanted, from_end = os.fstat(log.fileno()).st_size, CHUNK, start < 0
                if from_end:
                    start, wanted = max(0, size + start), -start
                if size <= start:
                    continue
                first = start
                if cursor.max_behind is not None and size - start > cursor.max_behind:
                    start = size - min(CHUNK, cursor.max_behind)
                log.seek(start)
                data = log.read(wanted)
            if start > first:  # begin with a whole line
                cut = data.find(b"\n") + 1
                start, data = start + cut, data[cut:]
            if b"\n" in data and not from_end:  # the end of a log is wanted with its unfinished line
                data = data[: data.rindex(b"\n") + 1]
            chunks.append(LogChunk(name, data, start + len(data), skipped=start - first))
        return chunks

    def _left(self, attempt: str) -> int:
        if not self.root.is_dir():
            msg = (
                f"got the launcher {self.uri}, expected its folder on {socket.gethostname()}: prune on the host whose "
                "jobs it runs, or make an empty one if it was deleted"
            )
            raise LaunchError(msg)
        return left_in(self._folder(attempt))

    def _clean(self, attempt: str, *, forget: bool) -> None:
        folder = self._folder(attempt)
        if self._poll(attempt).phase is Phase.RUNNING:
            msg = f"{attempt} is still running on {socket.gethostname()}: stop it before its folder is removed"
            raise LaunchError(msg)
        try:
            with suppress(FileNotFoundError):
                check_folder(self.root, attempt)
            remove_folder(folder) if forget else remove_output(folder)
        except OSError as error:
            msg = f"cannot remove {folder}: {error}"
            raise LaunchError(msg) from error

    def _folder(self, attempt: str) -> Path:
        return folder_of(self.root, attempt)


def _ended(folder: Path, record: str = "final.json") -> Status | None:
    """Return how a gang ended; None if there is no such record, or what the job put in its place."""
    try:
        final = read_record(folder, record)
        if final is None:
            return None
        processes = tuple(
            ProcessEnd(
                str(end["name"]),
                end["exit_code"],
                end["signal"],
                str(end["host"]),
                bool(end["first"]),
                tolerated=bool(end.get("tolerated")),
            )
            for end in final["processes"]
        )
        return Status(Phase.ENDED, str(final["reason"]), processes, str(final["message"]))
    except (LaunchError, KeyError, TypeError):
        return None


def _is_no_longer_than(log: Path, start: int) -> bool:
    """Return whether a log has nothing to read from there, without opening it: most logs have not at most looks."""
    try:
        return start >= 0 and log.lstat().st_size <= start
    except OSError:
        return True


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_bytes(data)
    draft.replace(path)


def _end_stragglers(folder: Path) -> bool:
    """Kill what is left of a gang whose supervisor is gone, and wait for its end; return whether nothing is left.

    The kernel kills what the supervisor started, only not in the same moment, and not their grandchildren.
    """
    deadline = time.monotonic() + STRAGGLERS
    while left := hostprocs.of_run(str(folder)):
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, 9)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@lru_cache(maxsize=1)
def _py_spy() -> str | None:
    return shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
