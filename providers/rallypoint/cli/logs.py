"""Shows what an attempt's processes wrote, reading only what is new."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rallypoint.cli.terminal import say
from rallypoint.errors import StageNotFoundError
from rallypoint.launchers.base import Cursor, Handle, Launcher, LogChunk, Phase
from rallypoint.launchers.registry import open_launcher
from rallypoint.stages.events import EventReader
from rallypoint.stages.logs import AttemptLogs
from rallypoint.stages.text import Lines, one_line
from rallypoint.stages.view import AttemptView

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rallypoint.stages.engine import Engine

_INTERVAL = 0.3  # seconds


@dataclass
class Selection:
    """Which processes are meant; all of them if neither a rank nor a name is given.

    Args:
        rank: A rank: of the newest round of restarts, and of later ones while they are followed.
        process: A process's name, such as ``agent-0``.
    """

    rank: int | None = None
    process: str | None = None
    _logs: dict[str, None] = field(default_factory=dict)

    def logs(self, view: AttemptView, written: list[str]) -> list[str] | None:
        """Return the names of the logs to read, of those that are known by now; None for all."""
        if self.rank is not None:
            mine = [process for process in view.processes.values() if process.rank == self.rank]
            if mine:
                self._logs[max(mine, key=lambda process: process.restart).log] = None
        elif self.process is not None:
            known = view.processes.get(self.process)
            if known or self.process in written:
                self._logs[known.log if known else self.process] = None
        else:
            return None
        return list(self._logs)

    def missing(self, view: AttemptView, written: list[str]) -> str:
        """Return the error of a selection that names nothing."""
        if self.rank is not None:
            ranks = sorted({process.rank for process in view.processes.values() if process.rank is not None})
            return f"got the rank {self.rank}, expected one of {', '.join(map(str, ranks)) or '(no rank has opened)'}"
        names = sorted({*view.processes, *written})
        return f"got the process {self.process!r}, expected one of {', '.join(names) or '(none has written anything)'}"


async def print_logs(engine: Engine, number: int, selection: Selection, *, follow: bool) -> None:
    """Write an attempt's logs to standard output.

    Args:
        engine: The stage's engine.
        number: The attempt's number.
        selection: Which processes.
        follow: Go on until the attempt has ended.

    Raises:
        StageNotFoundError: The attempt has no process of that rank or name.
    """
    view, lines, offsets = AttemptView(), Lines(), dict[str, int]()
    reader = EventReader(engine.store, engine.ledger.events_prefix(number))
    while True:
        handle, launcher, going = await _where(engine, number)
        last = not (follow and going)
        # The status came first: what was written before the end is in the reads that follow.
        while events := await reader.read():
            view.apply(events)
        if handle is not None:
            logs = AttemptLogs(launcher, handle, engine.store, engine.ledger.logs_prefix(number))
            written = [chunk.process for chunk in await logs.new(Cursor(others=-1), ended=last)]
            names = selection.logs(view, written)
            if names == [] and last:
                raise StageNotFoundError(selection.missing(view, written))
            prefixed = names is None and (follow or len(written) > 1)
            async for chunk in _new_output(logs, offsets, names, ended=last):
                _write(chunk.process, lines.take(chunk), prefixed=prefixed)
            if last:
                for process, rest in lines.left():
                    _write(process, [rest], prefixed=prefixed)
                if not offsets:
                    pruned = "" if going else ", or it was removed since (rallypoint prune)"
                    say(f"{handle.attempt} has written nothing{' yet' if going else pruned}")
                return
        elif last:
            say(f"attempt {number} of {engine.key.text} has no process on {launcher.uri}")
            return
        await asyncio.sleep(_INTERVAL)


async def _where(engine: Engine, number: int) -> tuple[Handle | None, Launcher, bool]:
    """Return an attempt's handle and launcher, and whether more output may come."""
    entry = await engine.ledger.read(number)
    if entry is None:
        msg = f"{engine.key.text} has no attempt {number}"
        raise StageNotFoundError(msg)
    launcher = open_launcher(entry.record.launcher)
    handle = entry.handle or await launcher.find(entry.record.id)
    if handle is None:
        return None, launcher, entry.outcome is None
    return handle, launcher, (await launcher.poll(handle)).phase is Phase.RUNNING


async def _new_output(
    logs: AttemptLogs, offsets: dict[str, int], names: list[str] | None, *, ended: bool
) -> AsyncIterator[LogChunk]:
    while True:
        if names is None:
            cursor = Cursor(offsets)
        else:
            cursor = Cursor({name: offsets.get(name, 0) for name in names}, others=None)
        chunks = await logs.new(cursor, ended=ended)
        for chunk in chunks:
            offsets[chunk.process] = chunk.offset
            yield chunk
        if not chunks:
            return


def _write(process: str, lines: list[str], *, prefixed: bool) -> None:
    head = f"[{one_line(process)}] " if prefixed else ""
    sys.stdout.writelines(f"{head}{line}\n" for line in lines)
    sys.stdout.flush()
