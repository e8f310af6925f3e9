"""How many fits are done, and what they found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.worker.stage import Stage


class Progress:
    """Counts the fits of a pipeline and reports them as the stage's progress.

    Args:
        stage: The stage.
        name: The pipeline's name.
        total: How many fits there are.
    """

    def __init__(self, stage: Stage, name: str, total: int) -> None:
        self._stage = stage
        self._unit = f"{name} fit"
        self.total = total
        self.done = 0
        self.kept = 0  # of those that are done: by an earlier attempt
        stage.report(step=0, total=total, unit=self._unit)

    @property
    def fitted(self) -> int:
        """How many fits this attempt has done."""
        return self.done - self.kept

    def advance(self, *, kept: bool, metrics: Mapping[str, Any] | None = None) -> None:
        """Count one more fit.

        Args:
            kept: Whether an earlier attempt has done it.
            metrics: What is known now.
        """
        self.done += 1
        self.kept += kept
        self.total = max(self.total, self.done)  # a parameter map may have made a pipeline longer
        self._stage.report(step=self.done, total=self.total, unit=self._unit, **(metrics or {}))
