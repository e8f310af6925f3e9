"""One try of a stage: starts it, reattaches to it or returns its result, and waits, with an eye on Prefect's states."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.exceptions import MissingContextError, TerminationSignal
from prefect.logging import get_logger, get_run_logger

from rallypoint.errors import RallypointError, StageCancelledError, StageFailedError
from rallypoint.launchers.base import Cursor
from rallypoint.prefect.assets import announce_assets
from rallypoint.prefect.guard import GRACE, WHY, Ward, guarded, is_remote
from rallypoint.prefect.places import find_place
from rallypoint.prefect.runs import UNREACHABLE, Run, StageLeftError, Verdict, is_given_up, look, this_run
from rallypoint.prefect.secrets import resolve_secrets
from rallypoint.prefect.showing import Showing
from rallypoint.stages.attempt import Attempt, Request
from rallypoint.stages.claims import claim_key
from rallypoint.stages.news import Narrator
from rallypoint.stages.outcome import raise_for
from rallypoint.stages.rule import Action, Intent, State, changed_parts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from prefect.client.orchestration import PrefectClient

    from rallypoint.prefect.options import StageOptions
    from rallypoint.spec.job import Job
    from rallypoint.stages.attempt import Started
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.news import News
    from rallypoint.stages.outcome import Outcome
    from rallypoint.stages.place import Place

LOOK = 2.0  # seconds between looks at Prefect's states
PATIENCE = 900.0  # seconds that the store or the launcher may be out of reach
_PAUSE = 5.0  # seconds before the next look then
_MAX_RECORD = 20_000  # characters of one log record; Prefect Cloud takes 25,000
_ADVICE = (
    'name them apart: train.with_options(name="train-oslo"), stage_name="train-{city}", run_stage(job, name="…"); '
    "or call .map(), where the inputs tell them apart and equal ones need a further argument that differs"
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a task or `run_stage` wants to run.

    Args:
        job: The job; its secrets are in `secrets`.
        name: The stage's name.
        inputs: A digest of the inputs, where the name alone stands for several stages.
        options: The store, the launcher and the like.
        secrets: References to the job's secrets.
        assets: The keys of the assets that a success makes.
    """

    job: Job
    name: str
    options: StageOptions
    inputs: str = ""
    secrets: dict[str, Any] = field(default_factory=dict)
    assets: tuple[Any, ...] = ()


