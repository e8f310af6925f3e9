"""The cheapest stage: a job of one plain Python process that waits. Also Airflow's own floor beside it.

Airflow's processes import this module, so it lies in a folder of their PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from rallypoint.airflow.operators import StageOperator
from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.job import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True, kw_only=True)
class PlainJob(Job):
    """One process of plain Python: a framework's start would hide what Rallypoint costs."""

    kind: ClassVar[str] = "plain"

    def roles(self) -> tuple[Role, ...]:
        """Return one role of one process."""
        argv = (Macro.PYTHON, "-m", "rallypoint.worker", *self.code.command())
        return (Role(name="p", argv=argv, env=dict(self.env)),)


class PlainOperator(StageOperator):
    """Runs a `PlainJob` as a stage."""

    job_class = PlainJob


class AlarmTrigger(BaseTrigger):
    """Fires at a time.

    Args:
        due: When, in seconds since the epoch.
    """

    def __init__(self, due: float) -> None:
        super().__init__()
        self.due = due

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes this trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {"due": self.due}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, when it is due."""
        await asyncio.sleep(max(0.0, self.due - time.time()))
        yield TriggerEvent(self.due)


class AlarmOperator(BaseOperator):
    """The least that a deferrable operator can do.

    Args:
        due: When it is to end, in seconds since the epoch.
    """

    template_fields = ("due",)

    def __init__(self, *, due: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.due = due

    def execute(self, context: Any) -> None:  # noqa: ARG002 - Airflow's signature
        """Defer."""
        self.defer(trigger=AlarmTrigger(due=float(self.due)), method_name="execute_complete")

    def execute_complete(self, context: Any, event: Any) -> Any:  # noqa: ARG002 - Airflow's signature
        """Return."""
        return event
