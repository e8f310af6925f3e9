"""Tells an attempt's story in lines: the same ones in Airflow's task log, in a Prefect run's and on a terminal."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rallypoint.stages.text import Lines, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rallypoint.stages.attempt import Started, Update
    from rallypoint.stages.events import Event

_MAX_LINE = 2_000  # characters; a job may print a megabyte without a line's end
_MAX_LINES = 500  # of one process and one update: what is more is in the process's own log


@dataclass(frozen=True)
class News:
    """One line.

    Args:
        text: The line, safe to show.
        level: The level of `logging` that it deserves.
        process: The process that printed it; empty for what Rallypoint itself says.
    """

    text: str
    level: int = logging.INFO
    process: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", one_line(self.process))

    def __str__(self) -> str:
        return f"[{self.process}] {self.text}" if self.process else self.text


class Narrator:
    """Tells what is new about one attempt; keeps unfinished lines of logs until they are whole."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._round, self._size = 0, 0  # the next round that is told, and the size of the last one

    def opening(self, started: Started, stage: str) -> Iterator[News]:
        """Tell what was decided about a stage, and where it runs."""
        record = started.attempt.record
        yield News(one_line(f"stage {stage}: {started.decision.why}"))
        place = one_line(record.launcher)
        yield News(f"attempt {record.id} (number {record.number}, generation {record.generation}) on {place}")
        for name, url in (started.attempt.handle.links if started.attempt.handle else {}).items():
            yield News(one_line(f"{name}: {url}"))

    def tell(self, update: Update) -> Iterator[News]:
        """Tell what is new."""
        said = list(self._worlds(update))
        said += [news for event in update.events for news in _event(event)]
        yield from said[:_MAX_LINES]  # the first failure is the cause of the others
        if len(said) > _MAX_LINES:
            yield News(f"… {len(said) - _MAX_LINES} more lines about events left out here")
        for chunk in update.output:
            if chunk.skipped:
                for line in self._lines.break_off(chunk.process):
                    yield News(line[:_MAX_LINE], process=chunk.process)
                everything = f"{update.logs} --process {chunk.process}"
                yield News(f"… {chunk.skipped:,} bytes skipped here; all: {everything}", process=chunk.process)
            lines = self._lines.take(chunk)
            if len(lines) > _MAX_LINES:
                yield News(f"… {len(lines) - _MAX_LINES} lines left out here", process=chunk.process)
            for line in lines[-_MAX_LINES:]:
                yield News(line[:_MAX_LINE], process=chunk.process)
        if any(event.kind in ("progress", "metrics") for event in update.events):
            yield News(one_line(f"progress: {update.view.progress_line}")[:_MAX_LINE])
        if update.outcome is not None:
            for process, line in self._lines.left():
                yield News(line[:_MAX_LINE], process=process)

    def _worlds(self, update: Update) -> Iterator[News]:
        """Tell how the number of ranks has changed: an elastic gang lost a host or took one in."""
        for world in update.view.worlds:
            if world.restart >= self._round:
                if self._size and self._size != world.size:
                    change = f"world size {self._size} → {world.size}"
                    yield News(
                        f"{change} (round {world.restart}): it goes on from the last checkpoint", logging.WARNING
                    )
                self._round, self._size = world.restart + 1, world.size


def _event(event: Event) -> Iterator[News]:
    data = event.data
    if event.kind == "opened":
        world = f", rank {data.get('rank')} of {data.get('world_size')}" if data.get("kind") == "rank" else ""
        text = f"{event.process} opened on {data.get('host')} (pid {data.get('pid')}{world})"
    elif event.kind == "artifact":
        size = data.get("bytes")
        text = f"{data.get('kind')} {data.get('name')} saved" + (f", {size:,} bytes" if isinstance(size, int) else "")
    elif event.kind == "link":
        text = f"{data.get('name')}: {data.get('url')}"
    elif event.kind == "ready" and isinstance(data.get("address"), dict):
        shown = ", ".join(f"{name}={value}" for name, value in data["address"].items())
        text = f"ready: {shown}"
    elif event.kind == "failed" and not _is_repetition(event):
        rank = f"rank {data['rank']}" if "rank" in data else event.process
        what = ": ".join(str(data[key]) for key in ("signal", "exception", "message") if data.get(key))
        yield News(one_line(f"{rank} failed: {what}")[:_MAX_LINE], logging.WARNING)
        return
    elif event.kind == "rejected":
        yield News(one_line(str(data.get("message")))[:_MAX_LINE], logging.WARNING)
        return
    else:
        return
    yield News(one_line(text)[:_MAX_LINE])


def _is_repetition(event: Event) -> bool:
    """An agent repeats what a rank has said itself, and fails because of it."""
    return bool(event.data.get("secondary") or (event.data.get("seen_by") and event.data.get("message")))
