"""Waits for an attempt without a worker, and writes its news to the task's log."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from rallypoint.airflow.hooks import RallypointHook
from rallypoint.errors import RallypointError
from rallypoint.stages.key import StageKey
from rallypoint.stages.news import Narrator
from rallypoint.stages.pace import turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rallypoint.stages.attempt import Attempt
    from rallypoint.stages.engine import Engine

PATIENCE = 900.0  # seconds that the store or the launcher may be out of reach before the task is told
KILL_GRACE = timedelta(seconds=15)  # Airflow gives `on_kill` 30 s in all
# The shortest wait, in seconds. Once per loop the scheduler learns of the end of the worker that deferred. If the task
# runs again by then, it takes that end for this one's and fails the task (`SchedulerJobRunner.process_executor_events`:
# "finished with state success, but the task instance's state attribute is running"). Nothing in a triggerer tells when
# it has learnt: 2 s were seen to be too short for a scheduler on two busy cores.
SETTLED = 6.0


class StageTrigger(BaseTrigger):
    """Waits until an attempt has ended.

    Args:
        stage: The stage's key, part by part.
        attempt: The attempt's number.
        owner: The task try that owns the attempt.
        store: The store's URI, for the error that says that this host cannot see it.
        rallypoint_conn_id: The connection of store and launcher.
        poll_interval: Seconds between looks.
        deadline: When the task's ``execution_timeout`` ends, in seconds since the epoch; None if it has none.
        launcher_conn_id: The connection of the launcher, if the task names one itself.
    """

    def __init__(  # noqa: PLR0913 - what a trigger needs it is given by value
        self,
        *,
        stage: list[str],
        attempt: int,
        owner: str,
        store: str,
        rallypoint_conn_id: str,
        poll_interval: float,
        deadline: float | None,
        launcher_conn_id: str | None = None,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.attempt = attempt
        self.owner = owner
        self.store = store
        self.rallypoint_conn_id = rallypoint_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.launcher_conn_id = launcher_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes this trigger again in another process."""
        names = (
            "stage", "attempt", "owner", "store", "rallypoint_conn_id", "poll_interval", "deadline", "launcher_conn_id",
        )  # fmt: skip
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: the attempt ended, its time was over, or it cannot be seen from here."""
        unreachable_since: float | None = None
        began = time.monotonic()
        while True:
            try:
                async with turn("begin"):  # a thousand begin together when a triggerer is started again
                    engine = await self._engine()
                    attempt = await engine.read(self.attempt)
                event = await self._wait(engine, attempt)
                await asyncio.sleep(began + SETTLED - time.monotonic())
                yield TriggerEvent(event)
            except (RallypointError, OSError) as error:
                unreachable_since = unreachable_since or time.monotonic()
                if time.monotonic() - unreachable_since > PATIENCE:
                    yield TriggerEvent(self._event("unreachable", str(error)))
                    return
                self.log.warning("will look again in %g s: %s", self.poll_interval * 5, error)
                await asyncio.sleep(self.poll_interval * 5)
            except LookupError as error:
                message = (
                    f"{error}, as the triggerer on {socket.gethostname()} sees it, and the worker recorded it in "
                    f"{self.store}: set [rallypoint] store, or the store of the connection "
                    f"{self.rallypoint_conn_id!r}, to one that workers and triggerers share"
                )
                yield TriggerEvent(self._event("unreachable", message))
                return
            else:
                return

    async def on_kill(self) -> None:
        """Stop the job when its task is cleared or marked, if no newer try owns it."""
        engine = await self._engine()
        why = "the task was cleared or marked, or its run timed out, in Airflow"
        if await engine.cancel(self.attempt, owner=self.owner, why=why, grace=KILL_GRACE):
            self.log.info("the job of attempt %d was stopped: %s", self.attempt, why)
        else:
            self.log.info("attempt %d belongs to a newer try by now: left alone", self.attempt)

    async def _wait(self, engine: Engine, attempt: Attempt) -> dict[str, Any]:
        narrator = Narrator()
        updates = engine.watch(attempt, interval=timedelta(seconds=self.poll_interval))
        try:
            async with asyncio.timeout(None if self.deadline is None else max(0.0, self.deadline - time.time())):
                async for update in updates:
                    for news in narrator.tell(update):
                        self.log.log(news.level, "%s", news)
        except TimeoutError:
            why = "the task's execution_timeout is over"
            self.log.warning("%s: the job is stopped", why)
            await engine.cancel(self.attempt, owner=self.owner, why=why)
            return self._event("timeout", why)
        return self._event("ended")

    async def _engine(self) -> Engine:
        place = await RallypointHook(self.rallypoint_conn_id, self.launcher_conn_id).aget_place()
        return place.engine(StageKey(tuple(self.stage)))

    def _event(self, what: str, message: str = "") -> dict[str, Any]:
        return {"what": what, "attempt": self.attempt, "message": message}
