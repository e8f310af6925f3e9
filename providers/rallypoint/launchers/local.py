"""Runs gangs on this machine: one detached supervisor per attempt, and a folder that is its record.

The supervisor (`rallypoint.worker.supervisor`) outlives the worker that started it. Everything is found again through
the attempt's folder, so this class keeps no state.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, HostReport, LogChunk, Phase, Status
from rallypoint.launchers.interpreters import look_at
from rallypoint.launchers.placement import LOOPBACK, log_store, place
from rallypoint.launchers.removal import left_in, remove_folder, remove_output
from rallypoint.launchers.run_folder import check_folder, folder_of, make_folder, read_record
from rallypoint.launchers.supervised import (
    ask_end,
    check_python,
    new_output,
    start_supervisor,
    status_of,
    write_folder,
)
from rallypoint.launchers.waiting import until_gone
from rallypoint.worker import hostprocs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import timedelta

    from rallypoint.spec.gang import Gang

START_DEADLINE = 30.0  # seconds until a supervisor has to have said that it started


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

    async def wait(self, handle: Handle, seconds: float) -> bool:
        """Return when the gang's supervisor is gone from this host (False), or after so many seconds."""
        if handle.details.get("host") == socket.gethostname():
            return await until_gone(handle.details["pid"], seconds)
        await asyncio.sleep(seconds)
        return False

    async def cancel(self, handle: Handle, grace: timedelta) -> None:
        """End the gang, and forbid its start if it has not started. Returns when nothing of it is left."""
        folder = await asyncio.to_thread(make_folder, self.root, handle.attempt)
        await asyncio.to_thread(ask_end, folder, grace=grace.total_seconds())
        deadline = time.monotonic() + grace.total_seconds() + START_DEADLINE
        while (await self.poll(handle)).phase is Phase.RUNNING:
            if time.monotonic() > deadline:
                msg = f"{handle.attempt} did not end within {grace.total_seconds() + START_DEADLINE:g} s: see {folder}"
                raise LaunchError(msg)
            await asyncio.sleep(0.05)

    async def logs(self, handle: Handle, cursor: Cursor) -> AsyncIterator[LogChunk]:
        """Yield what processes have written since the cursor; at most one chunk per process and call."""
        for chunk in await asyncio.to_thread(new_output, self._folder(handle.attempt), cursor):
            yield chunk

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

    async def survey(self, *, python: str | None = None, requires: Sequence[str] = ()) -> list[HostReport]:
        """Return what this machine's Python has."""
        return [await asyncio.to_thread(self._survey, python or self.python, tuple(requires))]

    # Blocking halves, which run in threads -----------------------------------------------------------------------

    def _preflight(self, gang: Gang) -> None:
        check_python(
            gang.python or self.python,
            job=gang.name,
            requires=gang.requires,
            pickled_by=gang.pickled_by,
            needs_files=gang.needs_files,
        )

    def _prepare(self, gang: Gang, attempt: str) -> None:
        folder = make_folder(self.root, attempt)
        if (folder / "processes.json").exists():
            return
        python = gang.python or self.python
        spec = place(gang, attempt=attempt, run_dir=str(folder), python=python)
        if uri := log_store(gang):
            spec["logs"] = {"uri": f"{uri}/0-0", "python": python}
        write_folder(folder, spec, files=gang.files, gang=gang.to_json())

    def _start_supervisor(self, gang: Gang, attempt: str) -> None:
        folder = self._folder(attempt)
        if (folder / "cancel.json").exists():
            return  # it may not start, and nobody is to see a supervisor come and go
        secrets = {name: secret.reveal() for name, secret in gang.secrets.items()}
        start_supervisor(folder, attempt=attempt, python=gang.python or self.python, secrets=secrets)

    def _find(self, attempt: str) -> Handle | None:
        folder = self._folder(attempt)
        started = read_record(folder, "started.json")
        if started is None and not (folder / "cancel.json").exists():
            return None
        where: dict[str, Any] = {name: started[name] for name in ("host", "pid")} if started else {}
        return Handle(self.uri, attempt, {"run_dir": str(folder), **where})

    def _poll(self, attempt: str) -> Status:
        return status_of(self._folder(attempt))

    def _survey(self, python: str, requires: tuple[str, ...]) -> HostReport:
        try:
            found = look_at(python, requires)
        except PreflightError as error:
            return HostReport(host=socket.gethostname(), problems=(str(error),))
        missing = tuple(f"{python} has no {name}" for name in found["missing"])
        return HostReport(
            host=socket.gethostname(),
            address=LOOPBACK,
            python=found["python"],
            versions=found["versions"],
            skew=0.0,
            cpus=os.cpu_count(),
            gpus=hostprocs.gpus(),
            problems=missing,
        )

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
