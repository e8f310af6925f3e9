"""Reads the logs of a gang from the pieces that its starter leaves in Ray's log folder.

Ray's own endpoints give a job's whole log at every call, or stream it from its start, or give its last lines without
saying where they stand. So the starter (`rallypoint.worker.ray_job`) cuts each log into pieces of one size, and an
index says how long each log is: an offset is then a piece and a place in it, one small request tells whether there is
something new, and what is read is what is new, and at most one piece more.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rallypoint.launchers.base import LogChunk
from rallypoint.launchers.run_folder import is_log
from rallypoint.worker import ray_job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.launchers.base import Cursor
    from rallypoint.launchers.ray_jobs.api import RayJobsApi

CHUNK = 1 << 18  # bytes of one log chunk
_MAX_INDEX = 1 << 20  # bytes
_MAX_RECORD = 1 << 22  # bytes


class PublishedLogs:
    """The files that one job's starter published on its node.

    Args:
        api: The cluster.
        node: Ray's id of the node.
        job: The job's id.
    """

    def __init__(self, api: RayJobsApi, node: str, job: str) -> None:
        self._api = api
        self._node = node
        self._folder = f"{ray_job.PUBLISHED}/{job}"

    async def final(self) -> bytes | None:
        """Return the supervisor's final record; None if it cannot be had."""
        return await self._api.log_file(self._node, f"{self._folder}/{ray_job.FINAL}", _MAX_RECORD)

    async def new(self, cursor: Cursor) -> list[LogChunk]:
        """Return what was written since the cursor, at most one chunk for each process."""
        sizes = await self._sizes()
        wanted = sizes if cursor.others is not None else {name: sizes[name] for name in cursor.offsets if name in sizes}
        chunks = []
        for name, size in wanted.items():
            start = cursor.offsets.get(name, cursor.others)
            if start is not None and size > start and (chunk := await self._chunk(name, size, start, cursor)):
                chunks.append(chunk)
        return chunks

    async def _sizes(self) -> Mapping[str, int]:
        data = await self._api.log_file(self._node, f"{self._folder}/{ray_job.INDEX}", _MAX_INDEX)
        try:
            sizes = json.loads(data or b"{}").get("logs", {})
            return {name: size for name, size in sizes.items() if is_log(name) and type(size) is int and size > 0}
        except (ValueError, AttributeError, RecursionError):
            return {}

    async def _chunk(self, name: str, size: int, start: int, cursor: Cursor) -> LogChunk | None:
        length, from_end = CHUNK, start < 0
        if from_end:
            start, length = max(0, size + start), -start
        first = start
        if cursor.max_behind is not None and size - start > cursor.max_behind:
            start = size - min(CHUNK, cursor.max_behind)
        data = await self._bytes(name, start, min(size, start + length))
        if start > first:  # begin with a whole line
            cut = data.find(b"\n") + 1
            start, data = start + cut, data[cut:]
        if b"\n" in data and not from_end:  # the end of a log is wanted with its unfinished line
            data = data[: data.rindex(b"\n") + 1]
        return LogChunk(name, data, start + len(data), skipped=start - first) if data else None

    async def _bytes(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes of a log from its pieces, up to the first one that cannot be had."""
        found = bytearray()
        for number in range(start // ray_job.PIECE, (end - 1) // ray_job.PIECE + 1):
            piece = await self._api.log_file(
                self._node, f"{self._folder}/{ray_job.piece_name(name, number)}", ray_job.PIECE
            )
            above = number * ray_job.PIECE
            wanted = (piece or b"")[max(0, start - above) : end - above]
            found += wanted
            if above + ray_job.PIECE < end and len(piece or b"") < ray_job.PIECE:
                break  # a hole: what follows would stand at the wrong place
        return bytes(found)
