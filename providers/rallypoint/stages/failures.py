"""Says which process failed first, why, and whether a retry can help; one table classifies every failure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.spec.failure import FailureRule, Kind
from rallypoint.stages import failure_table as table
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
_MAX_TEXT = 32_000  # characters of a message or traceback that is kept; a process sends half
_MAX_SEARCHED = 8_000  # characters of a message in which the rules look: expressions may take the square of it
_MAX_CODE = 1 << 32  # of exit codes


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
        retry_after: Seconds to wait before the first retry; None leaves it to the orchestrator.
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
    retry_after: float | None = None

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
            lines += [
                "",
                f"last lines of {self.process or 'the job'}:",
                *(f"  | {one_line(line)}" for line in self.last_lines),
            ]
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
        """Return the report that `to_json` described.

        Raises:
            TypeError: It is none; so do `KeyError` and `ValueError`.
        """
        lists = {name: tuple(value.get(name, ())) for name in ("last_lines", "others")}
        texts = [text for name, text in value.items() if name not in {*lists, "exit_code", "retry_after"}]
        if not all(isinstance(text, str) for text in (*texts, *lists["last_lines"], *lists["others"])):
            msg = "got a failure report with other values than text"
            raise TypeError(msg)
        return cls(**{**value, **lists, "kind": Kind(value["kind"])})


def before_traceback(log: str, traceback: str) -> str:
    """Return the end of a log without the traceback, chained exceptions included, that a report shows anyway."""
    parts, count = log.split(_TRACEBACK), traceback.count(_TRACEBACK)
    return _TRACEBACK.join(parts[:-count]) if count and len(parts) > count else log


def launch_report(error: Exception, *, attempt: str, fatal: bool) -> FailureReport:
    """Return the report of a gang that could not be launched."""
    return _report(table.PREFLIGHT if fatal else table.LAUNCH, message=str(error), attempt=attempt)


def explain(  # noqa: PLR0913 - each is known apart
    status: Status,
    view: AttemptView,
    *,
    attempt: str,
    logs: str,
    silent: Sequence[str] = (),
    rules: tuple[FailureRule, ...] = (),
    service: bool = False,
) -> FailureReport:
    """Return the report of an attempt that ended without success, without the last lines.

    Args:
        status: What the launcher knows of its end.
        view: What its processes said.
        attempt: The attempt's id.
        logs: The command that shows all logs.
        silent: Processes that never closed although nothing else failed.
        rules: The job's own rules, which come before the table's.
        service: Whether it was to stay.
    """
    base = {"attempt": attempt, "logs": logs}
    if service and status.reason == "cancelled":
        return _report(table.STOPPED, message=status.message, **base)
    if status.reason in table.BY_REASON:
        return _report(table.BY_REASON[status.reason], message=status.message, **base)
    causes = _causes(view, status.processes, rules)
    if not causes:
        if status.phase is Phase.LOST or status.reason == "terminated":
            return _report(table.LOST, message=status.message, **base)
        if silent:
            names = ", ".join(silent)
            return _report(table.SILENT, message=f"{names} ended with exit code 0 but never reported its end", **base)
        ended = service and status.reason == "completed"
        return _report(table.SERVICE_ENDED if ended else table.UNKNOWN, message=status.message, **base)
    (row, first), *rest = causes
    return _report(row, others=tuple(_one_line(other, cause) for other, cause in rest[:12]), **first, **base)


def _report(row: FailureRule, **fields: Any) -> FailureReport:
    return FailureReport(kind=row.kind, title=row.name, advice=row.advice, retry_after=row.retry_after, **fields)


def _causes(
    view: AttemptView, ends: Sequence[ProcessEnd], rules: tuple[FailureRule, ...]
) -> list[tuple[FailureRule, dict[str, Any]]]:
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
    rows = [(_rule(rules, fields), when, fields) for when, fields in merged.values()]
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
    if abs(fields.get("exit_code", 0)) > _MAX_CODE:
        del fields["exit_code"]
    fields |= {key: fields[key][:_MAX_TEXT] for key in ("message", "traceback") if key in fields}
    short: dict[str, Any] = {
        key: one_line(fields[key])[:_MAX_NAME] for key in ("host", "exception", "signal") if key in fields
    }
    return name, {"process": one_line(name)[:_MAX_NAME], **fields, **short}


def _rule(rules: tuple[FailureRule, ...], fields: Mapping[str, Any]) -> FailureRule:
    return table.classify(
        rules,
        exception=fields.get("exception", ""),
        message=fields.get("message", "")[:_MAX_SEARCHED],
        signal=fields.get("signal"),
        exit_code=fields.get("exit_code"),
    )


def _one_line(row: FailureRule, fields: Mapping[str, Any]) -> str:
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
