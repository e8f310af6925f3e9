"""Runs a job as a stage, with the engine that the orchestrators use, and shows it while it runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rallypoint.cli.terminal import Lines, messages, text
from rallypoint.stages.engine import raise_for
from rallypoint.stages.rule import Action, changed_parts

if TYPE_CHECKING:
    from rallypoint.spec.job import Job
    from rallypoint.stages.engine import Engine, Request, Started, Update
    from rallypoint.stages.events import Event
    from rallypoint.stages.outcome import Outcome

INTERVAL = timedelta(seconds=0.3)


async def run_stage(engine: Engine, job: Job, request: Request) -> Any:
    """Start a stage, or go on with it, and wait for its end.

    An interrupt (Ctrl-C) stops the attempt and waits until nothing of it is left.

    Args:
        engine: The stage's engine.
        job: The job.
        request: What is wanted; its owner is this process.

    Returns:
        What the job's entry returned.

    Raises:
        StageFailedError: It did not succeed.
        InterruptedError: It was interrupted, and no attempt had been started.
    """
    with _Reporter(engine.key.text) as reporter:
        try:
            outcome = await _follow(engine, job, request, reporter)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None:
                task.uncancel()  # the interrupt is answered here, so that what follows may wait
            outcome = await _interrupted(engine, request, reporter)
        reporter.end()
    raise_for(outcome)
    return outcome.result


async def _follow(engine: Engine, job: Job, request: Request, reporter: _Reporter) -> Outcome:
    started = await engine.start(job, request)
    reporter.announce(started)
    if started.decision.action is Action.RETURN:
        changed = changed_parts(started.attempt.record.fingerprint, job.fingerprint())
        if changed:
            reporter.say(f"the work has changed since: {', '.join(changed)}", "yellow")
        reporter.say("give --rerun to run it again")
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        reporter.show(update)
        if update.outcome is not None:
            return update.outcome
    msg = f"{started.attempt.record.id} was watched to no end"  # pragma: no cover - the last update has the outcome
    raise RuntimeError(msg)


async def _interrupted(engine: Engine, request: Request, reporter: _Reporter) -> Outcome:
    last = await engine.ledger.last()
    if last is None or last.owner != request.owner:
        msg = "nothing of this run is running"
        raise InterruptedError(msg)
    reporter.say(
        "interrupted: stopping the job and waiting for its end (Ctrl-C again leaves it to end alone)", "yellow"
    )
    await engine.cancel(last.record.number, owner=request.owner, why="interrupted by Ctrl-C in rallypoint run")
    outcome = (await engine.read(last.record.number)).outcome
    if outcome is None:
        msg = f"another try took {last.record.id} over: it was left alone"
        raise InterruptedError(msg)
    return outcome


class _Reporter:
    """Writes what is new about an attempt to standard error, below it a bar if that is a terminal."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._console = messages()
        self._lines = Lines()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str, style: str = "") -> None:
        self._console.print(text(line, style), soft_wrap=True)

    def announce(self, started: Started) -> None:
        record = started.attempt.record
        self.say(f"stage {self._stage}: {started.decision.why}", "bold")
        self.say(f"attempt {record.id} (number {record.number}, generation {record.generation}) on {record.launcher}")

    def show(self, update: Update) -> None:
        for event in update.events:
            self._event(event)
        for chunk in update.output:
            for line in self._lines.take(chunk):
                self._output(chunk.process, line)
        view = update.view
        if any(event.kind in ("progress", "metrics") for event in update.events):
            self._bar.update(
                self._task,
                description=f"{self._stage} {text(view.progress_line).plain}",
                total=view.total,
                completed=view.step or 0,
            )
            if self._bar.disable:
                self.say(f"progress: {view.progress_line}")

    def end(self) -> None:
        for process, line in self._lines.left():
            self._output(process, line)

    def _output(self, process: str, line: str) -> None:
        self._console.print(text(f"[{process}] ", "dim") + text(line), soft_wrap=True)

    def _event(self, event: Event) -> None:
        data = event.data
        if event.kind == "opened":
            world = f", rank {data.get('rank')} of {data.get('world_size')}" if data.get("kind") == "rank" else ""
            self.say(f"{event.process} opened on {data.get('host')} (pid {data.get('pid')}{world})")
        elif event.kind == "artifact":
            self.say(f"{data.get('kind')} saved: {data.get('uri')}")
        elif event.kind == "link":
            self.say(f"{data.get('name')}: {data.get('url')}", "cyan")
        elif event.kind == "rejected":
            self.say(str(data.get("message")), "yellow")
        elif event.kind == "failed" and not data.get("secondary"):
            who = f"rank {data['rank']}" if "rank" in data else event.process
            what = ": ".join(str(data[key]) for key in ("signal", "exception", "message") if data.get(key))
            self.say(f"{who} failed: {what}", "red")
