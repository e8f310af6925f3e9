"""What can be kept, and under which names."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

HIDDEN = ".rallypoint-"  # names in a folder that start so are Rallypoint's own
MANIFEST = ".rallypoint.json"  # <name><MANIFEST>: what readers of a bucket believe
STALE = 24 * 60 * 60.0  # seconds after which what a killed process left may go
TRIES = 5  # of a reader that meets a writer
OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # why a folder cannot be renamed to a name
_MAX_PART = 180  # bytes: a file system takes 255, and a hidden name is longer than the name in it


def fault(path: str) -> str:
    """Return why a relative path means different things in different stores, the empty string if it does not."""
    parts = path.split("/")
    if "" in parts:
        return "has an empty part"
    if "." in parts or ".." in parts:
        return "has a part '.' or '..'"
    if re.search(r"[\x00-\x1f\x7f]", path):
        return "has a control character"
    return ""


def checked(name: str) -> str:
    """Return a name that a folder or a file can be kept under.

    Raises:
        ValueError: It cannot be used.
    """
    parts, wrong = name.split("/"), fault(name)
    if any(part.startswith(HIDDEN) or part.endswith(MANIFEST) for part in parts):
        wrong = f"has a part that starts with {HIDDEN!r} or ends with {MANIFEST!r}, which are Rallypoint's own"
    elif any(len(part.encode(errors="replace")) > _MAX_PART for part in parts):
        wrong = f"has a part of more than {_MAX_PART} bytes"
    if wrong:
        msg = f"got the name {name!r}, which {wrong}; expected one such as 'model' or 'tables/flights'"
        raise ValueError(msg)
    return name


def quoted(path: str) -> str:
    """Return a local path as it stands in a ``file://`` URI."""
    return quote(path, safe="/:+=@,;!$&'()*~")


def absent(uri: str) -> FileNotFoundError:
    """Return the error of a name under which nothing was committed."""
    msg = f"nothing whole was kept at {uri}; expected a folder that was committed: check its name"
    return FileNotFoundError(errno.ENOENT, msg)


def walk(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield every file of a tree, and every folder below its root, with whether it is a folder.

    Raises:
        ValueError: The tree holds a link to a folder.
        OSError: A part of it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in sorted(folders):
            path = os.path.join(parent, name)
            if os.path.islink(path):
                msg = f"got a link to a folder, {path}, expected files and folders; copy what it points to"
                raise ValueError(msg)
            yield path, True
        for name in sorted(files):
            yield os.path.join(parent, name), False
