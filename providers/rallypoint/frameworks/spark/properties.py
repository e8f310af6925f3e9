"""Spark's properties as a file that only this user can read, with what its UI has to hide."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REDACTION = "spark.redaction.regex"
# Spark's own, which a setting of the property replaces, and what it leaves out.
_REDACTED = "(?i)secret|password|token|access[.]?key|credential|account[.]key|private[.]?key"
_HADOOP = "spark.hadoop."
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}
_KEY_ESCAPES = {**_ESCAPES, " ": "\\ ", ":": "\\:", "=": "\\=", "#": "\\#", "!": "\\!"}
_UNESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}
_TOKEN = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)", re.DOTALL)
_LINE = re.compile(r"((?:[^\s=:\\]|\\.)+)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)


def with_secrets(conf: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """Return properties with the secret ones among them, and Spark told to hide these.

    Args:
        conf: Properties.
        secrets: Secret values by property.
    """
    regex = conf.get(REDACTION, _REDACTED)
    if secrets:
        # The UI shows Hadoop's properties, too: by the names that they have there.
        known = {*secrets, *(name.removeprefix(_HADOOP) for name in secrets)}
        names = "|".join(sorted(re.escape(name) for name in known))
        regex = f"{regex}|^(?i:{names})$"
    return {**conf, **secrets, REDACTION: regex}


def write_private(properties: Mapping[str, str]) -> str:
    """Write a properties file that only this user can read, and return its path.

    It lies in the attempt's folder, or else in one of its own.
    """
    folder = os.environ.get(context.RUN_DIR) or tempfile.mkdtemp(prefix="rallypoint-spark-")
    descriptor, path = tempfile.mkstemp(prefix="spark-", suffix=".properties", dir=folder)  # made with mode 0600
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(dump(properties))
    return path


def remove(path: str) -> None:
    """Remove a file if it is there."""
    Path(path).unlink(missing_ok=True)


def dump(properties: Mapping[str, str]) -> str:
    """Return properties as the text of a Java properties file."""
    lines = (f"{_escaped(name, _KEY_ESCAPES)}={_value(text)}" for name, text in sorted(properties.items()))
    return "".join(f"{line}\n" for line in lines)


def parse(lines: Iterable[str]) -> dict[str, str]:
    """Return the properties of a Java properties file's lines."""
    found: dict[str, str] = {}
    for line in _joined(lines):
        match = _LINE.fullmatch(line)
        if match:
            found[_unescaped(match[1])] = _unescaped(match[2]).strip()
    return found


def _joined(lines: Iterable[str]) -> Iterable[str]:
    """Yield logical lines: without comments, and with those joined that end in an odd number of backslashes."""
    held = ""
    for raw in lines:
        line = raw.rstrip("\r\n").lstrip(" \t\f")
        if not held and (not line or line[0] in "#!"):
            continue
        if (len(line) - len(line.rstrip("\\"))) % 2:
            held += line[:-1]
            continue
        yield held + line
        held = ""
    if held:
        yield held


def _value(text: str) -> str:
    escaped = _escaped(text, _ESCAPES)
    return f"\\{escaped}" if escaped.startswith(" ") else escaped


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(letter) or (letter if " " <= letter <= "~" else _unicode(letter)) for letter in text)


def _unicode(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _UNESCAPED.get(match[2], match[2])

    whole = _TOKEN.sub(one, text)
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of a character belong together
