"""What the commands share in writing to a terminal; nothing that a job wrote may steer it."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from rallypoint.stages.rule import State
from rallypoint.stages.text import printable

if TYPE_CHECKING:
    from rallypoint.stages.failures import FailureReport

_PIPE_WIDTH = 160  # columns where nobody says how many there are
_STYLES = {
    State.LIVE: "cyan",
    State.PENDING: "yellow",
    State.SUCCEEDED: "green",
    State.FAILED: "bold red",
    State.CANCELLED: "yellow",
    State.LOST: "bold red",
}


def output() -> Console:
    """Return the console of standard output, for what was asked for."""
    return _console(stderr=False)


def messages() -> Console:
    """Return the console of standard error, for everything about it."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if known else _PIPE_WIDTH, highlight=False, soft_wrap=False)


def text(value: object, style: str = "") -> Text:
    """Return any value as text that is shown as it is: no markup, no terminal escapes."""
    return Text(printable(str(value)), style=style, overflow="fold")


def state_text(state: State) -> Text:
    """Return a state in its colour."""
    return Text(state.value, style=_STYLES.get(state, ""))


def say(message: str, style: str = "") -> None:
    """Write one line about what happens to standard error."""
    messages().print(text(message, style), soft_wrap=True)


def complain(message: str) -> None:
    """Write an error to standard error."""
    console = messages()
    console.print(Text("error: ", style="bold red") + text(message), soft_wrap=True)


def show_failure(report: FailureReport) -> None:
    """Write the report of a failure to standard error."""
    head, _, rest = report.render().partition("\n")
    console = messages()
    console.print(text(head, "bold red"), soft_wrap=True)
    console.print(text(rest), soft_wrap=True)


def when(seconds: float) -> str:
    """Return a time since the epoch as this machine's local time."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def took(start: float, end: float | None) -> str:
    """Return the time between two moments, the second one now if it is None."""
    seconds = max(0.0, (time.time() if end is None else end) - start)
    if seconds < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
