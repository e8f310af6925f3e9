"""What an attempt's processes printed: from where they run, and from the store what that no longer has.

A folder as the store keeps no logs: they are in the run folder. Of a bucket see `rallypoint.worker.log_upload`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from rallypoint.launchers.base import Cursor, LogChunk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.launchers.base import Handle, Launcher
    from rallypoint.stages.store import Store

_CHUNK = 1 << 18  # bytes of one chunk
# <node>-<start of the node>/<log>/<offset>
_PART = re.compile(r"(?P<node>\d{1,6})-(?P<start>\d{1,6})/(?P<log>[A-Za-z0-9_-][A-Za-z0-9._-]{0,200})/(?P<at>\d{15})")


class AttemptLogs:
    """The logs of one attempt.

    Args:
        launcher: Where it runs, or ran.
        handle: Its handle.
        store: The store.
        prefix: Where the store keeps its logs.
    """

    def __init__(self, launcher: Launcher, handle: Handle, store: Store, prefix: str) -> None:
        self._launcher = launcher
        self._handle = handle
        self._store = store
        self._prefix = prefix

    async def new(self, cursor: Cursor, *, ended: bool) -> list[LogChunk]:
        """Return what is new since the cursor; at most one chunk per process.

        Args:
            cursor: How far they were read.
            ended: Whether to ask the store for what a host does not say. It is behind while the host runs, so whoever
                follows a running attempt waits for the host.

        Raises:
            StoreError: The store cannot be read.
        """
        chunks = [chunk async for chunk in self._launcher.logs(self._handle, cursor)]
        if not ended or self._store.local_path is not None:
            return chunks
        seen = {chunk.process for chunk in chunks}
        # Nothing new on a host means nothing new in the store, or that the host is gone.
        return [*chunks, *await self._stored(cursor, seen)]

    async def _stored(self, cursor: Cursor, seen: set[str]) -> list[LogChunk]:
        found = []
        for log, parts in _newest(await self._store.list(self._prefix), self._prefix).items():
            start = cursor.offsets.get(log, cursor.others)
            if log not in seen and start is not None:
                chunk = await self._chunk(log, parts, start, cursor.max_behind)
                found += [chunk] if chunk else []
        return found

    async def _chunk(
        self, log: str, parts: Sequence[tuple[int, int, str]], wanted: int, max_behind: int | None
    ) -> LogChunk | None:
        size = max(at + length for at, length, _ in parts)
        if wanted < 0:  # the end of a log, with its unfinished line
            first = max(0, size + wanted)
            start, data = await self._read(parts, first, -wanted)
            return LogChunk(log, data, start + len(data), start - first) if data else None
        first = start = wanted
        if max_behind is not None and size - start > max_behind:
            start = size - min(_CHUNK, max_behind)
        start, data = await self._read(parts, start, _CHUNK)
        if start > first:  # begin with a whole line
            cut = data.find(b"\n") + 1
            start, data = start + cut, data[cut:]
        if b"\n" in data:
            data = data[: data.rindex(b"\n") + 1]
        return LogChunk(log, data, start + len(data), start - first) if data else None

    async def _read(self, parts: Sequence[tuple[int, int, str]], start: int, limit: int) -> tuple[int, bytes]:
        """Return where the next kept bytes begin, and the bytes.

        Parts may overlap, and there may be gaps: of a log whose time was short the end was kept first.
        """
        data = b""
        for at, length, path in parts:
            here = start + len(data)
            if at + length <= here:
                continue
            if at > here:
                if data:
                    break
                start = here = at
            data += await self._store.read_from(path, here - at, limit - len(data))
            if len(data) >= limit:
                break
        return start, data


def _newest(entries: Sequence[tuple[str, int]], prefix: str) -> Mapping[str, list[tuple[int, int, str]]]:
    """Return the parts of each log in order: offset, size and path. Of a node that began anew the newest start's."""
    logs: dict[str, dict[tuple[int, int], list[tuple[int, int, str]]]] = defaultdict(lambda: defaultdict(list))
    for path, size in entries:
        if match := _PART.fullmatch(path.removeprefix(f"{prefix}/")):
            logs[match["log"]][int(match["start"]), int(match["node"])].append((int(match["at"]), size, path))
    return {log: sorted(starts[max(starts)]) for log, starts in logs.items()}
