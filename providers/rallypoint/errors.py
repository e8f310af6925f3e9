"""Every error that Rallypoint raises, in one tree.

::

    RallypointError
    ├── InvalidJobError        the description of a job is wrong: raised while a DAG or flow file is read
    ├── InvalidEntryError      the user's code cannot travel: a missing script, an unpicklable function
    ├── StoreError             the store cannot be opened, read or written
    ├── LaunchError            a launcher could not start the gang (a retry may help)
    │   └── PreflightError     the place that was named cannot run it: no such Python, no torch in it
    ├── StageNotFoundError     no stage or attempt of that name is in the store
    ├── DuplicateStageError    two stages of one run share a key
    └── StageFailedError       an attempt ended without success; carries the `FailureReport`
        ├── StageUserError     a retry cannot help: the code or its configuration has to change
        └── StageCancelledError  somebody stopped the attempt

An error says what was got, what was expected and what to do next; it carries the object that it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.stages.failures import FailureReport

__all__ = [
    "DuplicateStageError",
    "InvalidEntryError",
    "InvalidJobError",
    "LaunchError",
    "PreflightError",
    "RallypointError",
    "StageCancelledError",
    "StageFailedError",
    "StageNotFoundError",
    "StageUserError",
    "StoreError",
]


class RallypointError(Exception):
    """The root of the tree."""


class InvalidJobError(RallypointError, ValueError):
    """A job's description is wrong.

    Args:
        job: The class of the job, such as ``TorchElastic``.
        field: The parameter that is wrong.
        got: The value that was given.
        expected: What the parameter takes.
        fix: What to do, as a sentence without a period.
    """

    def __init__(self, job: str, field: str, *, got: object, expected: str, fix: str = "") -> None:
        self.job = job
        self.field = field
        text = f"{job}({field}=…): got {got!r}, expected {expected}"
        super().__init__(f"{text}; {fix}" if fix else text)

    def __reduce__(self) -> tuple[Any, ...]:
        # By default it would be made from its message, which is none of its parameters.
        return _remade, (type(self), self.args, self.__dict__)


class InvalidEntryError(RallypointError, ValueError):
    """The user's code in a job cannot be found or cannot travel to it."""


class StoreError(RallypointError):
    """The store cannot be opened, read or written."""


class LaunchError(RallypointError):
    """A launcher could not start a gang; another try may succeed."""


class PreflightError(LaunchError):
    """The place that was named cannot run the gang; another try fails in the same way."""


class StageNotFoundError(RallypointError, LookupError):
    """No stage or attempt of that name is in the store."""


class DuplicateStageError(RallypointError):
    """Two stages of one pipeline run share a key."""


class StageFailedError(RallypointError):
    """An attempt ended without success.

    Args:
        report: What failed first, where, and whether a retry can help.
    """

    def __init__(self, report: FailureReport) -> None:
        self.report = report
        super().__init__(report.headline)

    def __reduce__(self) -> tuple[Any, ...]:
        # A task runner's process hands it to the flow's: it is made again from the report, not from its message.
        return type(self), (self.report,)


class StageUserError(StageFailedError):
    """A retry cannot help: the user's code or the job's configuration has to change."""


class StageCancelledError(StageFailedError):
    """Somebody stopped the attempt."""


def _remade(kind: type[RallypointError], args: tuple[Any, ...], state: Mapping[str, Any]) -> RallypointError:
    """Return an error that was pickled, without a call of its constructor."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
