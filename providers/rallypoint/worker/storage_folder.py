"""What a job keeps in a ``file://`` store.

A folder is written beside its place, made durable, and renamed into it. A folder that is replaced is first renamed to
a hidden name next to it, which readers fall back to while the place is empty.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import suppress

from rallypoint.worker.storage_names import HIDDEN, OCCUPIED, STALE, TRIES, absent, checked, quoted, walk

_SCRATCH = f"{HIDDEN}scratch"  # below the root: one folder for each that is being written, or removed
_REPLACED = f"{HIDDEN}old."  # <_REPLACED><name>.<time>-<random>: content that is being replaced


class FolderStorage:
    """The storage of a ``file://`` store.

    Args:
        root: The folder that names are relative to.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.normpath(root)
        self.uri = f"file://{quoted(self._root)}"
        _remove_stale(os.path.join(self._root, _SCRATCH))

    def scratch(self) -> str:
        """Return a new folder on the store's own file system, from where it can be renamed."""
        # Not tempfile.mkdtemp: what is committed is for the orchestrator to read, too, whoever runs it.
        folder = os.path.join(self._root, _SCRATCH, uuid.uuid4().hex)
        os.makedirs(folder)
        return folder

    def commit(self, folder: str, name: str) -> str:
        """Rename a folder from `scratch` into its place."""
        target = self._path(name)
        for path, _ in walk(folder):
            if not os.path.islink(path):
                _synchronise(path)
        _synchronise(folder)
        _make_folder(os.path.dirname(target))
        replaced = _replaced(target)
        while True:
            try:
                os.rename(folder, target)
                break
            except OSError as error:
                if error.errno not in OCCUPIED:
                    raise
            # From here to the rename above, readers find the old content under its hidden name.
            parent, last = os.path.split(target)
            aside = os.path.join(parent, f"{_REPLACED}{last}.{time.time_ns():020d}-{uuid.uuid4().hex[:8]}")
            with suppress(FileNotFoundError):  # another writer was faster
                os.rename(target, aside)
                replaced.append(aside)
        _synchronise(os.path.dirname(target))
        for each in replaced:
            self._discard(each)
        return f"{self.uri}/{quoted(name)}"

    def commit_file(self, path: str, name: str) -> str:
        """Rename a copy of a file into its place."""
        target = self._path(name)
        folder = self.scratch()
        try:
            made = os.path.join(folder, "file")
            shutil.copyfile(path, made)
            _synchronise(made)
            _make_folder(os.path.dirname(target))
            os.replace(made, target)
            _synchronise(os.path.dirname(target))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return f"{self.uri}/{quoted(name)}"

    def names(self, prefix: str) -> list[str]:
        """Return the names of the folders, and of those that are being replaced."""
        entries = _entries(self._path(prefix) if prefix else self._root)
        found = {_replaced_name(entry.name) or entry.name for entry in entries if entry.is_dir()}
        return sorted(name for name in found if not name.startswith(HIDDEN))

    def fetch(self, name: str) -> str:
        """Return the folder where it lies."""
        target = self._path(name)
        for _ in range(TRIES):  # a writer may be between its two renames
            if os.path.isdir(target):
                return target
            if replaced := _replaced(target):
                return replaced[-1]
        raise absent(f"{self.uri}/{quoted(name)}")

    def remove(self, name: str) -> None:
        """Remove a folder and what it replaced."""
        target = self._path(name)
        for each in [*_replaced(target), target]:  # the newest last: no older content may come to light
            self._discard(each)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, checked(name))

    def _discard(self, path: str) -> None:
        """Remove a folder (or file) so that nobody sees half of it; an absent one is fine."""
        gone = self.scratch()
        with suppress(FileNotFoundError):
            os.rename(path, os.path.join(gone, "content"))
            _synchronise(os.path.dirname(path))
        shutil.rmtree(gone, ignore_errors=True)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _replaced_name(entry: str) -> str:
    """Return the name that a hidden name was made for, the empty string for any other name."""
    return entry.removeprefix(_REPLACED).rpartition(".")[0] if entry.startswith(_REPLACED) else ""


def _replaced(target: str) -> list[str]:
    """Return the folders that were replaced at a place and are still there, the newest last."""
    parent, name = os.path.split(target)
    return sorted(entry.path for entry in _entries(parent) if _replaced_name(entry.name) == name and entry.is_dir())


def _make_folder(folder: str) -> None:
    """Make a folder and what is missing above it, each durable in its own parent."""
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        _make_folder(parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        _synchronise(parent)


def _synchronise(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(scratch: str) -> None:
    """Remove what killed processes left a day ago, as far as that is possible."""
    with suppress(OSError):
        for folder in _entries(scratch):
            # A folder's own time does not change when a file in it grows.
            inside = [os.path.join(where, name) for where, _, files in os.walk(folder) for name in (".", *files)]
            if all(os.lstat(path).st_mtime < time.time() - STALE for path in inside):
                shutil.rmtree(folder, ignore_errors=True)
