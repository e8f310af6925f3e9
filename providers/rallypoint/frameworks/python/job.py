"""The job of plain Python: one process, for the steps of a pipeline that need no framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.job import Job


@dataclass(frozen=True, kw_only=True)
class PythonJob(Job):
    """One Python process: a script, a module or a function.

    It survives a worker's crash, continues from its checkpoints and explains its failures like every other stage.
    """

    kind: ClassVar[str] = "python"

    def roles(self) -> tuple[Role, ...]:
        """Return one role of one process."""
        argv = (Macro.PYTHON, "-m", "rallypoint.worker", *self.code.command())
        return (Role(name="main", argv=argv, env=dict(self.env), resources=self.resources),)
