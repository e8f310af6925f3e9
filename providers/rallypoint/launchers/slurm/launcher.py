"""The launcher: one Slurm job for each attempt, found again by its name, its comment and the attempt's folder."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, HostReport, LogChunk, Phase, Status
from rallypoint.launchers.run_folder import folder_of
from rallypoint.launchers.slurm.address import NAME, SCHEME, Address
from rallypoint.launchers.slurm.commands import CommandError
from rallypoint.launchers.slurm.queue import FORMAT, TIMES, Queue, QueuedJob, parse_squeue, queue_of
from rallypoint.launchers.slurm.site import Attempt, LocalSite, LoginSite, Site
from rallypoint.launchers.slurm.states import Meaning
from rallypoint.launchers.slurm.submission import Submission
from rallypoint.launchers.slurm.survey import survey
from rallypoint.launchers.ssh.address import Access
from rallypoint.launchers.ssh.links import Endpoint, UnreachableError, link_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import timedelta

    from rallypoint.spec.gang import Gang

SETTLING = 5.0  # seconds after a job's end in which its last words may still come through the shared folder
CANCEL_MARGIN = 90.0  # seconds beyond the grace until a cancelled job has to be gone: Slurm's own KillWait among them
_CLOCKS = 3_600.0  # seconds that the controller's clock may be behind this one
_LOOKS_OF_ELASTIC = 5.0  # seconds between two looks at the nodes of a gang that may lose some
_KEPT = 4_096  # attempts of which something is remembered


class SlurmLauncher:
    """Runs gangs on a Slurm cluster, by sbatch, squeue, sacct and scancel.

    An attempt's job has the attempt's id as its name and the attempt's folder as its comment, and writes its id into
    that folder before anything else. So any process finds it, also if the one that submitted it died before it got the
    job's id; and of two jobs of one attempt the second one ends without having started anything.

    The folder lies on a file system that this host and the nodes share. How a gang stands is read there; Slurm is asked
    for all jobs of this process at once (`Queue`), and has the last word only where the gang itself left none.

    Secrets are variables of the job's environment, which sbatch hands to Slurm: in no argument list or log, and in the
    controller's own state until the job has ended, where Slurm's administrators can read them.

    Args:
        address: The cluster, and what jobs ask of it.
        access: Credentials for its login node.
        ambient: Whether keys and configuration of this process's user may be used for it.
    """

    def __init__(self, address: Address, access: Access | None = None, *, ambient: bool = True) -> None:
        self.address = address
        self._access = access or Access()
        self._ambient = ambient
        self.root = Path(address.root)
        self._site: Site = self._open_site()
        self._since: OrderedDict[str, float] = OrderedDict()  # when a job was first seen to have ended
        self._looked: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, Status] = OrderedDict()

    @classmethod
    def from_uri(cls, uri: str, options: Mapping[str, object] | None = None, *, ambient: bool = True) -> SlurmLauncher:
        """Return the launcher of ``slurm://partition?root=/shared/runs&account=physics``.

        Args:
            uri: The cluster and what jobs ask of it, by the names of `Ask`; ``root`` is the shared folder.
            options: The same beside it, which come first; and credentials for the login node, by the names of the SSH
                launcher's `Access`.
            ambient: Whether keys and configuration of this process's user may be used for the login node.

        Raises:
            LaunchError: The URI or an option is wrong.
        """
        given = dict(options or {})
        access = {each.name: given.pop(each.name) for each in fields(Access) if each.name in given}
        return cls(Address.from_uri(uri, given), Access.from_options(access), ambient=ambient)

    def reopen(self, uri: str) -> SlurmLauncher | None:
        """Return the launcher of an older record, with this one's credentials if it is in the same place; else None."""
        if urlsplit(uri).scheme != SCHEME:
            return None
        address = Address.from_uri(uri)
        same = address.place == self.address.place
        return SlurmLauncher(address, self._access, ambient=self._ambient) if same else None

    @property
    def uri(self) -> str:
        """How `open_launcher` finds this launcher again."""
        return self.address.uri

    async def check(self) -> str:
        """Return what answers, as a *Test* button asks.

        Raises:
            LaunchError: Slurm does not answer, has no such partition, or the shared folder cannot be written.
        """
        version = (await self._site.run(["sinfo", "--version"])).strip()
        asked = [f"--partition={self.address.partition}"] if self.address.partition else []
        found = (await self._site.run(["sinfo", "--noheader", "--format=%R %D", *asked])).split("\n")
        if not found[0].strip():
            msg = f"got the partition {self.address.partition!r}, which {version} does not have; see sinfo"
            raise LaunchError(msg)
        about, _ = await self._site.call("about")
        if not about["writable"]:
            msg = f"the folder {self.root} cannot be written on this host, expected one that it shares with the nodes"
            raise LaunchError(msg)
        partition, _, nodes = found[0].strip().partition(" ")
        return f"{version}, partition {partition} with {nodes} nodes"

    async def survey(self, *, python: str | None = None, requires: Sequence[str] = ()) -> list[HostReport]:
        """Return what there is on every node of the partition; see `rallypoint.launchers.slurm.survey`.

        Args:
            python: The interpreter that is looked at; the launcher's by default.
            requires: Modules whose versions are wanted.

        Raises:
            LaunchError: Slurm does not answer, or has no such partition.
        """
        return await survey(self._site, self.address, python or self.address.python, requires)

    async def launch(self, gang: Gang, attempt: str) -> Handle:
        """Submit a gang. Idempotent for one attempt id: a second call finds the first one's job.

        Raises:
            PreflightError: Slurm cannot run it, now or later.
            LaunchError: It could not be submitted this time.
        """
        job = Submission(
            gang=gang,
            attempt=attempt,
            folder=self._path(attempt),
            partition=self.address.partition,
            ask=self.address.ask.with_options(gang.options.get(NAME, {})),
            python=gang.python or self.address.python,
        )
        await self._folder(attempt).prepare(job.files())
        if handle := await self.find(attempt):
            return handle
        about, _ = await self._site.call("about")
        env = job.environment(about["path"])
        try:
            said = await self._site.run(job.sbatch(), env=env)
        except CommandError as error:
            with suppress(CommandError):
                if handle := await self.find(attempt):  # it was accepted, and only the answer was lost
                    return handle
            if error.refused:
                msg = f"Slurm refuses the job of {attempt}: {error.words}"
                raise PreflightError(msg) from error
            raise
        number = said.strip().partition(";")[0]
        if not number.isdigit():
            msg = f"got {said[:200]!r} from sbatch, expected the id of a job"
            raise LaunchError(msg)
        return self._handle(attempt, int(number), time.time())

    async def find(self, attempt: str) -> Handle | None:
        """Return the handle of an attempt that has a job, had one, or may not start any more; None otherwise."""
        job, cancelled, _ = await self._folder(attempt).look()
        if job is not None:
            return self._handle(attempt, job)
        if jobs := await self._jobs_of(attempt):
            first = min(jobs, key=lambda job: (job.meaning is not Meaning.THERE, job.id))
            return self._handle(attempt, first.id, first.submitted)
        return self._handle(attempt) if cancelled else None

    async def poll(self, handle: Handle) -> Status:
        """Return where the gang stands: some small files, and Slurm's word from the question that all stages share."""
        try:
            return await self._poll(handle, within=None)
        except UnreachableError:  # the login node's silence says nothing about the job
            return Status(Phase.RUNNING)

    async def cancel(self, handle: Handle, grace: timedelta) -> None:
        """End the gang, and forbid its start if it has not started. Returns when nothing of it is left.

        Raises:
            LaunchError: It has not ended in time.
        """
        seconds = grace.total_seconds()
        folder, begun, asked, wait = self._folder(handle.attempt), time.monotonic(), False, 0.1
        await folder.cancel(seconds)
        jobs = [job.id for job in await self._jobs_of(handle.attempt) if job.meaning is Meaning.THERE]
        for job in jobs:
            await self._quietly("scancel", "--state=PENDING", str(job))
            await self._quietly("scancel", "--batch", "--signal=USR2", str(job))  # its half in the job looks at once
        while (await self._poll(handle, within=1.0)).phase is Phase.RUNNING:
            waited = time.monotonic() - begun
            started, _, _ = await folder.look()
            # What has not begun has nothing to end in peace.
            if not asked and waited > (seconds + SETTLING if started else SETTLING):
                asked = True
                for job in {*jobs, *([started] if started else [])}:
                    await self._quietly("scancel", str(job))
            if waited > seconds + CANCEL_MARGIN:
                msg = f"{handle.attempt} did not end within {seconds + CANCEL_MARGIN:g} s: see squeue"
                raise LaunchError(msg)
            await asyncio.sleep(wait)
            wait = min(1.0, wait * 1.5)

    async def logs(self, handle: Handle, cursor: Cursor) -> AsyncIterator[LogChunk]:
        """Yield what processes have written since the cursor; at most one chunk per process and call."""
        with suppress(UnreachableError):
            for chunk in await self._folder(handle.attempt).logs(cursor):
                yield chunk

    async def left(self, attempt: str) -> int:
        """Return the bytes of an attempt's folder, without the few by which it never starts again.

        Raises:
            LaunchError: The shared folder is not on this host.
        """
        return await self._folder(attempt).left()

    async def clean(self, attempt: str, *, forget: bool) -> None:
        """Remove an ended attempt's logs and files; to `forget` it is to remove its whole folder.

        Raises:
            LaunchError: Its job is still there, or a part of it cannot be removed.
        """
        if any(job.meaning is Meaning.THERE for job in await self._jobs_of(attempt)):
            msg = f"the job of {attempt} is still there: stop it before its folder is removed"
            raise LaunchError(msg)
        self._ended.pop(attempt, None)
        await self._folder(attempt).clean(forget=forget)

    # How it is done ------------------------------------------------------------------------------------------------

    async def _poll(self, handle: Handle, *, within: float | None) -> Status:
        attempt, folder = handle.attempt, self._folder(handle.attempt)
        if attempt in self._ended:
            return self._ended[attempt]
        claimed, cancelled, ended = await folder.look()
        if ended is not None:
            return self._known(attempt, handle, ended)
        # The job that runs the attempt need not be the one of this handle, if two were submitted.
        job = claimed or handle.details.get("job")
        if not isinstance(job, int):
            return await self._without_job(attempt, cancelled=cancelled)
        status = await self._as_slurm_says(handle, folder, job, begun=claimed is not None, within=within)
        return status if status.phase is Phase.RUNNING else self._known(attempt, handle, status)

    async def _as_slurm_says(
        self, handle: Handle, folder: Attempt, job: int, *, begun: bool, within: float | None
    ) -> Status:
        """Return how a gang stands that has not said its last word."""
        attempt = handle.attempt
        sighting = await self._queue.look(job, within=within)
        found = sighting.job if sighting.job and self._is(sighting.job, handle) else None
        if not sighting.known or (found is not None and found.meaning is Meaning.THERE):
            self._since.pop(attempt, None)
            if found is not None and _is_due(self._looked, attempt, _LOOKS_OF_ELASTIC):
                await folder.stop_if_broken()
            return Status(Phase.RUNNING)
        if begun and time.monotonic() - self._first_seen(attempt) < SETTLING:
            return Status(Phase.RUNNING)
        _, _, ended = await folder.look()
        if ended is not None:
            return ended
        if not begun and any(other.meaning is Meaning.THERE for other in await self._jobs_of(attempt)):
            return Status(Phase.RUNNING)  # it was submitted twice, and the other job will run it
        words = f"Slurm's job {job} is {found.state}" + (f" ({found.reason})" if found.reason else "") if found else ""
        return await folder.judge(found.meaning if found else None, words)

    async def _without_job(self, attempt: str, *, cancelled: bool) -> Status:
        """Return how an attempt stands that was not submitted, as far as its handle knows."""
        if any(job.meaning is Meaning.THERE for job in await self._jobs_of(attempt)):
            return Status(Phase.RUNNING)
        return Status(Phase.ENDED if cancelled else Phase.LOST, "cancelled" if cancelled else "")

    async def _jobs_of(self, attempt: str) -> list[QueuedJob]:
        """Return the jobs of an attempt that Slurm lists: it names them, and tells whose they are by their folder."""
        folder = self._path(attempt)
        argv = ["squeue", "--noheader", "--me", "--states=all", f"--name={attempt}", f"--format={FORMAT}"]
        jobs = parse_squeue(await self._site.run(argv, env=TIMES))
        return [job for job in jobs if job.name == attempt and job.comment in {"", folder}]

    def _is(self, job: QueuedJob, handle: Handle) -> bool:
        """Return whether a job is an attempt's, and not one that got the same id later or had it before."""
        folder = self._path(handle.attempt)
        submitted = handle.details.get("submitted")
        late = not isinstance(submitted, int | float) or job.submitted >= submitted - _CLOCKS
        return job.name == handle.attempt and job.comment in {"", folder} and late

    def _handle(self, attempt: str, job: int | None = None, submitted: float | None = None) -> Handle:
        details: dict[str, object] = {"run_dir": self._path(attempt)}
        details |= {"job": job} if job is not None else {}
        details |= {"submitted": submitted} if submitted else {}
        return Handle(self.uri, attempt, details)

    def _folder(self, attempt: str) -> Attempt:
        self._path(attempt)  # refuses what is no attempt's id
        return Attempt(self._site, attempt)

    def _path(self, attempt: str) -> str:
        return str(folder_of(self.root, attempt))

    def _open_site(self) -> Site:
        node = self.address.login_node
        if node is None:
            return LocalSite(self.address.root, self.address.conf)
        endpoint = Endpoint(
            host=node.hosts[0],
            root=node.root,
            python=node.python,
            known_hosts=node.known_hosts,
            access=self._access,
            ambient=self._ambient,
        )
        return LoginSite(partial(link_of, endpoint), self.address.conf)

    @property
    def _queue(self) -> Queue:
        return queue_of(self.address.cluster, self._site)

    def _known(self, attempt: str, handle: Handle, status: Status) -> Status:
        if isinstance(job := handle.details.get("job"), int):
            self._queue.forget(job)
        for kept in (self._since, self._looked):
            kept.pop(attempt, None)
        _keep(self._ended, attempt, status)
        return status

    def _first_seen(self, attempt: str) -> float:
        if attempt not in self._since:
            _keep(self._since, attempt, time.monotonic())
        return self._since[attempt]

    async def _quietly(self, *argv: str) -> None:
        """Run a command that fails where there is nothing to do."""
        with suppress(CommandError):
            await self._site.run(argv)


def _is_due(looked: OrderedDict[str, float], attempt: str, seconds: float) -> bool:
    if time.monotonic() - looked.get(attempt, -seconds) < seconds:
        return False
    _keep(looked, attempt, time.monotonic())
    return True


def _keep(kept: OrderedDict[str, Any], name: str, value: Any) -> None:
    kept[name] = value
    if len(kept) > _KEPT:
        kept.popitem(last=False)
