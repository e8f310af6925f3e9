"""Says which process failed first, why, and whether a retry can help; one table classifies every failure."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.stages.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.stages.events import Event
    from rallypoint.stages.view import AttemptView

LAST_LINES = 20
_MAX_LINE = 500  # characters of one line of a report
_TRACEBACK = "Traceback (most recent call last):"
_MAX_LINES = 40  # of a message or traceback
_MAX_NAME = 200  # characters of a host, an exception's name or a signal


class Kind(StrEnum):
    """Whether a retry can help."""

    USER = "user error"  # the code or its configuration has to change first
    RETRYABLE = "retryable"  # it was the machine, the network or the cluster
    UNKNOWN = "unknown"  # it may have been either: the orchestrator's retries decide
    CANCELLED = "cancelled"  # somebody stopped it


@dataclass(frozen=True)
class _Row:
    """One row of the table: what a failure looks like, and what it is."""

    name: str
    kind: Kind
    advice: str
    exception: str = ""  # matches the exception's name
    message: str = ""  # matches the exception's message
    signals: tuple[str, ...] = ()
    echo: bool = False  # it follows from another process's end, and never is the first cause if there is another


_TABLE: tuple[_Row, ...] = (
    _Row("out of memory", Kind.RETRYABLE, "give the job more memory, or make the batches smaller",
         exception=r"(^|\.)(MemoryError|OutOfMemoryError)$"),
    _Row("out of GPU memory", Kind.RETRYABLE, "make the batches smaller, or use a larger GPU",
         message=r"CUDA out of memory|HIP out of memory"),
    _Row("disk full", Kind.RETRYABLE, "free space in the store or on the host, then retry",
         message=r"No space left on device"),
    _Row("another process was lost", Kind.RETRYABLE, "look at the process that ended first", echo=True,
         message=r"Connection (closed by peer|reset by peer|refused)|Broken pipe|heartbeat monitor|Socket closed"
                 r"|NCCL (error|communicator was aborted)|remote process exited|DistNetworkError|Timed out waiting"),
    _Row("a collective timed out", Kind.RETRYABLE, "look for a rank that is slower than the rest or was lost",
         message=r"(collective|Watchdog caught|ProcessGroup).*time(d ?)?out|Timed out after \d+ms waiting"),
    _Row("the entry cannot be loaded", Kind.USER, "correct the entry, or install what it imports in the job's Python",
         exception=r"(^|\.)(EntryLoadError|ImportError|ModuleNotFoundError|SyntaxError|IndentationError)$"),
    _Row("the result is not JSON", Kind.USER, "return JSON, or save an artifact and return its URI; the retry "
         "continues from the last checkpoint", exception=r"(^|\.)NotJSONError$"),
    _Row("an error in the user's code", Kind.USER, "correct the code, then clear the task: it continues from the last"
         " checkpoint", exception=r"(^|\.)(TypeError|NameError|AttributeError|UnboundLocalError|NotImplementedError)$"),
    _Row("killed", Kind.RETRYABLE, "the kernel kills what uses too much memory: look at the host's log, or give the job"
         " more memory", signals=("SIGKILL",)),
    _Row("terminated from outside", Kind.RETRYABLE, "the host was shut down or the job preempted; the retry continues",
         echo=True, exception=r"(^|\.)SignalException$", signals=("SIGTERM", "SIGINT", "SIGHUP")),
    _Row("crashed in native code", Kind.UNKNOWN, "set faulthandler or a core dump to see where",
         signals=("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")),
)  # fmt: skip
_UNKNOWN = _Row("failed", Kind.UNKNOWN, "read the traceback; the retry continues from the last checkpoint")
_STALLED = _Row(
    "stalled", Kind.RETRYABLE, "look at what the processes were waiting in; raise stall_timeout if it was busy"
)
_LOST = _Row("lost", Kind.RETRYABLE, "the host was restarted or its processes killed; the retry continues")
_SILENT = _Row("ended without a word", Kind.UNKNOWN, "look for os._exit or a native crash at exit")
_CANCELLED = _Row("cancelled", Kind.CANCELLED, "clear the task to continue from the last checkpoint")
_PREFLIGHT = _Row("cannot run here", Kind.USER, "correct what the message names, then clear the task")
_LAUNCH = _Row("could not be launched", Kind.RETRYABLE, "see the message")
_BY_REASON = {"cancelled": _CANCELLED, "stalled": _STALLED, "error": _LAUNCH}


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """What failed first, where, and whether a retry can help. Fits on one screen.

    Args:
        kind: Whether a retry can help.
        title: What happened, in a few words.
        process: The process that failed first, such as ``rank 3``; empty if it was none of the gang's.
        host: Where that was.
        exception: The exception's name.
        message: Its message.
        traceback: Its traceback.
        exit_code: The process's exit code.
        signal: The signal that ended it.
        last_lines: The last lines that it wrote, before the traceback.
        others: One line on each other process that failed.
        advice: What to do next.
        attempt: The attempt's id.
        logs: The command that shows all logs.
    """

    kind: Kind
    title: str
    process: str = ""
    host: str = ""
    exception: str = ""
    message: str = ""
    traceback: str = ""
    exit_code: int | None = None
    signal: str | None = None
    last_lines: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    advice: str = ""
    attempt: str = ""
    logs: str = ""

    @property
    def headline(self) -> str:
        """What failed, in one line."""
        where = f"{self.process or 'the job'}{f' on {self.host}' if self.host else ''}"
        how = self.signal or (f"exit code {self.exit_code}" if self.exit_code is not None else "")
        head = f"{where}: {self.title}" + (f" ({how})" if how and how not in self.title else "")
        first = next(iter(self.message.splitlines()), "")[:200]
        return one_line(f"stage failed, {self.kind.value}: {': '.join(filter(None, (head, self.exception, first)))}")

    def render(self) -> str:
        """Return the report for a log: plain text, with nothing in it that a terminal would obey."""
        lines = [self.headline]
        if len(more := self.message.splitlines()) > 1 and not self.traceback:
            lines += [f"  {line}" for line in _clip(more[1:])]
        if self.traceback:
            lines += ["", *_clip(self.traceback.rstrip().splitlines())]
        if self.last_lines:
            lines += ["", f"last lines of {self.process or 'the job'}:", *(f"  | {line}" for line in self.last_lines)]
        if self.others:
            lines += ["", "the others:", *(f"  {line}" for line in self.others)]
        lines += ["", f"what to do: {self.advice}"]
        if self.logs:
            lines.append(f"all logs: {self.logs}")
        return printable("\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", ())}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FailureReport:
        """Return the report that `to_json` described."""
        lists = {name: tuple(value.get(name, ())) for name in ("last_lines", "others")}
        return cls(**{**value, **lists, "kind": Kind(value["kind"])})


def before_traceback(log: str, traceback: str) -> str:
    """Return the end of a log without the traceback, chained exceptions included, that a report shows anyway."""
    parts, count = log.split(_TRACEBACK), traceback.count(_TRACEBACK)
    return _TRACEBACK.join(parts[:-count]) if count and len(parts) > count else log


def launch_report(error: Exception, *, attempt: str, fatal: bool) -> FailureReport:
    """Return the report of a gang that could not be launched."""
    row = _PREFLIGHT if fatal else _LAUNCH
    return FailureReport(kind=row.kind, title=row.name, message=str(error), advice=row.advice, attempt=attempt)


def explain(status: Status, view: AttemptView, *, attempt: str, logs: str, silent: Sequence[str] = ()) -> FailureReport:
    """Return the report of an attempt that ended without success, without the last lines.

    Args:
        status: What the launcher knows of its end.
        view: What its processes said.
        attempt: The attempt's id.
        logs: The command that shows all logs.
        silent: Processes that never closed although nothing else failed.
    """
    base = {"attempt": attempt, "logs": logs}
    if status.reason in _BY_REASON:
        return _report(_BY_REASON[status.reason], message=status.message, **base)
    causes = _causes(view, status.processes)
    if not causes:
        if status.phase is Phase.LOST or status.reason == "terminated":
            return _report(_LOST, message=status.message, **base)
        if silent:
            names = ", ".join(silent)
            return _report(_SILENT, message=f"{names} ended with exit code 0 but never reported its end", **base)
        return _report(_UNKNOWN, message=status.message, **base)
    (row, first), *rest = causes
    return _report(row, others=tuple(_one_line(other, cause) for other, cause in rest[:12]), **first, **base)


def _report(row: _Row, **fields: Any) -> FailureReport:
    return FailureReport(kind=row.kind, title=row.name, advice=row.advice, **fields)


def _causes(view: AttemptView, ends: Sequence[ProcessEnd]) -> list[tuple[_Row, dict[str, Any]]]:
    """Return what failed, the first cause first: real causes before echoes, processes before their parents, by time."""
    newest = max((p.restart for p in view.processes.values() if p.kind == "rank"), default=0)
    merged: dict[str, tuple[float, dict[str, Any]]] = {}
    for event in view.failures:
        if event.data.get("secondary"):
            continue
        process = view.processes.get(event.process)
        if process and process.kind == "rank" and process.restart < newest:
            continue  # torchrun restarted the workers after it: not what ended the attempt
        name, fields = _fields(event, view)
        when, known = merged.get(name, (event.time, {}))
        merged[name] = (min(when, event.time), {**fields, **known} if known.get("exception") else {**known, **fields})
    reported = {event.process for event in view.failures}
    for end in sorted(ends, key=lambda end: not end.first):
        # Beside what others reported, an end counts only as the first: the rest of the gang was ended because of it.
        if end.exit_code != 0 and end.name not in reported and (end.first or not reported):
            told = {"process": end.name, "host": end.host, "exit_code": end.exit_code, "signal": end.signal}
            merged[end.name] = (0.0 if end.first else 1.0, told)
    rows = [(_classify(fields), when, fields) for when, fields in merged.values()]
    rows.sort(key=lambda item: (item[0].echo, item[1]))
    return [(row, fields) for row, _, fields in rows]


def _fields(event: Event, view: AttemptView) -> tuple[str, dict[str, Any]]:
    data = event.data
    process = view.processes.get(event.process)
    rank = data.get("rank", process.rank if process else None)
    name = f"rank {rank}" if isinstance(rank, int) else event.process
    wanted = {"host": str, "exception": str, "message": str, "traceback": str, "exit_code": int, "signal": str}
    fields: dict[str, Any] = {
        key: data[key] for key, kind in wanted.items() if isinstance(data.get(key), kind) and data[key] != ""
    }
    short: dict[str, Any] = {
        key: one_line(fields[key])[:_MAX_NAME] for key in ("host", "exception", "signal") if key in fields
    }
    return name, {"process": one_line(name), **fields, **short}


def _classify(fields: Mapping[str, Any]) -> _Row:
    for row in _TABLE:
        if row.signals and fields.get("signal") in row.signals:
            return row
        if row.exception and re.search(row.exception, fields.get("exception", "")):
            return row
        if row.message and re.search(row.message, fields.get("message", "")):
            return row
    return _UNKNOWN


def _one_line(row: _Row, fields: Mapping[str, Any]) -> str:
    what = fields.get("signal") or fields.get("exception") or fields.get("exit_code", "")
    message = next(iter(str(fields.get("message", "")).splitlines()), "")
    return one_line(f"{fields['process']}: {row.name} ({what}) {message[:120]}".rstrip())[:_MAX_LINE]


def _clip(lines: Sequence[str]) -> list[str]:
    """Return the first and the last lines of what is too long for a screen; the end tells more."""
    every = [line[:_MAX_LINE] for line in lines]
    if len(every) <= _MAX_LINES:
        return every
    begin = _MAX_LINES // 4
    left_out = len(every) - _MAX_LINES
    return [*every[:begin], f"  [… {left_out} lines left out …]", *every[begin + left_out :]]
