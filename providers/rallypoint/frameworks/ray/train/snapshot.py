"""Keeps a whole copy of Ray Train's record of its checkpoints, which Ray Train rewrites in place.

A controller that is killed while it writes the record leaves half of it, and no later run of that name starts. In a
bucket an object is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

RECORD = "checkpoint_manager_snapshot.json"
_COPY = ".rallypoint-snapshot.json"


def keep(folder: Path) -> None:
    """Copy the record of a run's folder, if it is whole."""
    with suppress(FileNotFoundError):
        if _is_whole(folder / RECORD):
            _put(folder / RECORD, folder / _COPY)


def mend(folder: Path) -> None:
    """Put the copy back where the record is torn; without a copy, take the torn one away."""
    record, copy = folder / RECORD, folder / _COPY
    if not record.exists() or _is_whole(record):
        return
    if copy.exists():
        _put(copy, record)
    else:
        record.unlink()  # it was torn at the first checkpoint


def _put(source: Path, target: Path) -> None:
    draft = target.with_name(f"{target.name}.tmp")
    shutil.copyfile(source, draft)
    draft.replace(target)


def _is_whole(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False
