"""Makes what a job wrote harmless to show: no escape that a terminal obeys, whole lines, bounded lengths."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rallypoint.launchers.base import LogChunk

# Escape sequences in their 7-bit and 8-bit forms, then every other control character but tab and line feed, the other
# line separators of Unicode, and halves of surrogate pairs, which no encoder takes.
_CONTROL = re.compile(r"(?:\x1b\[|\x9b)[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BREAK = re.compile(r"\r\n|\n|\r(?=.)", re.DOTALL)  # a progress bar ends its lines by a carriage return alone
_LONGEST = 1 << 16  # characters of a line that is waited for


def printable(text: str) -> str:
    """Return text without terminal escapes and control characters; what a job prints may be hostile."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str) -> str:
    """Return text without control characters and line breaks."""
    return printable(" ".join(text.splitlines()))


class Lines:
    """Joins the chunks of processes' logs to whole lines that are safe to show."""

    def __init__(self) -> None:
        self._rest: dict[str, str] = {}
        self._decoders: dict[str, Any] = {}

    def take(self, chunk: LogChunk) -> list[str]:
        """Return the lines that a chunk completes."""
        decoder = self._decoders.setdefault(chunk.process, codecs.getincrementaldecoder("utf-8")("replace"))
        *whole, rest = _BREAK.split(self._rest.get(chunk.process, "") + decoder.decode(chunk.data))
        if len(rest) > _LONGEST:
            whole.append(rest)
            rest = ""
        self._rest[chunk.process] = rest
        return [printable(line) for line in whole]

    def break_off(self, process: str) -> list[str]:
        """Return a process's unfinished line, if there is one: what follows is not its continuation."""
        self._decoders.pop(process, None)
        rest = self._rest.pop(process, "")
        return [printable(rest)] if rest else []

    def left(self) -> list[tuple[str, str]]:
        """Return the last lines of processes that ended without a line's end, with the processes' names."""
        return [(process, printable(rest)) for process, rest in self._rest.items() if rest]
