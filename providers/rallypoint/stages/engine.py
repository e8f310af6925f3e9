"""Starts, watches, concludes and cancels attempts of a stage; the one way, whatever the orchestrator.

The order of writes is what makes "never twice" true: the intent is in the ledger before the launch, the attempt's id
comes from the stage, and every launcher finds a gang by that id. A process that dies at any point leaves zero or one
running gang, and the next call of `Engine.start` finds it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, Launcher, Phase, Status, Waitable
from rallypoint.launchers.registry import launcher_of, scoped
from rallypoint.spec.failure import FailureRule
from rallypoint.stages.attempt import Attempt, Request, Snapshot, Started, Update
from rallypoint.stages.events import EventReader
from rallypoint.stages.failures import LAST_LINES, before_traceback, launch_report
from rallypoint.stages.leases import LeaseKeeper, address_of, kept_by
from rallypoint.stages.ledger import Entry, Ledger, Record
from rallypoint.stages.logs import AttemptLogs
from rallypoint.stages.outcome import Outcome, judge, raise_for, with_last_lines
from rallypoint.stages.pace import pause, turn
from rallypoint.stages.preparation import as_stage, intent_of, next_record
from rallypoint.stages.rule import Action, State, changed_parts, decide
from rallypoint.stages.text import printable
from rallypoint.stages.view import AttemptView
from rallypoint.worker import faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rallypoint.spec.gang import Gang
    from rallypoint.spec.job import Job
    from rallypoint.stages.failures import FailureReport
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.store import Store

log = logging.getLogger(__name__)

CANCEL_GRACE = timedelta(seconds=20)
# Seconds for which a launcher's word that a gang seems to run still is enough: an id of a process may be used again.
_BELIEVED = 10.0
_TAIL = 65_536  # bytes read for the last lines
_MAX_BEHIND = 1 << 20  # bytes of a log that a watcher catches up on; of more, nobody reads every line as it comes
_RACES = 20  # how often another try may claim the next number before this one gives up


class Engine:
    """Runs one stage.

    Args:
        store: The store.
        key: The stage's key.
        launcher: Where new attempts run; an old one is looked for on the launcher that it was started with.
    """

    def __init__(self, store: Store, key: StageKey, launcher: Launcher | None = None) -> None:
        self.store = store
        self.ledger = Ledger(store, key)
        self.key = key
        self._launcher = scoped(launcher, store.uri) if launcher else None

    async def start(self, job: Job, request: Request) -> Started:
        """Launch the stage, reattach to it, or return what it returned before: whatever the retry rule says.

        Raises:
            InvalidEntryError: The user's function cannot travel; nothing was recorded.
            StageUserError: The launcher cannot run this gang, now or later.
            StageFailedError: It could not be launched this time.
        """
        gang = job.plan()
        fingerprint = job.fingerprint()
        for _ in range(_RACES):
            last = await self.ledger.last()
            state, last = await self._state(last)
            changed = changed_parts(last.record.fingerprint, fingerprint) if last else ()
            intent = intent_of(last, request, service=gang.service, changed=changed)
            decision = decide(state, intent, changed=changed, resume=request.resume, service=gang.service)
            log.debug("stage %s: %s", self.key.text, decision.why)
            if last and decision.action is Action.RETURN:
                return Started(attempt=_attempt(last), decision=decision)
            if last and decision.action in (Action.REATTACH, Action.FINISH_LAUNCH):
                if not await self.ledger.own(last.record.number, request.owner):
                    continue  # its end was asked for in this moment
                if decision.action is Action.REATTACH:
                    return Started(attempt=_attempt(last), decision=decision)
                attempt = await self._launch(gang, job, last.record, owner=request.owner)
                return Started(attempt=attempt, decision=decision)
            if last and decision.stop_first:
                outcome = await self._stop(last, why="a newer try took its place")
                if outcome and outcome.state is State.SUCCEEDED:
                    continue  # it was faster: what follows a success is another decision
            uri = self._own_launcher().uri
            record = next_record(self.ledger, last, job, gang, request=request, decision=decision, launcher=uri)
            faults.reach("before-intent")
            if await self.ledger.claim(record):
                faults.reach("after-intent")
                attempt = await self._launch(gang, job, record, owner=request.owner)
                return Started(attempt=attempt, decision=decision)
        msg = f"{_RACES} other tries of {self.key.text} started attempts at the same time: retry later"
        raise LaunchError(msg)

    async def watch(
        self, attempt: Attempt, *, interval: timedelta, cursor: Cursor | None = None, hold: bool = False
    ) -> AsyncIterator[Update]:
        """Yield what is new about an attempt until it has ended, or is a service that is ready.

        The last update says which: it has the outcome, or the address. Meanwhile the leases of the services that the
        attempt uses are renewed, and its own if it is one.

        Args:
            attempt: The attempt.
            interval: The longest wait between two looks; a young attempt is looked at more often.
            cursor: Where to go on in the logs.
            hold: Whether to go on with a service that is ready, and renew its lease, until it has ended.
        """
        view, record = AttemptView(), attempt.record
        if attempt.outcome is not None or attempt.handle is None:
            yield Update(view=view, outcome=attempt.outcome)
            return
        view.links |= attempt.handle.links
        launcher = self._launcher_of(attempt.handle.launcher)
        logs = self._logs_of(record.number, attempt.handle)
        reader = EventReader(self.store, self.ledger.events_prefix(record.number))
        keeper = LeaseKeeper(self.store, kept_by(self.store, self.key, record))
        offsets, told = dict(cursor.offsets) if cursor else {}, False
        status, asked, runs = Status(Phase.RUNNING), 0.0, False
        while True:
            await keeper.renew()
            # The status comes first: what a process wrote before its end is then in the reads that follow.
            async with turn():
                if not runs or time.monotonic() - asked > _BELIEVED:
                    status, asked = await launcher.poll(attempt.handle), time.monotonic()
                events = await reader.read()
                view.apply(events)
                wanted = {name: offsets.get(name, 0) for name in view.shown_logs()}
                where = Cursor(wanted, others=None, max_behind=_MAX_BEHIND)
                output = await logs.new(where, ended=status.phase is not Phase.RUNNING)
            offsets |= {chunk.process: chunk.offset for chunk in output}
            if events or output:
                yield Update(view=view, events=events, output=output, logs=self._logs_command(record))
            elif status.phase is not Phase.RUNNING:
                yield Update(view=view, outcome=await self._conclude(record, attempt.handle, status, view))
                return
            if status.phase is Phase.RUNNING:
                if record.service and view.ready is not None and not told:
                    told = True
                    yield Update(view=view, ready=address_of(self.store, self.key, record, view))
                    if not hold:
                        return
                runs = await _rest(launcher, attempt.handle, pause(interval.total_seconds(), record.created))

    async def read(self, number: int) -> Attempt:
        """Return an attempt of this stage as the ledger holds it.

        Raises:
            LookupError: There is no attempt of that number.
        """
        return _attempt(await self._entry(number))

    async def owned(self, owner: str) -> Attempt | None:
        """Return the newest attempt, if it is a try's own; None if it is another's, or there is none."""
        last = await self.ledger.last()
        return _attempt(last) if last and last.owner == owner else None

    async def cancel(self, number: int, *, owner: str | None, why: str, grace: timedelta = CANCEL_GRACE) -> bool:
        """Stop an attempt, if `owner` still owns it.

        Args:
            number: The attempt's number.
            owner: Who asks; None is a person, who may stop any attempt.
            why: One line for the record.
            grace: How long its processes have for their own end.

        Returns:
            Whether the attempt is stopped now; False if another try owns it.
        """
        entry = await self.ledger.read(number)
        if entry is None:
            return False
        if entry.outcome is not None:
            return owner is None or entry.owner == owner
        return await self._stop(entry, owner=owner, grace=grace, why=why) is not None

    async def inspect(self, number: int) -> Snapshot:
        """Return an attempt as it stands, changing nothing.

        Raises:
            LookupError: There is no attempt of that number.
        """
        entry = await self._entry(number)
        handle, status = entry.handle, None
        if entry.outcome is None:
            launcher = self._launcher_of(entry.record.launcher)
            handle = handle or await launcher.find(entry.record.id)
            status = await launcher.poll(handle) if handle else None
        view = await self._read_all(entry.record)
        view.links = {**(handle.links if handle else {}), **view.links}
        state = State.PENDING if status is None else State.LIVE
        if handle and status and status.phase is not Phase.RUNNING:
            # It has ended and nobody has recorded how: shown is what the next try will record.
            entry = replace(entry, outcome=await self._outcome(entry.record, handle, status, view))
        if entry.outcome:  # of an old attempt the events may have been removed
            view.metrics = view.metrics or dict(entry.outcome.metrics)
            view.artifacts = view.artifacts or [dict(artifact) for artifact in entry.outcome.artifacts]
        if entry.outcome or not entry.record.service:
            return Snapshot(entry=entry, view=view, state=entry.outcome.state if entry.outcome else state)
        ready = address_of(self.store, self.key, entry.record, view) if view.ready else None
        return Snapshot(entry=entry, view=view, state=state, ready=ready, renewed=await self.ledger.renewed(number))

    async def tail(self, number: int, process: str, size: int) -> str:
        """Return the end of one process's log.

        Args:
            number: The attempt's number.
            process: The log's name, such as ``rank-0.r0``.
            size: Bytes at the most.
        """
        entry = await self._entry(number)
        if entry.handle is None:
            return ""
        chunks = await self._logs_of(number, entry.handle).new(Cursor({process: -size}, others=None), ended=True)
        return b"".join(chunk.data for chunk in chunks).decode(errors="replace")

    async def _entry(self, number: int) -> Entry:
        entry = await self.ledger.read(number)
        if entry is None:
            msg = f"{self.key.text} has no attempt {number} in {self.store.uri}"
            raise LookupError(msg)
        return entry

    # How it is done ------------------------------------------------------------------------------------------------

    async def _state(self, last: Entry | None) -> tuple[State, Entry | None]:
        if last is None:
            return State.NONE, None
        if last.outcome is not None:
            return last.outcome.state, last
        launcher = self._launcher_of(last.record.launcher)
        handle = last.handle or await launcher.find(last.record.id)
        if last.cancel_asked is not None:
            handle = handle or Handle(launcher.uri, last.record.id)
            await launcher.cancel(handle, CANCEL_GRACE)  # whoever asked may have died before it had ended
        if handle is None and launcher.uri != self._own_launcher().uri:
            # A record says where to look and what to stop; only the launcher that this try was given runs anything.
            outcome = await self._stop(last, why="it was not launched before the launcher was changed")
            return (outcome.state, replace(last, outcome=outcome)) if outcome else (State.PENDING, last)
        if handle is None:
            return State.PENDING, last
        await self.ledger.launched(last.record.number, handle)
        status = await launcher.poll(handle)
        if status.phase is Phase.RUNNING:
            return State.LIVE, replace(last, handle=handle)
        view = await self._read_all(last.record)
        outcome = await self._conclude(last.record, handle, status, view)
        return outcome.state, replace(last, handle=handle, outcome=outcome)

    async def _launch(self, gang: Gang, job: Job, record: Record, *, owner: str) -> Attempt:
        launcher = self._own_launcher()
        try:
            handle = await launcher.launch(as_stage(self.ledger, gang, job, record), record.id)
        except LaunchError as error:
            return await self._launch_failed(record, error, owner=owner)
        faults.reach("after-launch")
        await self.ledger.launched(record.number, handle)
        faults.reach("after-handle")
        entry = await self.ledger.read(record.number)
        if entry and entry.outcome:  # a try that came later has given this one up
            await launcher.cancel(handle, CANCEL_GRACE)
            return Attempt(record=record, handle=handle, outcome=entry.outcome)
        return Attempt(record=record, handle=handle)

    async def _launch_failed(self, record: Record, error: LaunchError, *, owner: str) -> Attempt:
        """Record that an attempt could not be launched; return it if it ran to its end all the same.

        Its gang may be there, or come late, and what is recorded as ended must never run.
        """
        launcher = self._launcher_of(record.launcher)
        fatal = isinstance(error, PreflightError)
        if not await self.ledger.ask_cancel(record.number, f"its launch failed: {error}", owner=owner):
            raise error  # another try has taken it over, and may have had more luck
        handle = None
        try:
            await launcher.cancel(Handle(launcher.uri, record.id), CANCEL_GRACE)
            handle = await launcher.find(record.id)
            status = await launcher.poll(handle) if handle else None
        except (LaunchError, OSError):
            if not fatal:
                raise error from None  # the next try ends it first
            status = None  # the place cannot even be written to: nothing starts there
        outcome = Outcome(state=State.FAILED, failure=launch_report(error, attempt=record.id, fatal=fatal))
        if handle and status:
            seen = await self._outcome(record, handle, status, await self._read_all(record))
            outcome = seen if seen.state is State.SUCCEEDED else outcome
        outcome = await self.ledger.conclude(record.number, outcome)
        raise_for(outcome)
        return Attempt(record=record, handle=handle, outcome=outcome)

    async def _stop(
        self, entry: Entry, *, why: str, owner: str | None = None, grace: timedelta = CANCEL_GRACE
    ) -> Outcome | None:
        """End an attempt and return how it ended; None if it is not `owner`'s to end."""
        if not await self.ledger.ask_cancel(entry.record.number, why, owner=owner):
            return None
        launcher = self._launcher_of(entry.record.launcher)
        # An attempt whose launch is not known is forbidden to start: its submitter may only be slow.
        handle = entry.handle or await launcher.find(entry.record.id) or Handle(launcher.uri, entry.record.id)
        await launcher.cancel(handle, grace)
        status = await launcher.poll(handle)
        return await self._conclude(entry.record, handle, status, await self._read_all(entry.record))

    async def _conclude(self, record: Record, handle: Handle, status: Status, view: AttemptView) -> Outcome:
        outcome = await self._outcome(record, handle, status, view)
        faults.reach("after-end")
        outcome = await self.ledger.conclude(record.number, outcome)
        faults.reach("after-outcome")
        return outcome

    async def _outcome(self, record: Record, handle: Handle, status: Status, view: AttemptView) -> Outcome:
        entry = await self.ledger.read(record.number)
        if entry and entry.cancel_asked:  # whoever sees the end first, the record says why it was stopped
            status = replace(status, message=entry.cancel_asked)
        rules = tuple(FailureRule.from_json(rule) for rule in record.failure_rules)
        logs = self._logs_command(record)
        outcome = judge(status, view, attempt=record.id, logs=logs, rules=rules, service=record.service)
        if outcome.failure and outcome.failure.process:
            lines = await self._last_lines(record, handle, view, outcome.failure)
            outcome = with_last_lines(outcome, lines)
        return outcome

    def _logs_of(self, number: int, handle: Handle) -> AttemptLogs:
        launcher = self._launcher_of(handle.launcher)
        return AttemptLogs(launcher, handle, self.store, self.ledger.logs_prefix(number))

    def _logs_command(self, record: Record) -> str:
        return f"rallypoint logs {record.id} --store {self.store.uri}"

    async def _last_lines(self, record: Record, handle: Handle, view: AttemptView, failure: FailureReport) -> list[str]:
        logs = [p.log for p in view.last_round if failure.process == f"rank {p.rank}"] or [failure.process]
        cursor = Cursor(dict.fromkeys(logs, -_TAIL), others=None)
        chunks = await self._logs_of(record.number, handle).new(cursor, ended=True)
        text = b"".join(chunk.data for chunk in chunks).decode(errors="replace")
        said = before_traceback(text, failure.traceback)
        return [printable(line)[:500] for line in said.splitlines()[-LAST_LINES:]]

    async def _read_all(self, record: Record) -> AttemptView:
        view = AttemptView()
        reader = EventReader(self.store, self.ledger.events_prefix(record.number))
        while events := await reader.read():
            view.apply(events)
        return view

    def _own_launcher(self) -> Launcher:
        if self._launcher is None:
            msg = f"the stage {self.key.text} was opened without a launcher, so it cannot be started"
            raise LaunchError(msg)
        return self._launcher

    def _launcher_of(self, uri: str) -> Launcher:
        return scoped(launcher_of(uri, self._launcher), self.store.uri)


async def _rest(launcher: Launcher, handle: Handle, seconds: float) -> bool:
    """Wait for the next look, or for the end where a launcher learns of it; return whether the gang seems to run."""
    if isinstance(launcher, Waitable):
        return await launcher.wait(handle, seconds)
    await asyncio.sleep(seconds)
    return False


def _attempt(entry: Entry) -> Attempt:
    return Attempt(record=entry.record, handle=entry.handle, outcome=entry.outcome)
