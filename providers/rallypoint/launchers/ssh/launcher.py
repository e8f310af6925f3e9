"""The launcher: one run folder and supervisor on every host of a gang, found again by the attempt's id."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rallypoint.errors import LaunchError
from rallypoint.launchers.base import Cursor, Handle, HostReport, LogChunk, Phase, Status
from rallypoint.launchers.nodes import NodeState, Shape, merge
from rallypoint.launchers.run_folder import check_attempt
from rallypoint.launchers.ssh.address import Access, Address
from rallypoint.launchers.ssh.agent import NEVER_STARTED
from rallypoint.launchers.ssh.fleet import Fleet
from rallypoint.launchers.ssh.links import ANSWER, Link, UnreachableError
from rallypoint.launchers.ssh.plan import Plan
from rallypoint.launchers.ssh.survey import different, surveyed, unreached
from rallypoint.launchers.ssh.watch import Memory, status_from
from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import timedelta

    from rallypoint.spec.gang import Gang

FOLLOW_GRACE = 10.0  # seconds between SIGTERM and SIGKILL for a node that follows another one's end
CANCEL_MARGIN = 30.0  # seconds beyond the grace until a cancelled gang has to have ended
_RUNNING = Status(Phase.RUNNING)
_KEPT = 4_096  # logs of which it is remembered on which node they are
_memory = Memory()
_log_nodes: OrderedDict[tuple[str, str], int] = OrderedDict()


class SSHLauncher:
    """Runs gangs on hosts that are reached by SSH.

    A gang is split into nodes, one on each host, and each node has its own supervisor, the same as on this machine. It
    outlives the connection, so a gang goes on when the orchestrator or the network between is away. The nodes live and
    die together: whoever polls ends the rest of a gang that lost a node which it cannot do without, and starts the node
    of an elastic gang again when its host is back.

    An attempt's plan, which says what hosts it uses, is written on every host that answers before anything starts. A
    launch needs half of the hosts, and only more than half of them can say that an attempt was never launched: so two
    processes that see different hosts never start it twice.

    Args:
        address: The hosts.
        access: Credentials.
        ambient: Whether the keys and the configuration of the user whom this process runs as may be used.
    """

    def __init__(self, address: Address, access: Access | None = None, *, ambient: bool = True) -> None:
        self.address = address
        self._access = access or Access()
        self._ambient = ambient
        self._fleet = Fleet(address, self._access, ambient=ambient)

    @classmethod
    def from_uri(cls, uri: str, options: Mapping[str, Any] | None = None, *, ambient: bool = True) -> SSHLauncher:
        """Return the launcher of ``ssh://user@host1,host2?root=/var/lib/rallypoint/runs``.

        Args:
            uri: The hosts and the folder on them, without any secret.
            options: Credentials by the names of `Access`.
            ambient: Whether the keys and the configuration of this process's user may be used.

        Raises:
            LaunchError: The URI or an option is wrong.
        """
        access = Access.from_options(options or {})
        return cls(Address.from_uri(uri, access.hosts), access, ambient=ambient)

    def reopen(self, uri: str) -> SSHLauncher | None:
        """Return the launcher of an older record, with this one's credentials if all of its hosts are this one's.

        Of the record only which of the hosts it used is taken: who can write the store can write any URI into it.
        """
        if urlsplit(uri).scheme != "ssh":
            return None
        other = Address.from_uri(uri, self._access.hosts)
        mine = {host.name: host for host in self.address.hosts}
        if other.root != self.address.root or not all(host.name in mine for host in other.hosts):
            return None
        hosts = tuple(mine[host.name] for host in other.hosts)
        return SSHLauncher(replace(self.address, hosts=hosts), self._access, ambient=self._ambient)

    @property
    def uri(self) -> str:
        """How `open_launcher` finds this launcher again; the options are given beside it."""
        return self.address.uri

    async def launch(self, gang: Gang, attempt: str) -> Handle:
        """Start a gang on the hosts. Idempotent for one attempt id: a second call finds the first one's gang.

        Raises:
            PreflightError: The hosts cannot run it, now or later.
            LaunchError: It could not be started this time.
        """
        plan, cancelled, silent = await self._fleet.look(attempt, launching=True)
        if cancelled:
            return self._handle(attempt, plan)
        if plan is None:
            plan = await self._fleet.plan(gang, attempt, silent)
        plan, cancelled = await self._fleet.claim(attempt, plan, silent)
        if cancelled:
            return self._handle(attempt, plan)
        nodes = [(number, host) for number, host in enumerate(plan.hosts) if host not in silent]
        await self._fleet.on(nodes, lambda link, _: link.call("end_older", attempt=attempt))
        files = [[name, len(data)] for name, data in gang.files.items()]
        data, about = b"".join(gang.files.values()), gang.to_json()
        await self._fleet.on(
            nodes, lambda link, number: self._prepare(link, attempt, plan, number, 0, files, about, data)
        )
        secrets = {name: secret.reveal() for name, secret in gang.secrets.items()}
        await self._fleet.on(nodes, lambda link, number: self._start(link, attempt, plan, number, 0, secrets))
        return self._handle(attempt, plan)

    async def find(self, attempt: str) -> Handle | None:
        """Return the handle of an attempt that was started (or forbidden to start) on the hosts; None otherwise.

        Raises:
            LaunchError: Too few hosts answer to say so.
        """
        plan, cancelled, _ = await self._fleet.look(attempt)
        if cancelled:
            return self._handle(attempt, plan)
        if plan is None:
            return None
        # A launch that was cut off between two hosts is finished by launching again.
        states = await self._states(attempt, plan.hosts)
        begun = [state if _never_started(state) else replace(state, status=_RUNNING) for state in states]
        whole = not all(map(_never_started, states)) and not merge(plan.shape, begun).stop
        return self._handle(attempt, plan) if whole else None

    async def poll(self, handle: Handle) -> Status:
        """Return where the gang stands; a host that is silent for a moment does not make it wait."""
        hosts, shape = _known(handle)
        if not hosts:
            return Status(Phase.ENDED, "cancelled")
        stall = handle.details.get("stall")
        silent: list[float] = []
        states = await self._states(handle.attempt, hosts, silent if stall else None)
        verdict = merge(shape, states)
        reason, why = "followed", verdict.stop
        if stall and silent and not why and min(silent) >= stall:
            words = f"no event and no output from any process on any host for {min(silent):.0f} s"
            reason, why = "stalled", f"{words} (stall_timeout={stall:g})"
        for number, state in enumerate(states):
            if why and state.status.phase is Phase.RUNNING:
                self._end(handle.attempt, number, hosts[number], reason, why)
        running = [number for number, state in enumerate(states) if state.status.phase is Phase.RUNNING]
        for number in verdict.missed:
            work = partial(self._bring_back, handle.attempt, hosts, number, running)
            _memory.in_background(("start again", self._key(handle.attempt), number), work)
        return verdict.status

    async def cancel(self, handle: Handle, grace: timedelta) -> None:
        """End the gang, and forbid its start if it has not started. Returns when nothing of it is left.

        Raises:
            LaunchError: It did not end, or too few hosts answer to say whether it runs.
        """
        hosts, _ = _known(handle)
        if not hosts:
            plan, _, _ = await self._fleet.look(handle.attempt)
            handle = self._handle(handle.attempt, plan)
            hosts, _ = _known(handle)
        seconds = grace.total_seconds()
        every = list(enumerate(host.name for host in self.address.hosts))
        # Those that do not answer have been told by nobody: what runs there counts as lost in the end.
        await self._fleet.on(
            every, lambda link, _: link.call("cancel", attempt=handle.attempt, grace=seconds), tolerant=True
        )
        deadline = time.monotonic() + seconds + CANCEL_MARGIN + self.address.lost_after
        while hosts and (await self.poll(handle)).phase is Phase.RUNNING:
            if time.monotonic() > deadline:
                msg = f"{handle.attempt} did not end within {deadline:g} s on {', '.join(hosts[:8])}"
                raise LaunchError(msg)
            await asyncio.sleep(0.2)

    async def logs(self, handle: Handle, cursor: Cursor) -> AsyncIterator[LogChunk]:
        """Yield what processes have written since the cursor; at most one chunk per process and call."""
        hosts, shape = _known(handle)
        wanted: dict[int, dict[str, int]] = {}
        everywhere: dict[str, int] = {}
        for name, offset in cursor.offsets.items():
            node = next((n for n, names in enumerate(shape.nodes) if name in names), None)
            node = _log_nodes.get((self._key(handle.attempt), name)) if node is None else node
            (everywhere if node is None else wanted.setdefault(node, {}))[name] = offset
        if everywhere or cursor.others is not None:
            wanted = {number: {**everywhere, **wanted.get(number, {})} for number in range(len(hosts))}
        if cursor.others is not None:
            wanted = {number: dict(cursor.offsets) for number in wanted}
        parts = await asyncio.gather(
            *(
                self._logs(handle.attempt, n, hosts[n], replace(cursor, offsets=offsets))
                for n, offsets in wanted.items()
            )
        )
        for chunk in (chunk for part in parts for chunk in part):
            yield chunk

    async def left(self, attempt: str) -> int:
        """Return how many bytes an attempt has left on the hosts.

        Raises:
            LaunchError: A host does not answer.
        """
        check_attempt(attempt)
        links = await self._fleet.links()
        found = await asyncio.gather(*(link.call("left", attempt=attempt) for link in links))
        return sum(int(value["bytes"]) for value, _ in found)

    async def clean(self, attempt: str, *, forget: bool) -> None:
        """Remove what an ended attempt has left on the hosts.

        Raises:
            LaunchError: It is still running, or a host does not answer.
        """
        check_attempt(attempt)
        links = await self._fleet.links()
        await asyncio.gather(*(link.call("clean", attempt=attempt, forget=forget) for link in links))

    async def survey(self, *, python: str | None = None, requires: Sequence[str] = ()) -> list[HostReport]:
        """Return what there is on every host, and how they differ where they may not.

        Args:
            python: The interpreter that is looked at; each host's own by default.
            requires: Modules whose versions are compared.
        """
        links = await self._fleet.links()
        reports = await asyncio.gather(
            *(surveyed(link, python or self._fleet.python(link.name), requires) for link in links)
        )
        answering = [link for link, report in zip(links, reports, strict=True) if report.python]
        problems = different(reports)
        with suppress(UnreachableError):
            problems += await unreached(answering) if answering else []
        first = next((n for n, report in enumerate(reports) if report.python), None)
        return [
            replace(report, problems=(*report.problems, *problems)) if n == first else report
            for n, report in enumerate(reports)
        ]

    # How it is done ------------------------------------------------------------------------------------------------

    def _key(self, attempt: str) -> str:
        return f"{self.uri}#{attempt}"  # another launcher may have an attempt of the same id

    def _handle(self, attempt: str, plan: Plan | None) -> Handle:
        if plan is None:
            return Handle(self.uri, attempt)
        details = {"hosts": list(plan.hosts), "shape": plan.shape.to_json()}
        return Handle(self.uri, attempt, {**details, "stall": plan.stall} if plan.stall else details)

    async def _prepare(  # noqa: PLR0913, PLR0917 - what a node's start is made of
        self,
        link: Link,
        attempt: str,
        plan: Plan,
        number: int,
        start: int,
        files: Sequence[Sequence[Any]],
        gang: Mapping[str, Any],
        data: bytes,
    ) -> None:
        spec = dict(plan.specs[number])
        more = {context.INCARNATION: str(start)} if start else {}
        spec["processes"] = [{**process, "env": {**process["env"], **more}} for process in spec["processes"]]
        if logs := spec.get("logs"):
            spec["logs"] = {**logs, "uri": f"{logs['uri']}/{number}-{start}"}
        await link.call(
            "prepare",
            data,
            attempt=attempt,
            node=f"{number}-{start}",
            spec=spec,
            files=files,
            gang=gang,
            python=plan.python or self._fleet.python(link.name),
            address=link.address,
        )

    async def _start(  # noqa: PLR0913, PLR0917 - as above
        self, link: Link, attempt: str, plan: Plan, number: int, start: int, secrets: Mapping[str, str]
    ) -> None:
        python = plan.python or self._fleet.python(link.name)
        await link.call("start", attempt=attempt, node=f"{number}-{start}", python=python, secrets=dict(secrets))

    async def _states(self, attempt: str, hosts: Sequence[str], silent: list[float] | None = None) -> list[NodeState]:
        return await asyncio.gather(*(self._state(attempt, number, host, silent) for number, host in enumerate(hosts)))

    async def _state(self, attempt: str, number: int, host: str, silent: list[float] | None) -> NodeState:
        """Return what is known of a node; to `silent` it adds for how long the processes of one that runs are so."""
        link, asked = await self._fleet.link(host), time.monotonic()
        try:
            asking: dict[str, Any] = {"attempt": attempt, "node": number, "stall": silent is not None}
            found, _ = await link.call("status", within=ANSWER, patient=False, **asking)
        except UnreachableError as error:
            known = _memory.end_of(self._key(attempt), number)
            away = _memory.silent_for(link.endpoint.key, asked)
            if known is not None:
                return NodeState(host=host, status=known)
            if away < self.address.lost_after:
                if silent is not None:
                    silent.append(0.0)  # nobody knows
                return NodeState(host=host, status=Status(Phase.RUNNING))
            words = f"no answer for {away:.0f} s: {error}"
            return NodeState(host=host, status=Status(Phase.LOST, message=words))
        _memory.answered(link.endpoint.key)
        status = status_from(found["status"])
        _memory.keep(self._key(attempt), number, status)
        if silent is not None and status.phase is Phase.RUNNING:
            silent.append(float(found["silent"]))
        return NodeState(host=host, status=status)

    def _end(self, attempt: str, number: int, host: str, reason: str, why: str) -> None:
        async def work() -> None:
            link = await self._fleet.link(host)
            asked: dict[str, Any] = {"grace": FOLLOW_GRACE, "reason": reason, "why": why}
            await link.call("end", patient=False, attempt=attempt, node=number, **asked)

        _memory.in_background(("end", self._key(attempt), number), work)

    async def _bring_back(self, attempt: str, hosts: Sequence[str], number: int, running: Sequence[int]) -> None:
        """Start a node again whose host answers, with what another node has; else leave it to a later look."""
        if not running or not _memory.may_try(self._key(attempt), number):
            return
        link, source = await self._fleet.link(hosts[number]), await self._fleet.link(hosts[running[0]])
        found, _ = await link.call("status", within=ANSWER, patient=False, attempt=attempt, node=number)
        if status_from(found["status"]).phase is Phase.RUNNING:
            return
        known, _ = await source.call("attempt", attempt=attempt)
        plan = Plan.from_json(known["plan"])
        copied, data = await source.call("copy", attempt=attempt, node=running[0], secrets=list(plan.secrets))
        await link.call("claim", attempt=attempt, plan=known["plan"])
        start = int(found["start"]) + 1
        await self._prepare(link, attempt, plan, number, start, copied["files"], copied["gang"], data)
        await self._start(link, attempt, plan, number, start, copied["secrets"])

    async def _logs(self, attempt: str, number: int, host: str, cursor: Cursor) -> list[LogChunk]:
        link = await self._fleet.link(host)
        try:
            found, data = await link.call(
                "logs", within=ANSWER * 2, patient=False, attempt=attempt, node=number, cursor=asdict(cursor)
            )
        except UnreachableError:
            return []  # they come when it answers again
        chunks, at = [], 0
        for name, size, offset, skipped in found["chunks"]:
            chunks.append(LogChunk(name, data[at : at + size], offset, skipped))
            at += size
            _log_nodes[self._key(attempt), name] = number
        while len(_log_nodes) > _KEPT:
            _log_nodes.popitem(last=False)
        return chunks


def _never_started(state: NodeState) -> bool:
    return state.status.message == NEVER_STARTED


def _known(handle: Handle) -> tuple[list[str], Shape]:
    """Return the hosts of a gang's nodes, and its shape, as its handle holds them."""
    details = handle.details
    if not details.get("hosts"):
        return [], Shape(nodes=(), roles={}, anchored=False)
    return [str(host) for host in details["hosts"]], Shape.from_json(details["shape"])
