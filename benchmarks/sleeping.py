"""What the cheapest stage, a Python process that waits, calls. Also Airflow's own floor beside it.

Airflow's processes import this module, so it lies in a folder of their PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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
