"""Runs a job as a stage, with the engine that the orchestrators use, and shows it while it runs."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rallypoint.cli.terminal import messages, text
from rallypoint.spec.service_job import ServiceJob
from rallypoint.stages.news import Narrator
from rallypoint.stages.outcome import raise_for
from rallypoint.stages.rule import Action, State, changed_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rallypoint.spec.job import Job
    from rallypoint.stages.attempt import Request, Started, Update
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.outcome import Outcome

INTERVAL = timedelta(seconds=0.3)


async def run_stage(
    engine: Engine, job: Job, request: Request, *, on_ready: Callable[[Mapping[str, Any]], None] | None = None
) -> Any:
    """Start a stage, or go on with it, and wait for its end.

    An interrupt (Ctrl-C) stops the attempt and waits until nothing of it is left. A service is held, its lease renewed,
    until it is stopped in that way or another one.

    Args:
        engine: The stage's engine.
        job: The job.
        request: What is wanted; its owner is this process.
        on_ready: Is called with the address object of a service when it is ready.

    Returns:
        What the job's entry returned; None for a service that was stopped.

    Raises:
        StageFailedError: It did not succeed.
        InterruptedError: It was interrupted, and no attempt had been started.
    """
    with _Reporter(engine.key.text) as reporter:
        try:
            outcome = await _follow(engine, job, request, reporter, on_ready)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None:
                task.uncancel()  # the interrupt is answered here, so that what follows may wait
            outcome = await _interrupted(engine, request, reporter)
        if isinstance(job, ServiceJob) and outcome.state is State.CANCELLED:
            reporter.say(f"{engine.key.text} is stopped")
            return None
    raise_for(outcome)
    return outcome.result


async def _follow(
    engine: Engine,
    job: Job,
    request: Request,
    reporter: _Reporter,
    on_ready: Callable[[Mapping[str, Any]], None] | None,
) -> Outcome:
    started = await engine.start(job, request)
    reporter.announce(started)
    if started.decision.action is Action.RETURN:
        changed = changed_parts(started.attempt.record.fingerprint, job.fingerprint())
        if changed:
            reporter.say(f"the work has changed since: {', '.join(changed)}", "yellow")
        reporter.say("give --rerun to run it again")
    async for update in engine.watch(started.attempt, interval=INTERVAL, hold=True):
        reporter.show(update)
        if update.ready is not None:
            if on_ready is not None:
                on_ready(update.ready)
            reporter.say(f"held until Ctrl-C here, or rallypoint cancel {engine.key.text} anywhere")
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
        self._narrator = Narrator()
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
        for news in self._narrator.opening(started, self._stage):
            self.say(str(news), "bold")

    def show(self, update: Update) -> None:
        for news in self._narrator.tell(update):
            if news.process:
                self._console.print(text(f"[{news.process}] ", "dim") + text(news.text), soft_wrap=True)
            elif self._bar.disable or not news.text.startswith("progress:"):  # the bar shows it
                self.say(news.text, "red" if news.level > logging.INFO else "")
        view = update.view
        if any(event.kind in ("progress", "metrics") for event in update.events):
            self._bar.update(
                self._task,
                description=f"{self._stage} {text(view.progress_line).plain}",
                total=view.total,
                completed=view.step or 0,
            )
