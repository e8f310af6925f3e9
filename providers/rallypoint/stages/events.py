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
_DEPTH = 100  # lists and objects in one another: what shows or keeps a value recurses into it
_BUDGET = 2 * _READ  # bytes read in one call: of short lines it is 50 MB of events, and half a second to parse


@dataclass(frozen=True)
class Event:
    """One line that a process wrote.

    Args:
        kind: ``opened``, ``progress``, ``metrics``, ``artifact``, ``link``, ``result``, ``ready``, ``failed`` or
            ``closed``; ``rejected`` for a line that was refused.
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
        self._read_last = ""  # process: the next call begins with the one after it, so that a flood starves nobody

    async def read(self) -> list[Event]:
        """Return what is new, up to a bounded amount; an empty list says that nothing is.

        A torn last line is left for the next call.
        """
        events: list[Event] = []
        budget, to_be_continued = _BUDGET, set[str]()
        found = [(path.rpartition("/")[2], path, size) for path, size in await self._store.list(self._prefix)]
        for name, path, size in sorted(found, key=lambda file: (_process(file[0]) <= self._read_last, file[0])):
            start, process = self.offsets.get(name, 0), _process(name)
            if not name.endswith(".jsonl") or start >= size or budget <= 0 or process in to_be_continued:
                continue
            data = await self._store.read_from(path, start, _READ)
            if start + len(data) < size:
                to_be_continued.add(process)
            whole = data[: data.rfind(b"\n") + 1]
            if not whole and len(data) >= _READ:
                events.append(_rejected(name, f"a line of over {MAX_LINE:,} bytes"))
                whole = data
            if not whole:
                continue
            self.offsets[name] = start + len(whole)
            budget -= len(whole)
            self._read_last = process
            events += [_parse(name, line) for line in whole.splitlines() if line.strip()]
        return sorted(events, key=lambda event: event.time)


def _parse(name: str, line: bytes) -> Event:
    if len(line) > MAX_LINE:
        return _rejected(name, f"a line of {len(line):,} bytes, which is over {MAX_LINE:,}")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return _rejected(name, "a line that is no JSON")
    if line.count(b"[") + line.count(b"{") > _DEPTH and _deeper_than(_DEPTH, value):
        return _rejected(name, f"a line with more than {_DEPTH} lists and objects in one another")
    if not isinstance(value, dict) or value.pop("v", None) != 1:
        return _rejected(name, "a line that is no event of version 1")
    kind, time = value.pop("event", None), _seconds(value.pop("t", None))
    value.pop("process", None)
    if not isinstance(kind, str) or time is None:
        return _rejected(name, "an event without a kind or a time")
    return Event(kind, _process(name), time, value)


def _process(name: str) -> str:
    """Return who wrote a file: its name says it. A bucket's file is continued in numbered parts."""
    process = name.removesuffix(".jsonl")
    base, _, part = process.rpartition(".")
    return base if base and part.isdigit() else process


def _deeper_than(depth: int, value: Any) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [item for each in level if isinstance(each, dict | list) for item in _items(each)]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def _items(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _seconds(value: Any) -> float | None:
    try:
        time = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # JSON's integers have no limit, a float's do
        return None
    return time if math.isfinite(time) else None


def _rejected(name: str, what: str) -> Event:
    return Event("rejected", name.removesuffix(".jsonl"), 0.0, {"message": f"{name} holds {what}; it was left out"})
