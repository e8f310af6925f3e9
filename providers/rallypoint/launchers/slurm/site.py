"""Where Slurm's commands run and the shared folder is seen: this machine, or a login node that is reached by SSH."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rallypoint.launchers.base import Cursor, LogChunk, Phase, ProcessEnd, Status
from rallypoint.launchers.slurm.commands import Commands, printed
from rallypoint.launchers.slurm.host import Host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from rallypoint.launchers.slurm.states import Meaning
    from rallypoint.launchers.ssh.links import Link


class Site(Protocol):
    """A host with Slurm's commands and the shared folder."""

    async def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """Run a command and return what it printed.

        Raises:
            CommandError: It failed.
            PreflightError: There is no such command.
        """
        ...

    async def call(self, name: str, data: bytes = b"", **values: Any) -> tuple[dict[str, Any], bytes]:
        """Have `Host` answer.

        Raises:
            LaunchError: It could not.
        """
        ...


class LocalSite:
    """This machine.

    Args:
        root: The shared folder.
        conf: The path of ``slurm.conf``; empty for the machine's own.
    """

    def __init__(self, root: str, conf: str) -> None:
        self._host = Host(Path(root))
        self._commands = Commands(conf)

    async def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """Run a command and return what it printed."""
        return await self._commands.run(argv, env=env)

    async def call(self, name: str, data: bytes = b"", **values: Any) -> tuple[dict[str, Any], bytes]:
        """Have `Host` answer, in a thread."""
        return await asyncio.to_thread(self._host.answer, name, data, **values)


class LoginSite:
    """A login node: the agent of the SSH launcher answers there.

    Args:
        link: Returns the running loop's connection.
        conf: The path of ``slurm.conf`` there; empty for its own.
    """

    def __init__(self, link: Callable[[], Awaitable[Link]], conf: str) -> None:
        self._link = link
        self._conf = conf

    async def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """Run a command there and return what it printed; its environment goes through the encrypted connection."""
        values: dict[str, Any] = {"argv": list(argv), "env": dict(env or {}), "conf": self._conf}
        found, data = await self.call("run", **values)
        size = found["output"]
        return printed(argv[0], found["code"], data[:size], data[size:])

    async def call(self, name: str, data: bytes = b"", **values: Any) -> tuple[dict[str, Any], bytes]:
        """Have `Host` answer there."""
        link = await self._link()
        # A request may come twice if the connection drops meanwhile; a job is submitted once, or looked for.
        submits = name == "run" and values["argv"][0] == "sbatch"
        return await link.call("slurm", data, patient=not submits, call=name, values=values)


class Attempt:
    """One attempt's folder, as a site sees it.

    Args:
        site: The site.
        attempt: The attempt's id.
    """

    def __init__(self, site: Site, attempt: str) -> None:
        self._site = site
        self._attempt = attempt

    async def prepare(self, files: Mapping[str, bytes]) -> None:
        """Make its folder, and fill it."""
        sizes = [(name, len(data)) for name, data in files.items()]
        await self._site.call("prepare", b"".join(files.values()), attempt=self._attempt, files=sizes)

    async def look(self) -> tuple[int | None, bool, Status | None]:
        """Return which job it is, whether it was cancelled, and how it ended."""
        found, _ = await self._site.call("look", attempt=self._attempt)
        return found["job"], found["cancelled"], _status(found["ended"]) if found["ended"] else None

    async def judge(self, found: Meaning | None, words: str) -> Status:
        """Return where it stands once its job has ended."""
        said, _ = await self._site.call("judge", attempt=self._attempt, found=found and found.value, words=words)
        return _status(said)

    async def stop_if_broken(self) -> None:
        """End it if it has lost more than it can do without."""
        await self._site.call("stop_if_broken", attempt=self._attempt)

    async def cancel(self, grace: float) -> None:
        """Forbid its start, and ask what runs to end."""
        await self._site.call("cancel", attempt=self._attempt, grace=grace)

    async def logs(self, cursor: Cursor) -> list[LogChunk]:
        """Return what its processes have written since a cursor."""
        asked = {**asdict(cursor), "offsets": dict(cursor.offsets)}
        found, data = await self._site.call("logs", attempt=self._attempt, cursor=asked)
        chunks, at = [], 0
        for process, size, offset, skipped in found["chunks"]:
            chunks.append(LogChunk(process, data[at : at + size], offset, skipped))
            at += size
        return chunks

    async def left(self) -> int:
        """Return the bytes that it has left."""
        found, _ = await self._site.call("left", attempt=self._attempt)
        return int(found["bytes"])

    async def clean(self, *, forget: bool) -> None:
        """Remove what it has left."""
        await self._site.call("clean", attempt=self._attempt, forget=forget)


def _status(value: Mapping[str, Any]) -> Status:
    ends = tuple(ProcessEnd(**end) for end in value["processes"])
    return Status(Phase(value["phase"]), value["reason"], ends, value["message"])
