"""The launcher: one Ray job for each attempt, found again by its submission id."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, LogChunk, Phase, Status
from rallypoint.launchers.ray_jobs.address import Access, Address
from rallypoint.launchers.ray_jobs.api import PATIENT, AccessError, RayJobsApi, RequestError
from rallypoint.launchers.ray_jobs.environment import with_environment
from rallypoint.launchers.ray_jobs.logs import PublishedLogs
from rallypoint.launchers.ray_jobs.request import FORBIDDEN, NAME, STORE, Ask, forbidding, store_mark, submission
from rallypoint.launchers.ray_jobs.status import final_status, has_ended, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import timedelta

    from rallypoint.launchers.ray_jobs.packages import Package
    from rallypoint.spec.gang import Gang

log = logging.getLogger(__name__)

LINK = "Ray job"  # what the link to a job's page on the dashboard is called
CANCEL_MARGIN = 60.0  # seconds beyond the grace until a stopped job has to have ended
_ATTEMPT = re.compile(r"rp-[a-z0-9-]{1,60}")
_FOREIGN = "foreign"  # in a handle: the job of that id is another orchestrator's
_KEPT = 4_096  # attempts whose nodes and ends are remembered


class RayJobsLauncher:
    """Runs gangs of one process on a Ray cluster, by plain HTTP; Ray itself is not imported here.

    A job's submission id is its attempt's id (and the URI's namespace), of which Ray takes one job only. That is how
    any process finds the job, and why a second submission, late or repeated, starts nothing. Ray remembers it until the
    cluster ends: a cluster that was restarted does not know its jobs, and they count as lost. A restarted Ray that
    keeps its state in Redis does know them.

    In the job, `rallypoint.worker.ray_job` starts the process under the same supervisor as the local launcher does, so
    it is ended, dumped and recorded in the same way.

    Secrets are in no command line, runtime environment, metadata or log. They travel in a package of their own, whose
    name cannot be guessed, and the starter deletes it on the node before the user's code runs; Ray's control store
    keeps it until the job has ended, and for ten minutes at the least. Who can submit jobs to the cluster, or read the
    files of its nodes as the user that Ray runs as, can read them: Ray gives such people everything anyway. On a
    ``ray-jobs://`` address they travel unencrypted, as everything does; use ``ray-jobs+https://`` across networks.

    Two stores may have a stage of the same key, and so attempts of the same id. A job's metadata says whose it is; one
    that is another store's is never taken for the own one, watched or stopped: the attempt has failed and says so. The
    store is no part of the id, because the same store may be reached by two URIs, and then a second try would not find
    the first one's job.

    A stop that finds no job submits one that does nothing and takes the id. A job that waits for resources is stopped
    by Ray in the moment of its start, not before: until then it may be seen as running.

    Args:
        address: The cluster's dashboard.
        access: Credentials and settings.
        ask: What every job asks of the cluster, unless it says otherwise itself.
        store: The URI of the store whose attempts these are; None if whose they are is not to be looked at.
    """

    def __init__(
        self, address: Address, access: Access | None = None, ask: Ask | None = None, *, store: str | None = None
    ) -> None:
        self.address = address
        self._access = access or Access()
        self._ask = ask or Ask()
        self._mark = store_mark(store) if store is not None else None
        self._api = RayJobsApi(address, self._access)
        self._nodes: OrderedDict[str, str] = OrderedDict()
        self._finals: OrderedDict[str, Status] = OrderedDict()

    @classmethod
    def from_uri(cls, uri: str, options: Mapping[str, Any] | None = None, *, ambient: bool = True) -> RayJobsLauncher:
        """Return the launcher of ``ray-jobs://host:8265`` or ``ray-jobs+https://host``.

        Args:
            uri: The dashboard's address, without any secret; ``?python=`` names the nodes' Python.
            options: Credentials and settings by the names of `Access`, and what jobs ask by the names of `Ask`.
            ambient: Whether a token and headers that no option gives are taken from the environment, where Ray's own
                client finds them.

        Raises:
            LaunchError: The URI or an option is wrong.
        """
        given = dict(options or {})
        known = Access.__dataclass_fields__.keys() | Ask.__dataclass_fields__.keys()
        if unknown := given.keys() - known:
            msg = f"got the option {min(unknown)!r} for a Ray launcher, expected one of {', '.join(sorted(known))}"
            raise LaunchError(msg)
        ask = Ask().with_options({name: given[name] for name in given.keys() & Ask.__dataclass_fields__.keys()})
        address = Address.from_uri(uri)
        return cls(address, Access.from_options(with_environment(given, os.environ) if ambient else given), ask)

    def reopen(self, uri: str) -> RayJobsLauncher | None:
        """Return the launcher of an older record, with this one's credentials if it is the same host; else None."""
        if urlsplit(uri).scheme != self.address.scheme:
            return None
        address = Address.from_uri(uri)
        return RayJobsLauncher(address, self._access, self._ask) if address.origin == self.address.origin else None

    def within(self, store: str) -> RayJobsLauncher:
        """Return the same launcher for the attempts of one store, and no other's."""
        if self._mark == store_mark(store):
            return self
        return RayJobsLauncher(self.address, self._access, self._ask, store=store)

    @property
    def uri(self) -> str:
        """How `open_launcher` finds this launcher again; the options are given beside it."""
        return self.address.uri

    async def check(self) -> str:
        """Return the version of the Ray that answers, as a *Test* button asks.

        Raises:
            LaunchError: None answers, or it refuses the credentials.
        """
        return str((await self._api.version()).get("ray_version", "unknown"))

    async def launch(self, gang: Gang, attempt: str) -> Handle:
        """Submit a gang. Idempotent for one attempt id: a second call finds the first one's job.

        Raises:
            PreflightError: The cluster cannot run it, now or later, or does not take the credentials.
            LaunchError: It could not be submitted this time.
        """
        job = self._job_id(attempt)
        ask = self._ask.with_options(gang.options.get(NAME, {}))
        ready = await asyncio.to_thread(submission, gang, attempt, ask, self.address, mark=self._mark)
        try:
            found = await self._api.job(job, patience=PATIENT)
        except AccessError as error:  # nothing was sent: nothing of it can come late
            raise PreflightError(str(error)) from error
        if found is None:
            for package in ready.packages:
                await self._bring(package)
            try:
                await self._api.submit(ready.request)
            except RequestError as error:
                # Another submitter, or this one's first try whose answer was lost, may have been faster.
                if (found := await self._api.job(job, patience=PATIENT)) is None:
                    raise PreflightError(str(error)) from error
        return self._handle(attempt, foreign=found is not None and self._is_foreign(found))

    async def find(self, attempt: str) -> Handle | None:
        """Return the handle of an attempt that Ray has as a job (or may not start any more); None otherwise."""
        found = await self._api.job(self._job_id(attempt))
        return None if found is None else self._handle(attempt, foreign=self._is_foreign(found))

    async def poll(self, handle: Handle) -> Status:
        """Return where the gang stands: one request, and at its end one more for its own record of it."""
        job = self._job_id(handle.attempt)
        if handle.details.get(_FOREIGN):
            message = (
                f"{self.uri} has a job {job} of another store: two orchestrators run pipelines of one name there; give "
                "one of them a namespace in the launcher's URI (…?namespace=staging), in Airflow in the connection"
            )
            return Status(Phase.ENDED, "error", message=message)
        details = await self._api.job(job)
        if details is None or not has_ended(details):
            return status_of(details, None)
        return status_of(details, await self._final(job, details))

    async def cancel(self, handle: Handle, grace: timedelta) -> None:
        """End the gang, and forbid its start if it has not started. Returns when it has ended.

        Its processes have the time that the job was submitted with (`Ask.stop_grace`); `grace` is how long this waits
        beyond that before it gives up.

        Raises:
            LaunchError: It has not ended in that time.
        """
        job = self._job_id(handle.attempt)
        if handle.details.get(_FOREIGN):
            return
        deadline = time.monotonic() + grace.total_seconds() + CANCEL_MARGIN
        wait, asked = 0.1, 0.0
        while (details := await self._api.job(job, patience=PATIENT)) is None or not has_ended(details):
            if details is None:
                await self._forbid(job)
                continue
            if not handle.details and self._is_foreign(details):  # a handle with details is of a job that was the own
                return
            if FORBIDDEN not in (details.get("metadata") or {}) and time.monotonic() - asked >= 1.0:
                await self._api.stop(job)  # again and again: Ray ignores one that comes before its own start
                asked = time.monotonic()
            if time.monotonic() > deadline:
                pending = details.get("status") == "PENDING"
                why = (
                    "it waits for resources, and Ray stops such a job when it starts"
                    if pending
                    else "see its log in Ray"
                )
                msg = f"the job {job} on {self.uri} did not end in time ({details.get('status')}): {why}"
                raise LaunchError(msg)
            await asyncio.sleep(wait)
            wait = min(1.0, wait * 1.5)

    async def logs(self, handle: Handle, cursor: Cursor) -> AsyncIterator[LogChunk]:
        """Yield what processes have written since the cursor; at most one chunk per process and call."""
        job = self._job_id(handle.attempt)
        if not handle.details.get(_FOREIGN) and (node := await self._node(job)):
            for chunk in await PublishedLogs(self._api, node, job).new(cursor):
                yield chunk

    async def left(self, attempt: str) -> int:
        """Return 0: logs lie in Ray's own folders, which Ray empties by its own rules.

        Raises:
            LaunchError: The cluster does not answer.
        """
        await self._api.job(self._job_id(attempt))
        return 0

    async def clean(self, attempt: str, *, forget: bool) -> None:
        """Have Ray forget an ended job, so that its id may be used anew; without `forget` there is nothing to do.

        Raises:
            LaunchError: It is still running.
        """
        job = self._job_id(attempt)
        details = await self._api.job(job)
        if details is not None and not has_ended(details) and not self._is_foreign(details):
            msg = f"the job {job} is still running on {self.uri}: stop it before it is removed"
            raise LaunchError(msg)
        if details is not None and forget and not self._is_foreign(details):
            await self._api.delete(job)

    # How it is done ------------------------------------------------------------------------------------------------

    def _job_id(self, attempt: str) -> str:
        if not _ATTEMPT.fullmatch(attempt):  # it may come from the store, and names a path on the dashboard
            msg = f"got the attempt's id {attempt[:80]!r}, expected one such as 'rp-train-0123456789-a1'"
            raise LaunchError(msg)
        return self.address.job_id(attempt)

    def _is_foreign(self, details: Mapping[str, Any]) -> bool:
        """Return whether a job of the wanted id belongs to another store's stage of the same name."""
        metadata = details.get("metadata") or {}
        return self._mark is not None and FORBIDDEN not in metadata and metadata.get(STORE) != self._mark

    def _handle(self, attempt: str, *, foreign: bool = False) -> Handle:
        page = f"{self._access.dashboard_url or self.address.url}/#/jobs/{self.address.job_id(attempt)}"
        return Handle(self.uri, attempt, {_FOREIGN: True} if foreign else {"links": {LINK: page}})

    async def _bring(self, package: Package) -> None:
        # Asked in any case: it has Ray keep the package until the job is there, and forget it if none ever comes.
        if not await self._api.has_package(package.name):
            await self._api.upload(package.name, package.data)

    async def _forbid(self, job: str) -> None:
        try:
            await self._api.submit(forbidding(job))
        except RequestError:
            if await self._api.job(job) is None:
                raise

    async def _node(self, job: str) -> str | None:
        """Return Ray's id of the node that the job's process runs on; None until it has one."""
        if job not in self._nodes:
            self._note_node(job, await self._api.job(job) or {})
        return self._nodes.get(job)

    def _note_node(self, job: str, details: Mapping[str, Any]) -> None:
        node = details.get("driver_node_id")
        if isinstance(node, str) and node:
            _keep(self._nodes, job, node)

    async def _final(self, job: str, details: Mapping[str, Any]) -> Status | None:
        self._note_node(job, details)
        node = self._nodes.get(job)
        if job not in self._finals and node:
            found = final_status(await PublishedLogs(self._api, node, job).final())
            if found is not None:
                _keep(self._finals, job, found)
        return self._finals.get(job)


def _keep(kept: OrderedDict[str, Any], name: str, value: Any) -> None:
    kept[name] = value
    if len(kept) > _KEPT:
        kept.popitem(last=False)
