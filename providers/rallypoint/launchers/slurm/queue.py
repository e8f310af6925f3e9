"""What Slurm says of jobs: one question for all jobs of a process, and not more often than its interval says.

A controller serves thousands of users, and a question for each job and look would bring it down. So a question is for
every job of this user, its answer serves all stages of the process, and after a failure, or while nothing changes, the
next one comes later. Who asks is not kept waiting by it but the first time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.slurm.states import Meaning, meaning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 5.0, 30.0  # seconds between two questions
LONGEST_AFTER_FAILURE = 120.0
NO_ACCOUNTING = 600.0  # seconds for which accounting that does not answer is left alone
# A job that is listed no more and that accounting calls running: the word of its end is late, or never comes.
RUNAWAY = 300.0
# The comment is the last field, because it may hold anything.
FORMAT = "%A|%T|%V|%r|%N|%j|%k"
_FIELDS = 7
_SACCT_FIELDS = 4
TIMES = {"SLURM_TIME_FORMAT": "%s"}  # seconds since the epoch
_GROWTH, _GROWTH_AFTER_FAILURE = 1.3, 2.0


class Runs(Protocol):
    """Runs commands: `rallypoint.launchers.slurm.commands.Commands`."""

    async def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """Run a command and return what it printed."""
        ...


@dataclass(frozen=True)
class QueuedJob:
    """One job, as Slurm lists it.

    Args:
        id: Its id, which Slurm uses anew after some years, or after its state was lost.
        state: Its state, such as ``PENDING``.
        submitted: When it was submitted, or last put back into the queue; in seconds since the epoch.
        reason: Why it waits, or how it ended, in Slurm's words.
        nodes: Its nodes.
        name: Its name: the attempt's id.
        comment: Its comment: the attempt's folder.
    """

    id: int
    state: str
    submitted: float = 0.0
    reason: str = ""
    nodes: str = ""
    name: str = ""
    comment: str = ""

    @property
    def meaning(self) -> Meaning:
        """What its state means."""
        return meaning(self.state)


@dataclass(frozen=True)
class Sighting:
    """What is known of a job.

    Args:
        job: The job as Slurm lists it; None if it does not, or has not been asked.
        known: Whether Slurm has been asked since somebody wanted to know.
    """

    job: QueuedJob | None
    known: bool


def parse_squeue(text: str) -> list[QueuedJob]:
    """Return the jobs that squeue printed in this module's format; a line of another form is left out."""
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|", _FIELDS - 1)
        if len(parts) == _FIELDS and parts[0].isdigit():
            number, state, submitted, reason, nodes, name, comment = parts
            words = "" if comment == "(null)" else comment
            found.append(QueuedJob(int(number), state, _seconds(submitted), reason, nodes, name, words))
    return found


def parse_sacct(text: str) -> list[QueuedJob]:
    """Return the jobs that ``sacct --parsable2`` printed with this module's fields; steps are left out."""
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|", _SACCT_FIELDS - 1)
        if len(parts) == _SACCT_FIELDS and parts[0].isdigit():
            found.append(QueuedJob(int(parts[0]), parts[1], _seconds(parts[2]), name=parts[3]))
    return found


class Queue:
    """The jobs of this user on one cluster, seen from one process.

    Args:
        commands: Runs Slurm's commands.
    """

    def __init__(self, commands: Runs) -> None:
        self._commands = commands
        self._jobs: dict[int, QueuedJob] = {}
        self._asked = -LONGEST_AFTER_FAILURE  # when the newest question was put
        self._answered = -1.0  # when the question was put whose answer is known
        self._interval = SHORTEST
        self._wanted: dict[int, float] = {}  # since when a job is wanted to be known
        self._missing: dict[int, float] = {}  # since when a job is no longer listed
        self._gone: dict[int, QueuedJob | None] = {}  # what accounting says of these at last
        self._accounting = 0.0  # when it may be asked again
        self._broken: PreflightError | None = None
        self._question: asyncio.Task[None] | None = None

    async def look(self, job: int, *, within: float | None = None) -> Sighting:
        """Return what is known of a job.

        Args:
            job: Its id.
            within: How old the answer may be, in seconds; by default as old as the interval says.

        Raises:
            PreflightError: There is no Slurm on this machine.
        """
        now = time.monotonic()
        since = self._wanted.setdefault(job, now)
        if now - self._asked >= (self._interval if within is None else within):
            self._ask()
        if self._answered < since or within is not None:
            await self._answer()
        if self._broken is not None:
            raise self._broken
        if self._answered < since:
            return Sighting(None, known=False)
        found = self._jobs.get(job)
        if found is not None:
            self._missing.pop(job, None)
            return Sighting(found, known=True)
        await self._account(job)
        return Sighting(self._gone.get(job), known=job in self._gone)

    def forget(self, job: int) -> None:
        """Drop what is kept of a job that has ended."""
        for kept in (self._wanted, self._gone, self._missing):
            kept.pop(job, None)

    def _ask(self) -> None:
        if self._question is None or self._question.done():
            self._asked = time.monotonic()
            self._question = asyncio.create_task(self._refresh(self._asked))

    async def _answer(self) -> None:
        if self._question is not None:
            await asyncio.shield(self._question)

    async def _refresh(self, asked: float) -> None:
        argv = ["squeue", "--noheader", "--me", "--states=all", f"--format={FORMAT}"]
        try:
            jobs = {job.id: job for job in parse_squeue(await self._commands.run(argv, env=TIMES))}
        except PreflightError as error:
            self._broken = error
            return
        except LaunchError as error:
            self._interval = min(LONGEST_AFTER_FAILURE, self._interval * _GROWTH_AFTER_FAILURE)
            log.warning("Slurm does not answer, will ask again in %.0f s: %s", self._interval, error)
            return
        same = jobs == self._jobs
        self._interval = min(LONGEST, self._interval * _GROWTH) if same else SHORTEST
        self._jobs, self._answered, self._broken = jobs, asked, None

    async def _account(self, job: int) -> None:
        """Ask accounting about jobs that are not listed any more: one question for all of them."""
        now = time.monotonic()
        self._missing.setdefault(job, now)
        if job in self._gone:
            return
        if now >= self._accounting:
            missing = [each for each in self._wanted if each not in self._jobs and each not in self._gone]
            self._accounting = now + SHORTEST
            argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobIDRaw,State,Submit,JobName"]
            argv.append(f"--jobs={','.join(map(str, missing))}")
            try:
                said = parse_sacct(await self._commands.run(argv, env=TIMES))
            except LaunchError as error:
                log.info("Slurm's accounting does not answer: %s", error)
                self._accounting = now + NO_ACCOUNTING
                self._gone |= dict.fromkeys(missing)
                return
            self._gone |= {found.id: found for found in said if found.meaning is not Meaning.THERE}
            self._gone |= dict.fromkeys(set(missing) - {found.id for found in said})
        if job not in self._gone and (now < self._accounting - SHORTEST or now - self._missing[job] >= RUNAWAY):
            self._gone[job] = None


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Queue]] = WeakKeyDictionary()


def queue_of(cluster: str, commands: Runs) -> Queue:
    """Return the running loop's queue of a cluster: all launchers of one cluster share it.

    Args:
        cluster: What tells clusters apart.
        commands: Runs the cluster's commands.
    """
    return _queues.setdefault(asyncio.get_running_loop(), {}).setdefault(cluster, Queue(commands))


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
