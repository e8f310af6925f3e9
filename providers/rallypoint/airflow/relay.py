"""Turns an attempt's news into lines of the task's log: the same lines in a worker and in the triggerer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rallypoint.stages.failures import printable

if TYPE_CHECKING:
    from rallypoint.stages.engine import Started, Update
    from rallypoint.stages.events import Event


class Log(Protocol):
    """What both a worker's and the triggerer's logger do."""

    def info(self, event: Any, /, *args: Any) -> Any:
        """Write a line."""

    def warning(self, event: Any, /, *args: Any) -> Any:
        """Write a line that wants to be seen."""


_MAX_LINE = 2_000  # characters; a job may print a megabyte without a line's end
_MAX_LINES = 500  # of one process and one update: what is more is in the process's own log


def announce(log: Log, started: Started, stage: str) -> None:
    """Say what was decided about a stage, and where to look."""
    record = started.attempt.record
    log.info("Rallypoint stage %s: %s", stage, started.decision.why)
    log.info(
        "attempt %s (number %d, generation %d) on %s", record.id, record.number, record.generation, record.launcher
    )


def relay(log: Log, update: Update) -> None:
    """Write what is new to the task's log."""
    for event in update.events:
        _say(log, event)
    for chunk in update.output:
        lines = printable(chunk.data.decode(errors="replace")).splitlines()
        for line in lines[-_MAX_LINES:]:
            log.info("[%s] %s", chunk.process, line[:_MAX_LINE])
        if len(lines) > _MAX_LINES:
            log.info("[%s] … %d earlier lines left out here", chunk.process, len(lines) - _MAX_LINES)
    if any(event.kind in ("progress", "metrics") for event in update.events):
        log.info("progress: %s", printable(update.view.progress_line))


def _say(log: Log, event: Event) -> None:
    data = event.data
    if event.kind == "opened":
        world = f", rank {data.get('rank')} of {data.get('world_size')}" if data.get("kind") == "rank" else ""
        log.info("%s opened on %s (pid %s%s)", event.process, data.get("host"), data.get("pid"), world)
    elif event.kind == "artifact":
        size, what = data.get("bytes"), f"{data.get('kind')} {data.get('name')}"
        log.info("%s saved, %s bytes", printable(what), f"{size:,}" if isinstance(size, int) else "?")
    elif event.kind == "link":
        log.info("%s: %s", printable(str(data.get("name"))), printable(str(data.get("url"))))
    elif event.kind == "failed" and not data.get("secondary") and not (data.get("seen_by") and data.get("message")):
        rank = f"rank {data['rank']}" if "rank" in data else event.process
        what = ": ".join(str(data[key]) for key in ("signal", "exception", "message") if data.get(key))
        log.warning("%s failed: %s", rank, printable(what)[:_MAX_LINE])
    elif event.kind == "rejected":
        log.warning("%s", printable(str(data.get("message"))))
