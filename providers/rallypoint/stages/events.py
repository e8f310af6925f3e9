"""Reads what a job's processes report: JSON lines, one file per process, and only what is new.

What is read here comes from outside: a line that is no JSON object, too long, or of another version is refused and
said, never believed and never the reader's end.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rallypoint.worker.events import MAX_LINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.stages.store import Store

_READ = 2 * MAX_LINE  # bytes read from one file at a time: a whole line always fits
_BUDGET = 16 * MAX_LINE  # bytes read in one call, so that a flood cannot fill the reader's memory


@dataclass(frozen=True)
class Event:
    """One line that a process wrote.

    Args:
        kind: ``opened``, ``progress``, ``metrics``, ``artifact``, ``link``, ``result``, ``failed`` or ``closed``;
            ``rejected`` for a line that was refused.
        process: The process that wrote it, such as ``rank-0.r0``.
        time: When, in seconds since the epoch, by that process's clock.
        data: The other fields.
    """

    kind: str
    process: str
    time: float
    data: Mapping[str, Any] = field(default_factory=dict)


class EventReader:
    """Reads the event files below a prefix, from where it stopped the last time.

    Args:
        store: The store.
        prefix: The folder of the event files.
        offsets: Bytes read of each file, by name.
    """

    def __init__(self, store: Store, prefix: str, offsets: Mapping[str, int] | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self.offsets: dict[str, int] = dict(offsets or {})

    async def read(self) -> list[Event]:
        """Return what is new, up to a bounded amount; an empty list says that nothing is.

        A torn last line is left for the next call.
        """
        events: list[Event] = []
        budget = _BUDGET
        for path, size in await self._store.list(self._prefix):
            name = path.rpartition("/")[2]
            if not name.endswith(".jsonl"):
                continue
            while budget > 0 and self.offsets.get(name, 0) < size:
                start = self.offsets.get(name, 0)
                data = await self._store.read_from(path, start, _READ)
                whole = data[: data.rfind(b"\n") + 1]
                if not whole and len(data) >= _READ:
                    events.append(_rejected(name, f"a line of over {MAX_LINE:,} bytes"))
                    whole = data
                if not whole:
                    break
                self.offsets[name] = start + len(whole)
                budget -= len(whole)
                events += [_parse(name, line) for line in whole.splitlines() if line.strip()]
        return sorted(events, key=lambda event: event.time)


def _parse(name: str, line: bytes) -> Event:
    if len(line) > MAX_LINE:
        return _rejected(name, f"a line of {len(line):,} bytes, which is over {MAX_LINE:,}")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return _rejected(name, "a line that is no JSON")
    if not isinstance(value, dict) or value.pop("v", None) != 1:
        return _rejected(name, "a line that is no event of version 1")
    kind, time = value.pop("event", None), _seconds(value.pop("t", None))
    value.pop("process", None)
    if not isinstance(kind, str) or time is None:
        return _rejected(name, "an event without a kind or a time")
    # The file says who wrote it; a bucket's file is continued in numbered parts.
    process = name.removesuffix(".jsonl")
    base, _, part = process.rpartition(".")
    return Event(kind, base if base and part.isdigit() else process, time, value)


def _seconds(value: Any) -> float | None:
    try:
        time = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # JSON's integers have no limit, a float's do
        return None
    return time if math.isfinite(time) else None


def _rejected(name: str, what: str) -> Event:
    return Event("rejected", name.removesuffix(".jsonl"), 0.0, {"message": f"{name} holds {what}; it was left out"})
