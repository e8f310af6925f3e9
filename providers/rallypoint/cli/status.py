"""Shows the stages of a store, and one stage's attempts, processes, progress and failure."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from rallypoint.cli.terminal import state_text, text, took, when
from rallypoint.spec.service import USES
from rallypoint.stages.engine import Engine
from rallypoint.stages.ledger import list_stages

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rallypoint.stages.attempt import Snapshot
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.store import Store
    from rallypoint.stages.view import ProcessView

_AT_ONCE = 16  # stages that are read at the same time
_MAX_RESULT = 2_000  # characters


async def last_attempts(store: Store) -> list[tuple[StageKey, Snapshot]]:
    """Return every stage that has an attempt, and its newest attempt, the newest first."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def last(key: StageKey) -> tuple[StageKey, Snapshot] | None:
        async with turn:
            engine = Engine(store, key)
            numbers = await engine.ledger.numbers()
            return (key, await engine.inspect(numbers[-1])) if numbers else None

    found = await asyncio.gather(*(last(key) for key in await list_stages(store)))
    return sorted(filter(None, found), key=lambda each: -each[1].entry.record.created)


async def all_attempts(engine: Engine) -> list[Snapshot]:
    """Return every attempt of a stage, in order."""
    return [await engine.inspect(number) for number in await engine.ledger.numbers()]


def stages_json(stages: list[tuple[StageKey, Snapshot]]) -> list[dict[str, Any]]:
    """Return the newest attempts of stages as JSON."""
    return [{"stage": list(key.parts), **_attempt_json(shown)} for key, shown in stages]


def stage_json(key: StageKey, attempts: list[Snapshot], shown: Snapshot) -> dict[str, Any]:
    """Return a stage as JSON: all attempts, and more on one of them."""
    view, outcome = shown.view, shown.entry.outcome
    return {
        "stage": list(key.parts),
        "attempts": [_attempt_json(attempt) for attempt in attempts],
        "shown": {
            "number": shown.entry.record.number,
            "processes": [asdict(process) for process in view.processes.values()],
            "worlds": [asdict(world) for world in view.worlds],
            "metrics": view.metrics,
            "checkpoint": view.checkpoint,
            "artifacts": view.artifacts,
            "links": view.links,
            "result": outcome.result if outcome else None,
            "failure": outcome.failure.to_json() if outcome and outcome.failure else None,
            "ready": shown.ready,
            "lease": shown.entry.record.lease,
            "lease_renewed": shown.renewed,
        },
    }


def show_stages(store: Store, stages: list[tuple[StageKey, Snapshot]]) -> RenderableType:
    """Return the stages of a store as a table."""
    if not stages:
        return text(f"no stages in {store.uri}")
    table = Table("stage", "attempt", "state", "progress", "started", "took")
    for key, shown in stages:
        table.add_row(text(key.text), str(shown.entry.record.number), state_text(shown.state), *_how_far(shown))
    return table


def show_stage(key: StageKey, attempts: list[Snapshot], shown: Snapshot) -> RenderableType:
    """Return a stage as tables: all attempts, and more on one of them."""
    record, view, outcome = shown.entry.record, shown.view, shown.entry.outcome
    parts: list[RenderableType] = [Text("stage ") + text(key.text, "bold"), _attempts(attempts)]
    parts.append(Text("\nattempt ") + text(record.id, "bold") + Text(": ") + state_text(shown.state))
    if view.processes:
        parts.append(_processes(list(view.processes.values())))
    parts.append(_facts(shown))
    if outcome and outcome.failure:
        parts.append(text(f"\n{outcome.failure.render()}"))
    return Group(*parts)


def _facts(shown: Snapshot) -> Table:
    record, view, outcome = shown.entry.record, shown.view, shown.entry.outcome
    facts = Table(box=None, show_header=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("launcher", text(record.launcher))
    said = {"progress": view.progress_line, "world size": view.world_line}
    for name, line in said.items():
        if line:
            facts.add_row(name, text(line))
    if view.checkpoint:
        facts.add_row("checkpoint", text(view.checkpoint.get("uri")))
    for artifact in view.artifacts:
        size = f" ({decimal(artifact['bytes'])})" if isinstance(artifact["bytes"], int) else ""
        facts.add_row("artifact", text(f"{artifact['uri']}{size}"))
    if shown.ready is not None:
        facts.add_row("ready", text(json.dumps({**shown.ready, USES: len(shown.ready[USES])})[:_MAX_RESULT]))
    if record.service and outcome is None:
        facts.add_row("lease", text(_lease(shown)))
    for name, url in view.links.items():
        facts.add_row("link", text(f"{name}: {url}"))
    if outcome and outcome.result is not None:
        facts.add_row("result", text(json.dumps(outcome.result)[:_MAX_RESULT]))
    return facts


def _lease(shown: Snapshot) -> str:
    seconds = shown.entry.record.lease
    if seconds is None:
        return "none: it stays until it is stopped"
    ago = time.time() - (shown.renewed or shown.entry.record.created)
    return f"{seconds:g} s, renewed {ago:.0f} s ago: it ends in {max(0.0, seconds - ago):.0f} s if nobody uses it"


def _attempts(attempts: list[Snapshot]) -> Table:
    table = Table("attempt", "generation", "state", "progress", "started", "took", "why")
    for shown in attempts:
        record = shown.entry.record
        number, generation = str(record.number), str(record.generation)
        table.add_row(number, generation, state_text(shown.state), *_how_far(shown), text(record.why))
    return table


def _processes(processes: list[ProcessView]) -> Table:
    table = Table("process", "rank", "restart", "host", "pid", "exit code")
    for process in processes:
        rank = "" if process.rank is None else f"{process.rank} of {process.world_size}"
        code = Text("" if process.exit_code is None else str(process.exit_code), "red" if process.exit_code else "")
        restart = str(process.restart) if process.rank is not None else ""
        table.add_row(text(process.name), rank, restart, text(process.host), str(process.pid), code)
    return table


def _how_far(shown: Snapshot) -> tuple[Text, str, str]:
    record, outcome = shown.entry.record, shown.entry.outcome
    return (
        text("ready" if shown.ready is not None else shown.view.progress_line),
        when(record.created),
        took(record.created, outcome.ended if outcome else None),
    )


def _attempt_json(shown: Snapshot) -> dict[str, Any]:
    record, outcome = shown.entry.record, shown.entry.outcome
    return {
        "attempt": record.id,
        "number": record.number,
        "generation": record.generation,
        "resumed": record.resumed,
        "state": shown.state.value,
        "kind": record.kind,
        "launcher": record.launcher,
        "owner": shown.entry.owner,
        "why": record.why,
        "step": shown.view.step,
        "total": shown.view.total,
        "progress": shown.view.progress_line,
        "created": record.created,
        "ended": outcome.ended if outcome else None,
    }
