"""Folds an attempt's events into what is known of it: who opened and closed, how far it is, what it made."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rallypoint.stages.events import Event

_MAX_FAILURES = 200  # a gang of thousands can fail at once; the first ones tell the cause
_MAX_LINES = 1_000  # metrics, artifacts and links that are kept
_MAX_SIZES = 20  # of worlds that are shown
_MAX_NAME = 200  # characters of a name
_MAX_TEXT = 2_000  # characters of a URI, or of any other value but the result
_MAX_ADDRESS = 16_000  # characters of a service's address, which travels from stage to stage
_MAX_NUMBER = 1 << 53  # what every reader of JSON takes


@dataclass
class ProcessView:
    """What one process has said.

    Args:
        name: The process's name.
        kind: ``process`` for one that the launcher started, ``rank`` for one started inside the job.
        host: Where it runs.
        pid: Its process id there.
        log: The name of its log.
        rank: Its rank, for a rank.
        world_size: The size of its world, for a rank.
        restart: The round of restarts that it belongs to.
        exit_code: What it closed with; None until then.
    """

    name: str
    kind: str = "process"
    host: str = ""
    pid: int = 0
    log: str = ""
    rank: int | None = None
    world_size: int | None = None
    restart: int = 0
    exit_code: int | None = None


@dataclass(frozen=True)
class World:
    """A world of ranks that an attempt has had.

    Args:
        restart: Its round of restarts.
        size: How many ranks it has.
        began: When the first of them opened, in seconds since the epoch.
    """

    restart: int
    size: int
    began: float


@dataclass
class AttemptView:
    """What an attempt's events say so far."""

    processes: dict[str, ProcessView] = field(default_factory=dict)
    step: int | None = None
    total: int | None = None
    unit: str = "step"
    metrics: dict[str, Any] = field(default_factory=dict)
    reported: float | None = None
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    checkpoint: dict[str, Any] | None = None
    result: Any = None
    ready: dict[str, Any] | None = None
    failures: list[Event] = field(default_factory=list)
    worlds: list[World] = field(default_factory=list)

    def apply(self, events: Iterable[Event]) -> None:
        """Take in events; kinds that are not known are ignored."""
        for event in events:
            handler = getattr(self, f"_on_{event.kind}", None)
            if handler is not None:
                handler(event)

    @property
    def progress_line(self) -> str:
        """Progress and metrics in one line, such as ``epoch 3/10 loss=0.412``; empty if nothing was reported."""
        words = []
        if self.step is not None:
            words.append(f"{self.unit} {self.step}/{self.total}" if self.total else f"{self.unit} {self.step}")
        words += [f"{name}={_short(value)}" for name, value in self.metrics.items()]
        return " ".join(words)[:_MAX_TEXT]

    @property
    def world_line(self) -> str:
        """How the number of ranks has changed, such as ``2 → 1 → 2``; empty if it never has."""
        sizes = [size for size, _ in groupby(world.size for world in self.worlds)]
        return " → ".join(map(str, sizes[-_MAX_SIZES:])) if len(sizes) > 1 else ""

    @property
    def last_round(self) -> list[ProcessView]:
        """The ranks of the newest round of restarts."""
        ranks = [process for process in self.processes.values() if process.kind == "rank"]
        newest = max((process.restart for process in ranks), default=0)
        return [process for process in ranks if process.restart == newest]

    def shown_logs(self) -> list[str]:
        """The logs to stream into the task's log: rank 0's, or that of the gang's first process."""
        ranks = [process.log for process in self.processes.values() if process.kind == "rank" and process.rank == 0]
        first = [p.log for p in self.processes.values() if p.kind == "process" and p.name.endswith("-0")]
        return first + ranks

    def _on_opened(self, event: Event) -> None:
        data = event.data
        if event.process in self.processes:  # its job was put back into the queue: what it said before is over
            self.failures = [failure for failure in self.failures if failure.process != event.process]
        self.processes[event.process] = ProcessView(
            name=event.process,
            kind=_text(data, "kind")[:_MAX_NAME] or "process",
            host=_text(data, "host")[:_MAX_NAME],
            pid=_number(data, "pid") or 0,
            log=_text(data, "log")[:_MAX_NAME] or event.process,
            rank=_number(data, "rank"),
            world_size=_number(data, "world_size"),
            restart=_number(data, "restart") or 0,
        )

        opened = self.processes[event.process]
        newest = self.worlds[-1].restart if self.worlds else -1
        if opened.kind == "rank" and opened.world_size and opened.restart > newest:
            # Rounds are told apart, not sizes: a world of the same size may have other hosts.
            self.worlds = [*self.worlds[-_MAX_LINES + 1 :], World(opened.restart, opened.world_size, event.time)]

    def _on_closed(self, event: Event) -> None:
        code = _number(event.data, "exit_code")
        self.processes.setdefault(event.process, ProcessView(event.process)).exit_code = 1 if code is None else code

    def _on_progress(self, event: Event) -> None:
        self.step, self.total = _number(event.data, "step"), _number(event.data, "total")
        self.unit = _text(event.data, "unit")[:40] or "step"
        self._on_metrics(event)

    def _on_metrics(self, event: Event) -> None:
        self.reported = event.time
        metrics = event.data.get("metrics")
        if isinstance(metrics, dict):
            for name, value in metrics.items():
                if name[:_MAX_NAME] in self.metrics or len(self.metrics) < _MAX_LINES:
                    self.metrics[name[:_MAX_NAME]] = _bounded(value)

    def _on_artifact(self, event: Event) -> None:
        if event.data.get("kind") == "checkpoint":
            self.checkpoint = {
                **{name: _text(event.data, name)[:_MAX_TEXT] for name in ("name", "uri")},
                **{name: _number(event.data, name) for name in ("step", "bytes")},
            }
        elif len(self.artifacts) < _MAX_LINES:
            name, uri = _text(event.data, "name")[:_MAX_NAME], _text(event.data, "uri")[:_MAX_TEXT]
            self.artifacts.append({"name": name, "uri": uri, "bytes": _number(event.data, "bytes")})

    def _on_link(self, event: Event) -> None:
        url = _text(event.data, "url")
        safe = url.startswith(("http://", "https://")) and url.isprintable() and len(url) <= _MAX_TEXT
        if safe and len(self.links) < _MAX_LINES:
            self.links[_text(event.data, "name")[:_MAX_NAME]] = url

    def _on_result(self, event: Event) -> None:
        self.result = event.data.get("value")

    def _on_ready(self, event: Event) -> None:
        address = event.data.get("address")
        if isinstance(address, dict) and len(json.dumps(address)) <= _MAX_ADDRESS:
            self.ready = address

    def _on_failed(self, event: Event) -> None:
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append(event)


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    return value if isinstance(value, str) else ""


def _number(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER else None


def _bounded(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= _MAX_TEXT else text[:_MAX_TEXT]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:80]