class Try:
    """One try of a stage.

    Args:
        wish: What is to run.
    """

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._why = ""
        self._interrupted_by: BaseException | None = None
        self._is_interrupted = asyncio.Event()
        self._ready: Any = None  # the address object of a service
        self.log = _logger()

    def interrupt(self, reason: BaseException | None) -> None:
        """Take note that whoever waits was interrupted; `run` then decides what becomes of the job.

        Args:
            reason: What interrupted it; None if the event loop that waited is ending.
        """
        self._interrupted_by = reason
        self._is_interrupted.set()

    async def run(self) -> Any:
        """Run the stage and return its result.

        Raises:
            StageFailedError: It did not succeed.
            DuplicateStageError: Another stage of this run has the same name.
            StageLeftError: The flow run has crashed meanwhile; the job goes on.
        """
        async with get_client() as client:
            run = await this_run(client)
            return await self._run(client, run)

    async def _run(self, client: PrefectClient, run: Run) -> Any:
        wish = self._wish
        place = await find_place(wish.options.store, wish.options.launcher)
        engine = place.engine(run.key(wish.name, wish.inputs))
        for execution, step in run.claims():
            await claim_key(engine.store, engine.key, run=execution, step=step, advice=_ADVICE)
        job = wish.job
        if wish.secrets:
            job = replace(job, secrets={**job.secrets, **await resolve_secrets(wish.secrets)})
        request = await self._request(engine, job, run)
        showing = Showing(client, engine, wish.name, wish.inputs, run, self.log)
        narrator = Narrator()
        try:
            started = await engine.start(job, request)
        except StageFailedError as error:
            await showing.failed(error.report)
            self.log.error("%s", error.report.render())  # noqa: TRY400 - the report has the job's traceback
            raise
        self._tell(narrator.opening(started, engine.key.text))
        self._warn_if_changed(started, job)
        await showing.started(started)
        attempt = started.attempt
        if attempt.outcome is None:
            with self._guarded(run, place, engine, attempt, request):
                attempt = await self._wait(client, run, engine, attempt, request, narrator, showing)
        return await self._finish(engine, attempt, showing, client)

    async def _request(self, engine: Engine, job: Job, run: Run) -> Request:
        options = self._wish.options
        intent = Intent.RERUN if options.rerun else Intent.CONTINUE
        if run.root is None:
            last = await engine.ledger.last()
            ended = last is not None and last.outcome is not None and last.outcome.state is State.SUCCEEDED
            if last is not None and ended and changed_parts(last.record.fingerprint, job.fingerprint()):
                intent = Intent.RERUN  # outside of a flow no retry asks for the old result: other work is new work
        return Request(owner=run.owner(), intent=intent, resume=options.resume)

    def _guarded(
        self, run: Run, place: Place, engine: Engine, attempt: Attempt, request: Request
    ) -> AbstractContextManager[None]:
        """Return what looks after the job if a task runner ends this process."""
        if run.flow_run is None or run.root is None or not is_remote():
            return nullcontext()
        number, owner = attempt.record.number, request.owner
        return guarded(
            Ward(flow_run=run.flow_run, root=run.root, place=place, key=engine.key, number=number, owner=owner)
        )

    # Waiting -------------------------------------------------------------------------------------------------------

    async def _wait(  # noqa: PLR0913, PLR0917 - what this try has opened
        self,
        client: PrefectClient,
        run: Run,
        engine: Engine,
        attempt: Attempt,
        request: Request,
        narrator: Narrator,
        showing: Showing,
    ) -> Attempt:
        watching = asyncio.create_task(self._watch(engine, attempt, narrator, showing))
        looking = asyncio.create_task(self._look(client, run))
        try:
            await asyncio.wait({watching, looking}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                await watching
                return await engine.read(attempt.record.number)
            verdict = await looking
        finally:
            for task in (watching, looking):
                task.cancel()
            await asyncio.gather(watching, looking, return_exceptions=True)
        return await self._obey(verdict, engine, attempt, request)

    async def _watch(self, engine: Engine, attempt: Attempt, narrator: Narrator, showing: Showing) -> None:
        interval = timedelta(seconds=self._wish.options.poll_interval)
        offsets: dict[str, int] = {}
        out_of_reach: float | None = None
        while True:
            try:
                async for update in engine.watch(attempt, interval=interval, cursor=Cursor(offsets)):
                    out_of_reach = None
                    offsets |= {chunk.process: chunk.offset for chunk in update.output}
                    self._tell(narrator.tell(update))
                    await showing.update(update)
                    if update.ready is not None:
                        self._ready = dict(update.ready)
            except (RallypointError, OSError) as error:
                out_of_reach = out_of_reach or time.monotonic()
                if time.monotonic() - out_of_reach > PATIENCE:
                    raise
                self.log.warning("the store or the launcher is out of reach, looking again: %s", error)
                await asyncio.sleep(_PAUSE)
            else:
                return

    async def _look(self, client: PrefectClient, run: Run) -> Verdict:
        """Return as soon as something says that this try is not to be waited for any more."""
        silent_since: float | None = None
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_interrupted.wait(), LOOK)
            interrupted = self._is_interrupted.is_set()
            try:
                interrupted = interrupted or await is_given_up(client, run)
                verdict = await asyncio.wait_for(look(client, run), 5 if interrupted else 30)
            except (*UNREACHABLE, TimeoutError) as error:
                verdict = Verdict.GO_ON
                if silent_since is None:
                    silent_since = time.monotonic()
                    self.log.warning("Prefect's server does not say how the run stands (%s): the job goes on", error)
            else:
                silent_since = None
            if interrupted:
                return self._of_interruption(verdict, run)
            if verdict is not Verdict.GO_ON:
                self._why = WHY[verdict]
                return verdict

    def _of_interruption(self, verdict: Verdict, run: Run) -> Verdict:
        """Return what becomes of the job whose waiter was interrupted.

        A signal of a cancellation looks like one of an eviction; only the run's state, `verdict`, tells them apart.
        """
        reason = self._interrupted_by
        if verdict in (Verdict.STOP, Verdict.TIMED_OUT):
            self._why = WHY[verdict]
            return verdict
        if reason is None or isinstance(reason, TerminationSignal | SystemExit):
            return Verdict.LEAVE
        if isinstance(reason, KeyboardInterrupt):
            self._why = "interrupted by Ctrl-C, and the flow run has no deployment with which it could be retried"
            return Verdict.LEAVE if run.deployed else Verdict.STOP
        # An alarm of Prefect's timeouts, or the flow's own code gave up waiting.
        self._why = "the time given to it (timeout_seconds) is over, or the flow's code stopped waiting"
        return Verdict.TIMED_OUT

    async def _obey(self, verdict: Verdict, engine: Engine, attempt: Attempt, request: Request) -> Attempt:
        number, job = attempt.record.number, attempt.record.id
        if verdict is Verdict.LEAVE:
            self.log.warning("%s goes on without this process: a retry of the flow run reattaches to it", job)
            msg = f"the flow run ended under {job}, which goes on: a retry of the flow run reattaches to it"
            raise StageLeftError(msg)
        self.log.warning("stopping %s: %s", job, self._why)
        if not await engine.cancel(number, owner=request.owner, why=self._why, grace=GRACE):
            msg = f"another try has taken {job} over: it was left alone"
            raise StageLeftError(msg)
        self.log.warning("%s was stopped: %s; a retry continues from its last checkpoint", job, self._why)
        stopped = await engine.read(number)
        if verdict is Verdict.TIMED_OUT and stopped.outcome and stopped.outcome.state is State.CANCELLED:
            msg = f"timeout: {job} was stopped, because {self._why}; a retry continues from its last checkpoint"
            raise TimeoutError(msg)
        return stopped

    # The end -------------------------------------------------------------------------------------------------------

    async def _finish(self, engine: Engine, attempt: Attempt, showing: Showing, client: PrefectClient) -> Any:
        outcome = attempt.outcome
        if outcome is None and self._ready is not None:
            self.log.info("the service %s is ready", attempt.record.id)
            return self._ready
        if outcome is None:
            msg = f"{attempt.record.id} has ended without an outcome in the ledger; retry to look again"
            raise RuntimeError(msg)
        try:
            raise_for(outcome)
        except StageFailedError as error:
            await showing.failed(error.report)
            level = logging.WARNING if isinstance(error, StageCancelledError) else logging.ERROR
            self.log.log(level, "%s", error.report.render())
            raise
        await showing.ended()
        if self._wish.assets:
            await self._announce(engine, attempt, outcome, client)
        self.log.info("attempt %s succeeded", attempt.record.id)
        return outcome.result

    async def _announce(self, engine: Engine, attempt: Attempt, outcome: Outcome, client: PrefectClient) -> None:
        try:
            await announce_assets(client, engine, attempt, outcome, self._wish.assets, self.log)
        except UNREACHABLE as error:
            # The stage has succeeded; a retry of the flow run announces what is not announced yet.
            self.log.warning("the assets of %s could not be announced: %s", attempt.record.id, error)

    def _tell(self, news: Iterable[News]) -> None:
        """Write lines to the run's log, neighbours of one level as one record: Prefect keeps a row for each."""
        level, lines, size = logging.INFO, list[str](), 0
        for line in news:
            text = str(line)
            if lines and (line.level != level or size + len(text) > _MAX_RECORD):
                self.log.log(level, "%s", "\n".join(lines))
                lines, size = [], 0
            level = line.level
            lines.append(text)
            size += len(text) + 1
        if lines:
            self.log.log(level, "%s", "\n".join(lines))

    def _warn_if_changed(self, started: Started, job: Job) -> None:
        if started.decision.action is not Action.RETURN:
            return
        changed = changed_parts(started.attempt.record.fingerprint, job.fingerprint())
        if changed:
            again = f"rallypoint forget {started.attempt.record.id.rpartition('-a')[0]}"
            self.log.warning(
                "the work has changed since the stage succeeded (%s), and its old result is returned; '%s' has the "
                "next retry run it again",
                ", ".join(changed), again,
            )  # fmt: skip


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("rallypoint")
