"""The protocol of a launcher, and the small records that go through it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import timedelta

    from rallypoint.spec.gang import Gang


@dataclass(frozen=True)
class Cursor:
    """How far the logs of a gang were read.

    Args:
        offsets: Bytes read, by the process's name.
        others: Where to begin with a process that is not named: bytes from the start, below 0 from the end, None to
            leave it out.
        max_behind: How many bytes before a log's end a reader may be. One that is further behind goes on near the end,
            and what it missed is never read; None to read everything.
    """

    offsets: Mapping[str, int] = field(default_factory=dict)
    others: int | None = 0
    max_behind: int | None = None


@dataclass(frozen=True)
class Handle:
    """How to find a running gang again: small, JSON, and good in any process that reaches the launcher.

    Args:
        launcher: The launcher's URI.
        attempt: The attempt's id.
        details: What the launcher needs to find the gang.
    """

    launcher: str
    attempt: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def links(self) -> dict[str, str]:
        """Pages about the gang that its launcher knows from the start, by name, such as a job's on a dashboard."""
        links = self.details.get("links")
        return {str(name): str(url) for name, url in links.items()} if isinstance(links, dict) else {}

    def to_json(self) -> dict[str, Any]:
        """Return the handle as a JSON object."""
        return {"v": 1, "launcher": self.launcher, "attempt": self.attempt, "details": dict(self.details)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Handle:
        """Return the handle that `to_json` described."""
        return cls(launcher=value["launcher"], attempt=value["attempt"], details=value["details"])


class Phase(StrEnum):
    """Where a gang stands."""

    RUNNING = "running"  # started, or about to: still there
    ENDED = "ended"  # every process has ended, and how is known
    LOST = "lost"  # gone without a final word


@dataclass(frozen=True)
class ProcessEnd:
    """How one process of a gang ended.

    Args:
        name: The process's name, such as ``agent-0``.
        exit_code: Its exit code; None if a signal ended it.
        signal: The signal's name, such as ``SIGKILL``.
        host: Where it ran.
        first: Whether it was the first of the gang to fail.
        tolerated: Whether it failed and the gang may go on without it (`Role.may_lose`).
        ended: When it ended, in seconds since the epoch by its host's clock; None where that is not known.
    """

    name: str
    exit_code: int | None
    signal: str | None = None
    host: str = ""
    first: bool = False
    tolerated: bool = False
    ended: float | None = None


@dataclass(frozen=True)
class Status:
    """What a launcher knows of a gang.

    Args:
        phase: Where it stands.
        reason: Once ended: ``completed``, ``failed``, ``cancelled``, ``stalled``, ``lease expired`` or ``error``; of a
            node of a gang on several, also ``followed``: it was ended because another one had failed.
        processes: How each process ended.
        message: More words, such as what a stalled gang was waiting in.
    """

    phase: Phase
    reason: str = ""
    processes: tuple[ProcessEnd, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class LogChunk:
    """New output of one process, cut at a line's end where possible.

    Args:
        process: The process's name, such as ``rank-0.r0``.
        data: The bytes.
        offset: How far the process's log has been read, including these.
        skipped: How many bytes before these were left out, because the reader was too far behind.
    """

    process: str
    data: bytes
    offset: int
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """What there is on one of a launcher's hosts.

    Args:
        host: What it is called.
        address: Its address as the other hosts reach it.
        python: The minor version of its interpreter; empty if it did not answer.
        versions: The versions of the modules that were asked for, of those that it has.
        skew: Seconds by which its clock is ahead of this host's; None if that is not known.
        cpus: Its cores.
        gpus: Its accelerators.
        problems: What is wrong with it, in words.
    """

    host: str
    address: str = ""
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    skew: float | None = None
    cpus: int | None = None
    gpus: int = 0
    problems: tuple[str, ...] = ()


class Launcher(Protocol):
    """A place where gangs run.

    Every method may be called from any process of the orchestrator, and must not block its event loop.
    """

    @property
    def uri(self) -> str:
        """How `open_launcher` finds this launcher again."""
        ...

    async def launch(self, gang: Gang, attempt: str) -> Handle:
        """Start a gang. Idempotent for one attempt id: a second call finds the first one's gang.

        Raises:
            PreflightError: This place cannot run it, now or later.
            LaunchError: It could not be started this time.
        """
        ...

    async def find(self, attempt: str) -> Handle | None:
        """Return the handle of an attempt that was launched here, whoever did it; None if it never was."""
        ...

    async def poll(self, handle: Handle) -> Status:
        """Return where the gang stands; cheap enough for many calls a second."""
        ...

    async def cancel(self, handle: Handle, grace: timedelta) -> None:
        """End the gang: ask, and after the grace kill. Returns when nothing of it is left. Idempotent."""
        ...

    def logs(self, handle: Handle, cursor: Cursor) -> AsyncIterator[LogChunk]:
        """Yield what each process has written since the cursor."""
        ...


@runtime_checkable
class Waitable(Protocol):
    """A launcher that learns of a gang's end by itself; others are only asked, as often as the interval says."""

    async def wait(self, handle: Handle, seconds: float) -> bool:
        """Return when the gang seems to have ended, or after so many seconds. `poll` says what is true.

        Returns:
            Whether it seems to run still, so that nobody has to ask at once; False where that is not known.
        """
        ...


@runtime_checkable
class Surveyable(Protocol):
    """A launcher that can say what there is on its hosts before anything runs on them."""

    async def survey(self, *, python: str | None = None, requires: Sequence[str] = ()) -> list[HostReport]:
        """Return what there is on every host; one that does not answer is a report with a problem.

        Args:
            python: The interpreter that is looked at; each host's own by default.
            requires: Modules whose versions are wanted.
        """
        ...


@runtime_checkable
class Cleanable(Protocol):
    """A launcher where ended attempts leave something behind, such as logs, until it is removed.

    It is no part of `Launcher`: Kubernetes, Ray and most schedulers remove what has ended by rules of their own.
    """

    async def left(self, attempt: str) -> int:
        """Return how many bytes an attempt has left here.

        Raises:
            LaunchError: They cannot be seen from this host.
        """
        ...

    async def clean(self, attempt: str, *, forget: bool) -> None:
        """Remove what an attempt has left. Idempotent.

        Args:
            attempt: The id of an attempt that has ended.
            forget: Also remove that by which the attempt can never start again. Its id may then be used anew.

        Raises:
            LaunchError: It is still running, or what it left cannot be removed.
        """
        ...
