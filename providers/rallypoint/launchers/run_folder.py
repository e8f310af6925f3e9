"""An attempt's folder on this machine: who may use it, and how it is read.

The job writes into it too, and other users of the host may try to. So nothing in it is reached through a link, nothing
but a regular file is opened, and a folder that somebody else could have prepared is refused: what lies in it is run.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError, PreflightError

if TYPE_CHECKING:
    from pathlib import Path

_ATTEMPT = re.compile(r"rp-[a-z0-9-]{1,60}")
# What `worker` names logs: others could not be shown, or are none of its.
_LOG = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]{0,200})\.log")
_MAX_RECORD = 1 << 22  # bytes: a final record of thousands of processes has fewer
_NO_SUCH_FILE = {errno.ENOENT, errno.ELOOP}


def check_attempt(attempt: str) -> None:
    """Raise for an id that is none of an attempt.

    Raises:
        LaunchError: The id is none; it may come from the store, and names a folder.
    """
    if not _ATTEMPT.fullmatch(attempt):
        msg = f"got the attempt's id {attempt[:80]!r}, expected one such as 'rp-train-0123456789-a1'"
        raise LaunchError(msg)


def folder_of(root: Path, attempt: str) -> Path:
    """Return the folder of an attempt.

    Raises:
        LaunchError: The id is none; it may come from the store, and names a folder here.
    """
    check_attempt(attempt)
    return root / attempt


def make_folder(root: Path, attempt: str) -> Path:
    """Return an attempt's folder, made for this user alone, or for the group if it may write to the root.

    Raises:
        PreflightError: Others could have written what is in it, or the root cannot be written.
    """
    folder = folder_of(root, attempt)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        group = _shared(root)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        else:
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | (stat.S_IRWXG if group else 0))
        check_folder(root, attempt)
    except OSError as error:
        msg = f"cannot write to the launcher's folder {root}: {error.strerror}; correct it in the connection"
        raise PreflightError(msg) from error
    return folder


def check_folder(root: Path, attempt: str) -> None:
    """Raise for a folder that others could have made or filled.

    Raises:
        PreflightError: It is one, or a link to a folder.
        FileNotFoundError: There is none.
    """
    folder, group, above = folder_of(root, attempt), _shared(root), root.stat()
    found = folder.lstat()
    mine = found.st_uid == os.geteuid() or (group and found.st_gid == above.st_gid)
    _refuse_if(not stat.S_ISDIR(found.st_mode), folder, "is no folder")
    _refuse_if(not mine, folder, f"belongs to user id {found.st_uid}")
    _refuse_if(bool(found.st_mode & stat.S_IWOTH), folder, "every user of this host may write to")


def _shared(root: Path) -> bool:
    """Return whether the launcher's folder is shared with its group."""
    found = root.stat()
    group = bool(found.st_mode & stat.S_IWGRP)
    _refuse_if(bool(found.st_mode & stat.S_IWOTH), root, "every user of this host may write to")
    _refuse_if(not group and found.st_uid not in {0, os.geteuid()}, root, f"belongs to user id {found.st_uid}")
    return group


def _refuse_if(wrong: bool, folder: Path, what: str) -> None:  # noqa: FBT001 - the condition, in the order of speech
    if wrong:
        msg = (
            f"got the launcher's folder {folder}, which {what}, expected one that only user id {os.geteuid()} (or its "
            "group) can write, since what lies there is run: correct its mode, or name another one in the connection"
        )
        raise PreflightError(msg)


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the JSON object in a file of the folder; None if there is no such regular file.

    Raises:
        LaunchError: It is no JSON object.
    """
    try:
        file = open_inside(folder, name)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            return None
        raise
    with os.fdopen(file, "rb") as stream:
        data = stream.read(_MAX_RECORD + 1)
    try:
        value = json.loads(data) if len(data) <= _MAX_RECORD else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise unreadable(folder / name)
    return value


def unreadable(file: Path) -> LaunchError:
    """Return the error of a record that somebody else has overwritten."""
    return LaunchError(
        f"{file} is no record of Rallypoint's: stop what still runs of the attempt, then delete its folder"
    )


def log_names(folder: Path) -> list[str]:
    """Return the names of the logs in the folder, without those that no process of a gang has."""
    try:
        return sorted(match[1] for file in (folder / "logs").iterdir() if (match := _LOG.fullmatch(file.name)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_log(name: str) -> bool:
    """Return whether a process of a gang may have a log of that name."""
    return _LOG.fullmatch(f"{name}.log") is not None


def open_inside(folder: Path, *names: str) -> int:
    """Open a regular file below a folder to be read, and return its descriptor. No link is followed, none waited for.

    Raises:
        OSError: There is none: with ``ELOOP`` if something else is in its place.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    found = os.open(folder, flags | os.O_DIRECTORY)
    try:
        for name in names:
            above, found = found, os.open(name, flags, dir_fd=found)
            os.close(above)
        regular = stat.S_ISREG(os.fstat(found).st_mode)
    except BaseException:
        os.close(found)
        raise
    if not regular:
        os.close(found)
        raise OSError(errno.ELOOP, "no regular file", str(folder.joinpath(*names)))
    return found
