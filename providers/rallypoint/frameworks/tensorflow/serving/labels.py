"""The version labels of one model in a server's model config file, a ``ModelServerConfig`` as protobuf text.

Only the labels of the one model are replaced: other models, comments and fields that are not known here stay as they
are, byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TOKEN = re.compile(r"""\s+|\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>\[\]:;,]|[^\s{}<>\[\]:;,"'\#]+""")
_OPEN, _CLOSE = {"{": "}", "<": ">", "[": "]"}, "}>]"
_INDENT = "  "


class ConfigFileError(ValueError):
    """The server's model config file is none, or lists no such model."""


@dataclass(frozen=True)
class _Field:
    """A field of a message in protobuf's text form.

    Args:
        name: Its name.
        start: Where it begins in the text.
        end: Where it ends.
        value: The text of a plain value.
        inside: Where the messages that it holds begin and end; several for a list.
    """

    name: str
    start: int
    end: int
    value: str
    inside: tuple[tuple[int, int], ...]


def labels_of(text: str, model: str) -> dict[str, int]:
    """Return the labels of a model, with the versions that they name.

    Raises:
        ConfigFileError: The text is no such file, or lists no such model.
    """
    begin, end = _model(text, model)
    found: dict[str, int] = {}
    for field in _fields(text, begin, end):
        if field.name == "version_labels":
            for inside in field.inside:
                entry = {each.name: each.value for each in _fields(text, *inside)}
                found[_plain(entry.get("key", ""))] = int(entry.get("value", "0") or 0)
    return found


def with_labels(text: str, model: str, labels: Mapping[str, int]) -> str:
    """Return the text with these labels of a model in the place of all that it had.

    Raises:
        ConfigFileError: The text is no such file, or lists no such model.
    """
    begin, end = _model(text, model)
    cut = [(field.start, field.end) for field in _fields(text, begin, end) if field.name == "version_labels"]
    body, at = "", begin
    for start, stop in cut:
        body += text[at:start].rstrip()
        at = stop
    body += text[at:end].rstrip()
    line = text.rfind("\n", 0, begin) + 1
    indent = text[line : line + len(text[line:]) - len(text[line:].lstrip(" \t"))]
    rows = "".join(
        f"\n{indent}{_INDENT}version_labels {{ key: '{name}' value: {version} }}"
        for name, version in sorted(labels.items())
    )
    return f"{text[:begin]}{body}{rows}\n{indent}{text[end:]}"


def _model(text: str, model: str) -> tuple[int, int]:
    """Return where the message that configures a model begins and ends."""
    seen = []
    for top in _fields(text, 0, len(text)):
        for listed in top.inside if top.name == "model_config_list" else ():
            for field in _fields(text, *listed):
                for inside in field.inside if field.name == "config" else ():
                    name = next((_plain(each.value) for each in _fields(text, *inside) if each.name == "name"), "")
                    if name == model:
                        return inside
                    seen.append(name)
    msg = f"the model config file lists {', '.join(map(repr, seen)) or 'no model'}, expected {model!r} in it: add it"
    raise ConfigFileError(msg)


def _fields(text: str, begin: int, end: int) -> Iterator[_Field]:
    tokens = list(_tokens(text, begin, end))
    at = 0
    while at < len(tokens):
        start, name = tokens[at]
        if name in ",;":
            at += 1
            continue
        if name in _OPEN or name in _CLOSE or name == ":":
            raise _broken(text, start)
        at += 1
        if at < len(tokens) and tokens[at][1] == ":":
            at += 1
        if at >= len(tokens):
            raise _broken(text, start)
        where, word = tokens[at]
        if word in _OPEN:
            close = _matching(text, tokens, at)
            spans = [(where + 1, tokens[close][0])] if word != "[" else list(_listed(text, tokens, at + 1, close))
            at = close
            value, stop = "", tokens[close][0] + 1
        else:
            spans, value, stop = [], word, where + len(word)
            while at + 1 < len(tokens) and tokens[at + 1][1][0] in "\"'" and word[0] in "\"'":  # adjacent strings
                at += 1
                value, stop = value[:-1] + tokens[at][1][1:], tokens[at][0] + len(tokens[at][1])
        at += 1
        yield _Field(name, start, stop, value, tuple(spans))


def _listed(text: str, tokens: list[tuple[int, str]], at: int, end: int) -> Iterator[tuple[int, int]]:
    while at < end:
        if tokens[at][1] in "{<":
            close = _matching(text, tokens, at)
            yield tokens[at][0] + 1, tokens[close][0]
            at = close
        at += 1


def _matching(text: str, tokens: list[tuple[int, str]], at: int) -> int:
    expected = []
    for index in range(at, len(tokens)):
        word = tokens[index][1]
        if word in _OPEN:
            expected.append(_OPEN[word])
        elif word in _CLOSE:
            if word != expected.pop():
                break
            if not expected:
                return index
    raise _broken(text, tokens[at][0])


def _tokens(text: str, begin: int, end: int) -> Iterator[tuple[int, str]]:
    at = begin
    while at < end:
        match = _TOKEN.match(text, at, end)
        if match is None:
            raise _broken(text, at)
        if not match[0].isspace() and not match[0].startswith("#"):
            yield at, match[0]
        at = match.end()


def _plain(value: str) -> str:
    return value[1:-1] if value[:1] in ("'", '"') else value


def _broken(text: str, at: int) -> ConfigFileError:
    line = text.count("\n", 0, at) + 1
    msg = f"line {line} of the model config file cannot be read as protobuf text: correct the file"
    return ConfigFileError(msg)
