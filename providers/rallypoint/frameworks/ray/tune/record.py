"""Whole copies of Ray Tune's record of a sweep: a killed driver may leave half of a file."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_COPY = ".rallypoint-record"  # beside the folder of a sweep
_TORN = (".json", ".pkl")


def copies_of(sweep: Path) -> Path:
    """Return the folder of the copies of a sweep's record."""
    return sweep.with_name(f"{_COPY}-{sweep.name}")


def keep_record(source: Path, target: Path) -> None:
    """Copy the files of a record. Ray Tune has just written them, and writes the next ones in this thread."""
    target.mkdir(exist_ok=True)
    for path in _files(source):
        with suppress(FileNotFoundError):
            _put(path, target / path.name)


def mend_record(sweep: Path) -> None:
    """Put copies back where a killed driver left half of a file of a sweep's record."""
    for path in _files(sweep):
        copy = copies_of(sweep) / path.name
        if not _is_whole(path):
            if copy.exists():
                _put(copy, path)
            else:
                path.unlink()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in _TORN and path.is_file()] if folder.is_dir() else []


def _put(source: Path, target: Path) -> None:
    draft = target.with_name(f"{target.name}.tmp")
    shutil.copyfile(source, draft)
    draft.replace(target)


def _is_whole(path: Path) -> bool:
    data = path.read_bytes()
    if path.suffix == ".pkl":
        return data.endswith(b".")  # the opcode that ends a pickle
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
