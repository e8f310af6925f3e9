"""Compares hosts before anything is started on them: a clear error instead of a gang that hangs in its set-up."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import HostReport
from rallypoint.launchers.placement import events_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.launchers.ssh.links import Link
    from rallypoint.spec.gang import Gang

MAX_SKEW = 30.0  # seconds that two hosts' clocks may differ: events are ordered by them
REACH = 5.0  # seconds that a host has to reach another one


async def surveyed(link: Link, python: str, requires: Sequence[str]) -> HostReport:
    """Return what there is on a host; never raises for a host that does not answer."""
    try:
        before = time.time()
        found, _ = await link.call("facts", python=python, requires=list(requires))
    except LaunchError as error:
        return HostReport(host=link.name, problems=(str(error),))
    return _report(link, found, before)


async def check_hosts(links: Sequence[Link], gang: Gang, pythons: Mapping[str, str]) -> None:
    """Raise if a gang cannot run on hosts that answer.

    Args:
        links: The hosts, the first one first.
        gang: The gang.
        pythons: The interpreter on each.

    Raises:
        PreflightError: It cannot, now or later.
        LaunchError: It cannot now.
    """
    job = {
        "job": gang.name,
        "requires": list(gang.requires),
        "pickled_by": gang.pickled_by,
        "needs_files": list(gang.needs_files),
        "events": events_folder(gang.roles[0].env),
    }
    tries = (_checked(link, pythons[link.name], job) for link in links)
    found = await asyncio.gather(*tries, return_exceptions=True)
    reports = [each for each in found if isinstance(each, HostReport)]
    refused = [each for each in found if isinstance(each, BaseException)]
    if other := next((error for error in refused if not isinstance(error, PreflightError)), None):
        raise other
    gpus = max((role.resources.gpus for role in gang.roles), default=0)
    problems = [*map(str, refused), *different(reports), *(words for report in reports for words in report.problems)]
    problems += [
        f"{report.host} has {report.gpus} GPUs, and a process of the job needs {gpus}"
        for report in reports
        if report.gpus < gpus
    ]
    if problems:
        raise PreflightError("; ".join(problems[:8]))
    if silent := await unreached(links):
        msg = f"{'; '.join(silent[:8])}: hosts of a gang have to reach each other, open the network or name address="
        raise LaunchError(msg)


async def _checked(link: Link, python: str, job: Mapping[str, Any]) -> HostReport:
    before = time.time()
    found, _ = await link.call("check", python=python, **job)
    return _report(link, found, before)


def _report(link: Link, found: Mapping[str, Any], before: float) -> HostReport:
    after = time.time()
    # The host read its clock at the end of its work; what it took to come back is a small part of the whole.
    skew = 0.0 if before - 1 <= found["time"] <= after else found["time"] - after
    missing = [f"{link.name} has no {name}" for name in found["missing"]]
    return HostReport(
        host=link.name,
        address=link.address,
        python=found["python"],
        versions={name: version for name, version in found["versions"].items() if version},
        skew=skew,
        gpus=found["gpus"],
        cpus=found.get("cpus"),
        problems=tuple(missing),
    )


def different(reports: Sequence[HostReport]) -> list[str]:
    """Return how hosts that answer differ where they may not."""
    answered = [report for report in reports if report.python]
    found = []
    pythons = {report.python: report.host for report in answered}
    if len(pythons) > 1:
        found.append(f"Python differs: {_words(pythons)}")
    for name in dict.fromkeys(name for report in answered for name in report.versions):
        versions = {report.versions[name]: report.host for report in answered if name in report.versions}
        if len(versions) > 1:
            found.append(f"{name} differs: {_words(versions)}")
    skews = [(report.skew or 0.0, report.host) for report in answered]
    if skews and max(skews)[0] - min(skews)[0] > MAX_SKEW:
        found.append(
            f"the clocks of {min(skews)[1]} and {max(skews)[1]} differ by {max(skews)[0] - min(skews)[0]:.0f} s: "
            "have NTP set them"
        )
    return found


def _words(found: Mapping[str, str]) -> str:
    return ", ".join(f"{value} on {host}" for value, host in sorted(found.items()))


async def unreached(links: Sequence[Link]) -> list[str]:
    """Return which hosts do not reach the first one, as all processes of a gang have to."""
    first, *others = links
    if not others:
        return []
    found, _ = await first.call("listen", address=first.address)
    try:
        tries = [
            link.call("reach", host=first.address, port=found["port"], timeout=REACH, within=REACH + 10)
            for link in others
        ]
        answers = await asyncio.gather(*tries)
    finally:
        with suppress(LaunchError):
            await first.call("unlisten", port=found["port"])
    return [
        f"{link.name} does not reach {first.name} at {first.address} ({answer['error']})"
        for link, (answer, _) in zip(others, answers, strict=True)
        if answer["error"]
    ]
