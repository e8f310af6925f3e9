"""The hosts of a launcher together: which of them answer, what they know of an attempt, and which of them it uses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError
from rallypoint.launchers.run_folder import check_attempt
from rallypoint.launchers.ssh.links import ANSWER, Endpoint, Link, UnreachableError, link_of
from rallypoint.launchers.ssh.plan import Plan, chosen, planned
from rallypoint.launchers.ssh.survey import check_hosts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from rallypoint.launchers.ssh.address import Access, Address
    from rallypoint.spec.gang import Gang


class Fleet:
    """Every host of a launcher.

    Args:
        address: The hosts.
        access: Credentials.
        ambient: Whether the keys and the configuration of the user whom this process runs as may be used.
    """

    def __init__(self, address: Address, access: Access, *, ambient: bool) -> None:
        self.address = address
        self._access = access
        self._ambient = ambient

    async def links(self) -> list[Link]:
        """Return the link to every host, in order."""
        return [await self.link(host.name) for host in self.address.hosts]

    async def link(self, name: str) -> Link:
        """Return the link to a host.

        Raises:
            LaunchError: It is none of the launcher's.
        """
        host = next((host for host in self.address.hosts if host.name == name), None)
        if host is None:
            uri = self.address.uri
            msg = f"got the host {name!r} of an attempt, expected one of {uri}: name it there until it has ended"
            raise LaunchError(msg)
        endpoint = Endpoint(
            host=host,
            root=self.address.root,
            python=host.python or self.address.python,
            known_hosts=self.address.known_hosts,
            access=self._access,
            ambient=self._ambient,
        )
        return await link_of(endpoint)

    def python(self, name: str) -> str:
        """Return the interpreter of a host."""
        host = next(host for host in self.address.hosts if host.name == name)
        return host.python or self.address.python

    async def look(self, attempt: str, *, launching: bool = False) -> tuple[Plan | None, bool, dict[str, str]]:
        """Return an attempt's plan, whether it was cancelled, and which hosts do not answer, and why.

        Raises:
            LaunchError: None of those that answer knows it, and they are too few to say that it was never launched.
        """
        check_attempt(attempt)
        links = await self.links()
        timeout = self._access.connect_timeout * 2 + ANSWER
        found = await asyncio.gather(
            *(link.call("attempt", attempt=attempt, within=timeout) for link in links), return_exceptions=True
        )
        silent: dict[str, str] = {}
        plans: list[dict[str, Any]] = []
        cancelled = False
        for link, answer in zip(links, found, strict=True):
            if isinstance(answer, UnreachableError):
                silent[link.name] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                cancelled = cancelled or answer[0]["cancelled"]
                plans += [answer[0]["plan"]] if answer[0]["plan"] else []
        answering = len(links) - len(silent)
        if not plans and not cancelled and not launching and 2 * answering <= len(links):
            msg = f"too few hosts answer to say whether {attempt} runs: {'; '.join(silent.values())}"
            raise LaunchError(msg)
        plan = max(plans, key=plans.count) if plans else None
        return (Plan.from_json(plan) if plan else None), cancelled, silent

    async def plan(self, gang: Gang, attempt: str, silent: Mapping[str, str]) -> Plan:
        """Choose the hosts of an attempt, and check that they can run it.

        Raises:
            PreflightError: They cannot, now or later.
            LaunchError: They cannot now, or too few answer.
        """
        hosts = chosen(gang, [host.name for host in self.address.hosts], silent)
        links = [await self.link(name) for name in hosts if name not in silent]
        await check_hosts(links, gang, {link.name: gang.python or self.python(link.name) for link in links})
        names = [port for role in gang.roles for port in role.ports]
        found, _ = await links[0].call("ports", count=len(names))
        ports = dict(zip(names, found["ports"], strict=True))
        return planned(gang, attempt, hosts, first=links[0].address, ports=ports)

    async def claim(self, attempt: str, plan: Plan, silent: Mapping[str, str]) -> tuple[Plan, bool]:
        """Write the plan on every host that answers; return the one that counts, and whether the attempt is cancelled.

        The first host comes first: of two processes that launch at the same time, one finds the other's plan there.

        Raises:
            LaunchError: Another process launches it on other hosts, or its first host does not answer.
        """
        names = [host.name for host in self.address.hosts if host.name not in silent]
        cancelled = False
        for part in (names[:1], names[1:]):
            links = [await self.link(name) for name in part]
            found = await asyncio.gather(*(link.call("claim", attempt=attempt, plan=plan.to_json()) for link in links))
            for answer, _ in found:
                cancelled = cancelled or answer["cancelled"]
                if part == names[:1]:
                    plan = Plan.from_json(answer["plan"])
                elif answer["plan"] != plan.to_json():
                    msg = f"another process launches {attempt} on other hosts, which it alone reaches: retry later"
                    raise LaunchError(msg)
        if missing := [host for host in plan.hosts[:1] if host in silent]:
            msg = f"{attempt} was planned on {missing[0]}, which does not answer now: {silent[missing[0]]}"
            raise LaunchError(msg)
        return plan, cancelled

    async def on(self, nodes: Sequence[tuple[int, str]], work: Any, *, tolerant: bool = False) -> None:
        """Do something on hosts at the same time."""
        links = [(await self.link(host), number) for number, host in nodes]
        tasks: list[Awaitable[Any]] = [work(link, number) for link, number in links]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not (tolerant and isinstance(error, UnreachableError)):
                raise error
