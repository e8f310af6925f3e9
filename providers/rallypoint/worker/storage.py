"""Keeps folders and files in the store, from inside the job: checkpoints and artifacts, whole or not at all.

A process may be killed at any instruction. What `Storage.commit` publishes is then the old content or the new one;
how that is done in a folder and in a bucket is told in `storage_folder` and `storage_bucket`.

Everything here is synchronous. Folders need the standard library alone; buckets need the package ``obstore``.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

from rallypoint.worker.bucket import CLASSES, StorageError
from rallypoint.worker.storage_bucket import BucketStorage
from rallypoint.worker.storage_folder import FolderStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Storage", "StorageError", "open_storage", "scratch_folder"]


class Storage(Protocol):
    """Where one generation of a stage keeps its folders and files.

    Names are relative, with ``/`` between their parts. A committed folder holds no other committed folder.

    Attributes:
        uri: The URI of the root that names are relative to.
    """

    uri: str

    def scratch(self) -> str:
        """Return a new, empty folder to write into, see `scratch_folder`; unseen by `names`, and gone with a commit."""
        ...

    def commit(self, folder: str, name: str) -> str:
        """Publish a folder under a name, all or nothing, in place of what was there.

        Args:
            folder: A folder from `scratch`; it is gone afterwards.
            name: What to publish it as.

        Returns:
            The URI under which the content can be read.

        Raises:
            ValueError: The name cannot be used, or the folder holds a link to a folder.
            OSError: The store cannot be written.
        """
        ...

    def commit_file(self, path: str, name: str) -> str:
        """Publish a copy of one file under a name, all or nothing, in place of an older file.

        Returns:
            The file's URI.

        Raises:
            ValueError: The name cannot be used.
            OSError: The store cannot be written.
        """
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the names of the committed folders directly below ``prefix``, sorted, without the prefix."""
        ...

    def fetch(self, name: str) -> str:
        """Return a local folder with the content of a committed one, to be read only.

        Raises:
            FileNotFoundError: No such folder was committed.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a committed folder; an absent one is fine."""
        ...


@contextmanager
def scratch_folder(storage: Storage) -> Iterator[str]:
    """Lend a new, empty folder to write into and to commit.

    What is not committed is removed, whatever fails: a disk that it filled then has room for the error to be told and
    for the retry. Only a killed process leaves it behind; a day later it is removed with the next look at the store.

    Args:
        storage: Where it is to be committed.
    """
    folder = storage.scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_storage(uri: str) -> Storage:
    """Open the storage at a URI.

    Args:
        uri: ``file:///folder``, or ``s3://``, ``gs://`` or ``az://`` with bucket and prefix, whose credentials come
            from the environment.

    Raises:
        ValueError: The URI is none of these.
        ModuleNotFoundError: The store is a bucket and this Python has no obstore.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "file" and rest.startswith("/"):
        return FolderStorage(unquote(rest))
    if scheme in CLASSES and rest.partition("/")[0]:
        return BucketStorage(uri)
    msg = f"got the store {uri!r}, expected file:///folder, s3://, gs:// or az://; correct the store's URI"
    raise ValueError(msg)
