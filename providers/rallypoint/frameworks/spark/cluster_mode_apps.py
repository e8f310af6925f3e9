"""What the three kinds of clusters have in common: an application, what became of it, and how it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class ManagerUnreachableError(ConnectionError):
    """The cluster's manager does not answer, so that nothing is known of the application."""


class ManagerRefusedError(RuntimeError):
    """The cluster's manager answers, and refuses what it was asked: a login or a right is missing."""


class SetupError(RuntimeError):
    """The job does not say enough to find or reach its cluster: another try fails in the same way."""


class ApplicationFailedError(RuntimeError):
    """The application has ended, and not as a success."""


class ApplicationLostError(RuntimeError):
    """The cluster's manager no longer knows the application: nobody can say how it ended."""


class OlderApplicationError(RuntimeError):
    """An application of an older attempt still lives, or may live, and could not be ended."""


class SubmissionError(RuntimeError):
    """The application was not accepted."""


class Phase(StrEnum):
    """What an application does, in the words of no particular manager."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    KILLED = "killed"
    UNKNOWN = "unknown"  # the manager has no word for how it ended, or one that is not known here

    @property
    def ended(self) -> bool:
        """Whether it does not run any more."""
        return self not in {Phase.WAITING, Phase.RUNNING}


@dataclass(frozen=True, kw_only=True)
class Application:
    """An application as its manager sees it.

    Args:
        id: What the manager calls it.
        phase: What it does.
        word: The manager's own word for that.
        message: What the manager says of its end.
        links: Pages about it, by name.
        percent: How much of it is done, where the manager knows.
    """

    id: str
    phase: Phase
    word: str
    message: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    percent: float | None = None


class Manager(Protocol):
    """The part of a cluster that knows its applications: YARN's resource manager, Kubernetes, a standalone master.

    Every method raises `ManagerUnreachableError` if nothing answers, and `ManagerRefusedError` for a refusal.
    """

    name: str

    def find(self, attempt: str) -> Application | None:
        """Return the application that was submitted for an attempt, if one was."""
        ...

    def older(self, attempt: str) -> list[Application]:
        """Return the living applications of the other attempts of an attempt's stage."""
        ...

    def submit(self, attempt: str) -> None:
        """Submit the application for an attempt, such that `find` finds it.

        Raises:
            SubmissionError: It was not accepted.
        """
        ...

    def look(self, application: str) -> Application | None:
        """Return an application by its id; None if the manager does not know it."""
        ...

    def kill(self, application: str) -> None:
        """Have an application ended; one that has ended, or that is not known, is fine."""
        ...


def stage_of(attempt: str) -> str:
    """Return what the ids of all attempts of a stage begin with: ``rp-train-0123456789`` of ``…-a2``."""
    return attempt.rpartition("-a")[0] or attempt
