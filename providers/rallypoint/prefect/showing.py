"""What a stage shows in Prefect's UI while it runs: progress, ranks, metrics, links and, if it fails, why.

An artifact is a row of its own for every try, below a key that stays: a retry that reattaches writes all of them
again.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from prefect.artifacts import (
    Artifact,
    ImageArtifact,
    LinkArtifact,
    MarkdownArtifact,
    ProgressArtifact,
    TableArtifact,
)
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.utilities.urls import url_for

from rallypoint.errors import StoreError
from rallypoint.prefect.picture import data_uri, draw
from rallypoint.prefect.runs import UNREACHABLE
from rallypoint.stages.history import History
from rallypoint.stages.text import one_line, printable

if TYPE_CHECKING:
    import logging
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

    from rallypoint.prefect.runs import Run
    from rallypoint.stages.attempt import Started, Update
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.failures import FailureReport
    from rallypoint.stages.view import AttemptView

# Seconds between two writes of an artifact: the server keeps an event of each.
_PACE = {"progress": 3.0, "ranks": 5.0, "metrics": 15.0}
_MAX_ROWS = 500
_PANELS = 4  # of the picture of metrics
_MAX_KEY = 100


class Showing:
    """The artifacts of one try. Without a run there are none, and no trouble with them ends a stage.

    Args:
        client: Prefect's client.
        engine: The stage's engine.
        name: The stage's name.
        inputs: The digest that tells stages of one name apart; may be empty.
        run: The run that shows them.
        log: The run's log.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a try has found out
        self, client: PrefectClient, engine: Engine, name: str, inputs: str, run: Run, log: logging.Logger
    ) -> None:
        self._client = client
        self._engine = engine
        self._name = name
        self._run = run
        self._log = log
        self._prefix = _slug("-".join(filter(None, (run.flow, name, inputs))))
        self._artifacts: dict[str, UUID] = {}
        self._shown: dict[str, tuple[float, Any]] = {}
        self._history: History | None = None
        self._numbers: list[int] = []
        self._view: AttemptView | None = None
        self._title = name

    async def started(self, started: Started) -> None:
        """Show what was decided, and where the job and its logs are."""
        record = started.attempt.record
        self._title = f"{self._name}, attempt {record.number}"
        # The curves of a generation: a retry that continues goes on with them.
        self._history = History(self._engine.ledger, record.generation)
        self._numbers = [n for n in await self._engine.ledger.numbers() if await self._is_of(n, record.generation)]
        store = self._engine.store.uri
        lines = [
            f"## {_plain(self._name)}",
            _plain(started.decision.why),
            "",
            "| | |",
            "| --- | --- |",
            f"| stage | `{_cell(self._engine.key.text)}` |",
            f"| attempt | `{record.id}` (number {record.number}, generation {record.generation}) |",
            f"| launcher | `{_cell(record.launcher)}` |",
            f"| logs | `rallypoint logs {record.id} --store {_cell(store)}` |",
            f"| status | `rallypoint status {record.id} --store {_cell(store)}` |",
        ]
        await self._write("stage", MarkdownArtifact(markdown="\n".join(lines)), f"the stage {self._name}")
        run = ("task-run", self._run.task_run) if self._run.task_run else ("flow-run", self._run.flow_run)
        if run[1] and (page := url_for(run[0], obj_id=run[1])):  # None where no address of the UI is known
            link = LinkArtifact(link=f"{page}?tab=Logs", link_text="logs")
            await self._write("link-logs", link, f"{self._title}: the run's log, with the job's lines")
        if started.attempt.outcome is None:
            await self._write("progress", ProgressArtifact(progress=0.0), f"{self._title}: started")

    async def update(self, update: Update) -> None:
        """Take in what is new; each artifact is written at most as often as its pace says."""
        self._view = update.view
        await self._refresh(now=False)

    async def ended(self) -> None:
        """Show how things stood at the end of a success."""
        if self._view is not None:
            await self._refresh(now=True)
            await self._write("progress", ProgressArtifact(progress=100.0), f"{self._title}: succeeded {self._line()}")

    async def failed(self, report: FailureReport) -> None:
        """Show the failure report."""
        if self._view is not None:
            await self._refresh(now=True)
            await self._write("progress", ProgressArtifact(progress=self._percent()), f"{self._title}: {report.title}")
        text = report.render()
        fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
        body = f"## {_plain(self._title)}: {_plain(report.title)}\n\n{fence}text\n{text}\n{fence}\n"
        await self._write("failure", MarkdownArtifact(markdown=body), one_line(report.headline)[:500])

    async def _refresh(self, *, now: bool) -> None:
        view = self._view
        if view is None:
            return
        progress = (self._percent(), f"{self._title}: {self._line() or 'running'}")
        if self._is_due("progress", progress, now=now):
            await self._write("progress", ProgressArtifact(progress=progress[0]), progress[1])
        ranks = _ranks(view)
        if ranks and self._is_due("ranks", ranks, now=now):
            await self._write("ranks", TableArtifact(table=ranks), f"{self._title}: its processes")
        if self._history and view.metrics and self._is_due("metrics", (view.step, dict(view.metrics)), now=now):
            await self._draw(self._history)
        for name, url in view.links.items():
            if self._is_due(f"link-{_slug(name)}", url, now=True):
                link = LinkArtifact(link=url, link_text=one_line(name))
                await self._write(f"link-{_slug(name)}", link, f"{self._title}: {one_line(name)}")

    async def _draw(self, history: History) -> None:
        try:
            await history.update(self._numbers)
        except StoreError as error:
            self._log.debug("the metrics of %s cannot be read: %s", self._title, error)
            return
        curves = sorted(history.metrics.sorted(), key=lambda curve: curve.name != "loss")[:_PANELS]
        if curves:
            picture = data_uri(draw(curves, one_line(self._title)))
            names = ", ".join(curve.name for curve in curves)
            await self._write("metrics", ImageArtifact(image_url=picture), f"{self._title}: {names}")

    async def _is_of(self, number: int, generation: int) -> bool:
        entry = await self._engine.ledger.read(number)
        return entry is not None and entry.record.generation == generation

    def _is_due(self, what: str, value: Any, *, now: bool) -> bool:
        """Return whether a value is new and it is time to show it, and then take it as shown."""
        when, shown = self._shown.get(what, (0.0, None))
        if shown == value or (not now and time.monotonic() - when < _PACE.get(what, 0.0)):
            return False
        self._shown[what] = (time.monotonic(), value)
        return True

    def _percent(self) -> float:
        view = self._view
        if view is None or not view.total or view.step is None:
            return 0.0
        return round(min(100.0, max(0.0, 100.0 * view.step / view.total)), 1)

    def _line(self) -> str:
        return one_line(self._view.progress_line)[:500] if self._view else ""

    async def _write(self, what: str, artifact: Artifact, description: str) -> None:
        """Create an artifact, or update the one that this try has created."""
        if self._run.flow_run is None and self._run.task_run is None:
            return
        artifact.key, artifact.description = f"{self._prefix}-{what}", printable(description)
        try:
            if what in self._artifacts:
                update = ArtifactUpdate(description=artifact.description, data=await artifact.aformat())
                await self._client.update_artifact(self._artifacts[what], update)
            else:
                self._artifacts[what] = (await artifact.acreate(self._client)).id
        except UNREACHABLE as error:
            self._log.debug("the artifact %s could not be written: %s", artifact.key, error)


def _ranks(view: AttemptView) -> list[dict[str, Any]]:
    rows = sorted(view.processes.values(), key=lambda p: (p.rank is not None, -p.restart, p.rank or 0, p.name))
    return [
        {
            "process": printable(process.name),
            "rank": "" if process.rank is None else f"{process.rank} of {process.world_size}",
            "host": printable(process.host),
            "pid": process.pid,
            "restart": process.restart if process.rank is not None else "",
            "exit code": "running" if process.exit_code is None else process.exit_code,
        }
        for process in rows[:_MAX_ROWS]
    ]


def _slug(text: str) -> str:
    """Return text as Prefect takes it for a key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_MAX_KEY].strip("-") or "stage"


def _plain(text: str) -> str:
    """Return text in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", one_line(text))


def _cell(text: str) -> str:
    return one_line(text).replace("`", "'").replace("|", "/")
