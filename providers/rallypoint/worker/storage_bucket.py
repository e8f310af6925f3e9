"""What a job keeps in a bucket.

A bucket renames nothing. A folder's objects lie under a prefix of their own, and a small manifest, written last, names
them. Readers believe manifests only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from typing import Any

from rallypoint.worker.bucket import Bucket, StorageError
from rallypoint.worker.storage_names import MANIFEST, OCCUPIED, STALE, TRIES, absent, checked, walk

_VERSION = 1


class BucketStorage:
    """The storage of a bucket.

    Args:
        uri: The bucket and the prefix that names are relative to.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._bucket = Bucket(self.uri)

    def scratch(self) -> str:
        """Return a new folder on the job's own disk."""
        return tempfile.mkdtemp(prefix="rallypoint-")

    def commit(self, folder: str, name: str) -> str:
        """Upload a folder from `scratch` under a prefix of its own, then the manifest that names it."""
        before = self._manifest(checked(name))
        data = f"v-{uuid.uuid4().hex}"
        manifest: dict[str, Any] = {"v": _VERSION, "data": data, "files": [], "folders": []}
        for path, is_folder in walk(folder):
            relative = os.path.relpath(path, folder)
            manifest["folders" if is_folder else "files"].append(relative)
            if not is_folder:
                self._bucket.upload(path, f"{name}/{data}/{relative}")
        self._bucket.write(f"{name}{MANIFEST}", json.dumps(manifest).encode())
        self._remove_versions(name, keep=data, replaced=before)
        shutil.rmtree(folder, ignore_errors=True)
        return f"{self.uri}/{name}/{data}"

    def commit_file(self, path: str, name: str) -> str:
        """Upload a file; an object is there whole or not at all."""
        self._bucket.upload(path, checked(name))
        return f"{self.uri}/{name}"

    def names(self, prefix: str) -> list[str]:
        """Return the names that have a manifest."""
        found = self._bucket.names(checked(prefix) if prefix else "")
        return sorted(name.removesuffix(MANIFEST) for name in found if name.endswith(MANIFEST))

    def fetch(self, name: str) -> str:
        """Download what the manifest names, unless this host has it already."""
        checked(name)
        for _ in range(TRIES):
            if (manifest := self._manifest(name)) is None:
                break
            with suppress(FileNotFoundError):  # replaced while it was downloaded: the next manifest names what is there
                return self._download(name, manifest)
        raise absent(f"{self.uri}/{name}")

    def remove(self, name: str) -> None:
        """Delete the manifest, then what it named."""
        before = self._manifest(checked(name))
        self._bucket.delete([f"{name}{MANIFEST}"])
        self._remove_versions(name, keep=None, replaced=before)

    def _manifest(self, name: str) -> dict[str, Any] | None:
        try:
            manifest = json.loads(self._bucket.read(f"{name}{MANIFEST}"))
        except FileNotFoundError:
            return None
        if not isinstance(manifest, dict) or manifest.get("v") != _VERSION:
            msg = (
                f"got a manifest of another version at {self.uri}/{name}{MANIFEST}, expected version {_VERSION}; "
                "run the job with the Rallypoint that wrote it"
            )
            raise StorageError(msg)
        return manifest

    def _download(self, name: str, manifest: dict[str, Any]) -> str:
        """Return the content's folder in this host's cache, which the ranks of a host share."""
        prefix = f"{name}/{manifest['data']}"
        cached = os.path.join(_cache(), hashlib.sha256(f"{self.uri}/{prefix}".encode()).hexdigest()[:32])
        if os.path.isdir(cached):
            return cached
        part = f"{cached}.{uuid.uuid4().hex}"
        os.makedirs(part)
        try:
            for relative in manifest["folders"]:
                os.makedirs(_inside(part, relative), exist_ok=True)
            for relative in manifest["files"]:
                self._bucket.download(f"{prefix}/{relative}", _inside(part, relative))
            try:
                os.rename(part, cached)
            except OSError as error:  # another rank was faster
                if error.errno not in OCCUPIED:
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cached

    def _remove_versions(self, name: str, *, keep: str | None, replaced: dict[str, Any] | None) -> None:
        """Delete the version that was replaced, and what killed processes left a day ago."""
        limit = time.time() - STALE
        old = replaced["data"] if replaced else None
        gone = []
        for path, changed in self._bucket.entries(name):
            version = path[len(name) + 1 :].partition("/")[0]
            if version == old or (version != keep and changed < limit):
                gone.append(path)
        if gone:
            self._bucket.delete(gone)


def _inside(folder: str, relative: str) -> str:
    """Join a path that a manifest names; the manifest is data of the store, not of this process."""
    target = os.path.normpath(os.path.join(folder, relative))
    if not target.startswith(folder + os.sep):
        msg = f"got the path {relative!r} in a manifest, expected one inside of its folder; remove what it names"
        raise StorageError(msg)
    return target


def _cache() -> str:
    """Return this user's folder for downloads; it is in a place that others write to, so it is looked at."""
    folder = os.path.join(tempfile.gettempdir(), f"rallypoint-cache-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if status.st_uid != os.getuid() or os.path.islink(folder):
        owner = status.st_uid
        msg = f"got {folder} owned by user id {owner}, expected this process's user; set TMPDIR to another folder"
        raise StorageError(msg)
    return folder
