"""Shows what there is on a launcher's hosts, and what is wrong with them, before anything is queued."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from rallypoint.cli.terminal import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rallypoint.launchers.base import HostReport

_SKEW = 1.0  # seconds of a clock that are worth a colour


def show_hosts(reports: Sequence[HostReport]) -> RenderableType:
    """Return the hosts as a table, and their problems below it."""
    names = list(dict.fromkeys(name for report in reports for name in report.versions))
    table = Table()
    for column in ("host", "address", "Python", *names, "clock", "CPUs", "GPUs"):
        table.add_column(text(column), overflow="fold")
    for report in reports:
        off = report.skew is not None and abs(report.skew) > _SKEW
        clock = "" if report.skew is None else f"{report.skew:+.1f} s" if off else "right"
        cells = [
            text(report.host, style="red" if report.problems else ""),
            text(report.address),
            text(report.python or "no answer"),
            *(text(report.versions.get(name, "")) for name in names),
            text(clock, style="yellow" if off else ""),
            text("" if report.cpus is None else str(report.cpus)),
            text(str(report.gpus) if report.python else ""),
        ]
        table.add_row(*cells)
    problems = [text(f"{report.host}: {words}", style="red") for report in reports for words in report.problems]
    return Group(table, *problems)


def hosts_json(reports: Sequence[HostReport]) -> list[dict[str, Any]]:
    """Return the hosts as JSON."""
    return [{**asdict(report), "versions": dict(report.versions)} for report in reports]
