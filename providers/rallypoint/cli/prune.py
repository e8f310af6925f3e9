"""Removes what old attempts have left, after showing it."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.table import Table

from rallypoint.cli.terminal import complain, output, say, text
from rallypoint.errors import RallypointError
from rallypoint.stages.prune import remove
from rallypoint.stages.retention import What

if TYPE_CHECKING:
    from rallypoint.stages.prune import Removal
    from rallypoint.stages.store import Store

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_NAMES = {What.RECORD: "attempts", What.PACKAGES: "files"}  # of what the numbers count


def parse_age(given: str) -> timedelta:
    """Return the time that a text such as ``30d`` or ``12h`` names.

    Raises:
        ValueError: It names none.
    """
    match = re.fullmatch(r"(\d{1,6})([smhdw])", given.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"got {given!r}, expected a number and a unit, such as 30d, 12h, 90m, 45s or 2w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def show_going(found: list[Removal]) -> None:
    """Print what would go, and how many bytes that are."""
    table = Table("stage or application", "what", "numbers", "size")
    for going in found:
        for what in dict.fromkeys(part.what for part in going.parts):
            parts = [part for part in going.parts if part.what is what]
            numbers = ", ".join(str(part.number) for part in parts)
            size = decimal(sum(part.size for part in parts))
            shown = f"{numbers} {_NAMES[what]}" if what in _NAMES else numbers
            table.add_row(text(going.name), what.value, shown, size)
    if table.row_count:
        output().print(table)
    for going in found:
        if going.problem:
            complain(f"{going.name}: {going.problem}")


def remove_all(store: Store, found: list[Removal]) -> bool:
    """Remove what was found, one after the other, and return whether all of it is gone."""
    freed, whole = 0, True
    for going in found:
        whole = whole and not going.problem
        try:
            size = asyncio.run(remove(store, going))
        except RallypointError as error:
            complain(f"{going.name}: {error}")
            whole = False
            continue
        if going.parts and not size:
            say(f"{going.name} is in use again: it stays")
        freed += size
    say(f"removed {decimal(freed)}")
    return whole
