"""How the launcher and its agent on a host talk: frames of a JSON object and bytes, over the agent's stdin and stdout.

Standard library only; it is shipped.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

HEAD = struct.Struct(">II")  # bytes of the JSON text, bytes that follow it
MARK = b"\nRALLYPOINT-AGENT\n"  # what comes before it on stdout is what a shell's start-up files say
MAX_TEXT = 1 << 26  # bytes


def frame(value: Mapping[str, Any], data: bytes = b"") -> bytes:
    """Return a frame's bytes."""
    text = json.dumps(value).encode()
    return HEAD.pack(len(text), len(data)) + text + data


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Return the next frame; None at the end of the stream."""
    head = _read(stream, HEAD.size)
    if head is None:
        return None
    text, data = HEAD.unpack(head)
    body = _read(stream, text + data)
    return None if body is None else (json.loads(body[:text]), body[text:])


def _read(stream: BinaryIO, size: int) -> bytes | None:
    parts, left = [], size
    while left:
        part = stream.read(left)
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
