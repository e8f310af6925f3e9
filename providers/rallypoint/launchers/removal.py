"""Removes what ended attempts left on this machine.

Their last words stay, some hundred bytes: by them a submitter that was stopped for a month finds that its attempt has
been, and starts nothing. They go with the rest once the whole stage is forgotten.
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LAST_WORDS = frozenset(
    {"cancel.json", "end.json", "ended.json", "final.json", "job.json", "started.json", "supervisor.lock"}
)
_GONE = ".gone-"  # <_GONE><attempt>-<random>: what was moved away to be deleted


def left_in(folder: Path) -> int:
    """Return the bytes of a run folder besides its last words; 0 if there is none."""
    with suppress(FileNotFoundError):
        return sum(_size(entry) for entry in _entries(folder) if entry.name not in _LAST_WORDS)
    return 0


def remove_output(folder: Path) -> None:
    """Delete a run folder's content besides its last words.

    Raises:
        OSError: A part of it cannot be deleted.
    """
    with suppress(FileNotFoundError):
        for entry in _entries(folder):
            if entry.name not in _LAST_WORDS:
                _delete(entry.path)


def remove_folder(folder: Path) -> None:
    """Delete a run folder; killed in the middle, it leaves the whole folder, or nothing by which it is found.

    Raises:
        OSError: A part of it cannot be deleted.
    """
    gone = folder.with_name(f"{_GONE}{folder.name}-{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        folder.rename(gone)
        _delete(str(gone))
    for left in folder.parent.glob(f"{_GONE}*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _delete(path: str) -> None:
    with suppress(FileNotFoundError):  # another one is at it, too
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114 - of an entry, whose path is text
            shutil.rmtree(path)
        else:
            os.unlink(path)  # noqa: PTH108 - likewise


def _size(entry: os.DirEntry[str]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return entry.stat(follow_symlinks=False).st_size
    total = 0
    for where, _, names in os.walk(entry.path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(where, name)).st_size  # noqa: PTH118 - of a walk, whose paths are text
    return total
