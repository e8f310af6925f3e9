"""Small objects at paths of the store, some of them created only once: what a deploy keeps beyond its stage."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from rallypoint.worker.bucket import Bucket


class Records(Protocol):
    """Objects of a few kilobytes, except for packages."""

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; of several callers with different data, one gets True."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing an older one."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return an object's content; None if it is absent."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects directly below a folder."""
        ...

    def delete(self, path: str) -> None:
        """Delete an object; an absent one is fine."""
        ...


def open_records(store_uri: str) -> Records:
    """Return the records of a store: a ``file://`` folder, or a bucket's URI."""
    if store_uri.startswith("file://"):
        return _FolderRecords(Path(unquote(store_uri.removeprefix("file://"))))
    return _BucketRecords(store_uri)


class _FolderRecords:
    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, path: str, data: bytes) -> bool:
        target, draft = self._draft(path, data)
        try:
            target.hardlink_to(draft)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def write(self, path: str, data: bytes) -> None:
        target, draft = self._draft(path, data)
        draft.replace(target)

    def read(self, path: str) -> bytes | None:
        try:
            return self._path(path).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return [entry.name for entry in self._path(folder).iterdir() if entry.is_file()]
        return []

    def delete(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def _path(self, path: str) -> Path:
        return self._root.joinpath(*path.split("/"))

    def _draft(self, path: str, data: bytes) -> tuple[Path, Path]:
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return target, draft


class _BucketRecords:
    def __init__(self, uri: str) -> None:
        self._bucket = Bucket(uri)

    def create(self, path: str, data: bytes) -> bool:
        # An answer may be lost and the request sent again: what is in the way is then this call's own.
        return self._bucket.create(path, data) or self.read(path) == data

    def write(self, path: str, data: bytes) -> None:
        self._bucket.write(path, data)

    def read(self, path: str) -> bytes | None:
        try:
            return self._bucket.read(path)
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        return self._bucket.names(folder)

    def delete(self, path: str) -> None:
        self._bucket.delete([path])
