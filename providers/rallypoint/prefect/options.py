"""The options of a stage beside those of its job and of Prefect's task, and how the three are told apart."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefect.tasks import Task

from rallypoint.errors import InvalidJobError
from rallypoint.stages.rule import Resume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.prefect.places import LauncherLike, StoreLike
    from rallypoint.spec.job import Job

DEFAULT_POLL = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Where a stage runs and how a retry goes on.

    Args:
        store: A RallypointStore block, the name of one, or a URI; see `rallypoint.prefect.places.find_place`.
        launcher: A RallypointLauncher, RallypointRayCluster or RallypointSSHHosts block, the name of one, or a URI.
        resume: When checkpoints of earlier attempts are used: ``"if_same_work"``, ``"always"`` or ``"never"``.
        rerun: Run the stage again although it has succeeded before.
        poll_interval: Seconds between looks at the job.

    Raises:
        InvalidJobError: A value is wrong.
    """

    store: StoreLike | None = None
    launcher: LauncherLike | None = None
    resume: Resume = Resume.IF_SAME_WORK
    rerun: bool = False
    poll_interval: float = DEFAULT_POLL

    def __post_init__(self) -> None:
        choices = [choice.value for choice in Resume]
        if self.resume not in choices:
            raise InvalidJobError("stage", "resume", got=self.resume, expected=" or ".join(map(repr, choices)))
        object.__setattr__(self, "resume", Resume(self.resume))
        interval: object = self.poll_interval
        if not isinstance(interval, int | float) or interval <= 0:
            raise InvalidJobError("stage", "poll_interval", got=interval, expected="seconds above 0")


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Options, sorted by whose they are: the job's, Prefect's task's, the stage's, and the task's own."""

    job: dict[str, Any]
    task: dict[str, Any]
    stage: dict[str, Any]
    own: dict[str, Any]


OWN = ("stage_name", "assets", "secrets")
_STAGE = tuple(each.name for each in fields(StageOptions))


def sort_options(job_class: type[Job], options: Mapping[str, Any]) -> Sorted:
    """Sort options.

    Raises:
        InvalidJobError: One is not known; the message names the nearest ones.
    """
    jobs = tuple(each.name for each in fields(job_class) if each.name not in {"entry", *OWN})
    tasks, found = task_options(), Sorted(job={}, task={}, stage={}, own={})
    for name, value in options.items():
        for names, sort in ((OWN, found.own), (_STAGE, found.stage), (tasks, found.task), (jobs, found.job)):
            if name in names:
                sort[name] = value
                break
        else:
            every = (*jobs, *tasks, *_STAGE, *OWN)
            near = get_close_matches(name, every) or sorted(set(every) - set(tasks))
            expected = f"an option of Prefect's task, of {job_class.__name__} or of a stage"
            raise InvalidJobError(
                job_class.__name__, name, got=value, expected=expected, fix=f"did you mean {', '.join(near)}?"
            )
    return found


@lru_cache(maxsize=1)
def task_options() -> tuple[str, ...]:
    """Return the names of what Prefect's task takes."""
    return tuple(name for name in inspect.signature(Task.__init__).parameters if name not in {"self", "fn"})
