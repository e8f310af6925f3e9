"""Keeps folders and files in the store, from inside the job: checkpoints and artifacts, whole or not at all.

A process may be killed at any instruction. What `Storage.commit` publishes is then the old content or the new one:

* In a ``file://`` store a folder is written beside its place, made durable, and renamed into it. A folder that is
  replaced is first renamed to a hidden name next to it, which readers fall back to while the place is empty.
* A bucket renames nothing. A folder's objects lie under a prefix of their own, and a small manifest, written last,
  names them. Readers believe manifests only.

Everything here is synchronous. Folders need the standard library alone; buckets need the package ``obstore``.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Storage", "StorageError", "open_storage"]

_HIDDEN = ".rallypoint-"  # names that start so are this module's own
_SCRATCH = f"{_HIDDEN}scratch"
_TRASH = f"{_HIDDEN}trash"
_OLD = f"{_HIDDEN}old."  # <_OLD><name>.<time>-<random>: content that is being replaced
_MANIFEST = ".rallypoint.json"  # <name><_MANIFEST>: what readers of a bucket believe
_VERSION = 1
_STALE = 24 * 60 * 60.0  # seconds after which what a killed process left may go
_MAX_PART = 180  # bytes: a file system takes 255, and a hidden name is longer than the name in it
_TRIES = 5
_SHORTEST_SECRET = 4  # a shorter one is a placeholder, and would be found in every other word
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


class StorageError(OSError):
    """The job cannot reach its bucket, or was refused there."""


class Storage(Protocol):
    """Where one generation of a stage keeps its folders and files.

    Names are relative, with ``/`` between their parts. A committed folder holds no other committed folder.

    Attributes:
        uri: The URI of the root that names are relative to.
    """

    uri: str

    def scratch(self) -> str:
        """Return a new, empty folder to write into; a killed process may leave it behind, unseen by `names`."""
        ...

    def commit(self, folder: str, name: str) -> str:
        """Publish a folder under a name, all or nothing, in place of what was there.

        A folder from `scratch` is gone afterwards; any other is copied and stays.

        Args:
            folder: A local folder of files and folders.
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


def open_storage(uri: str) -> Storage:
    """Open the storage at a URI.

    Args:
        uri: ``file:///folder``, an absolute path, or ``s3://``, ``gs://`` or ``az://`` with bucket and prefix, whose
            credentials come from the environment.

    Raises:
        ValueError: The URI is none of these.
        ModuleNotFoundError: The store is a bucket and this Python has no obstore.
    """
    scheme, separator, rest = uri.partition("://")
    if uri.startswith("/"):
        return _FolderStorage(uri)
    if scheme == "file" and rest.startswith(("/", "localhost/")):
        return _FolderStorage(unquote(urlsplit(uri).path))
    if separator and scheme in _BUCKETS and rest.partition("/")[0]:
        return _BucketStorage(uri)
    msg = f"got the store {uri!r}, expected file:///folder, s3://, gs:// or az://; correct the store's URI"
    raise ValueError(msg)


class _FolderStorage:
    """The storage of a ``file://`` store."""

    def __init__(self, root: str) -> None:
        self._root = os.path.normpath(root)
        self.uri = f"file://{_quoted(self._root)}"
        for leftovers in (_SCRATCH, _TRASH):
            _remove_stale(os.path.join(self._root, leftovers))

    def scratch(self) -> str:
        # Not tempfile.mkdtemp: what is committed is for the orchestrator to read, too, whoever runs it.
        folder = os.path.join(self._root, _SCRATCH, uuid.uuid4().hex)
        os.makedirs(folder)
        return folder

    def commit(self, folder: str, name: str) -> str:
        target = self._path(name)
        if _lies_in(folder, os.path.join(self._root, _SCRATCH)):
            made = folder
        else:
            made = self.scratch()
            shutil.copytree(folder, made, dirs_exist_ok=True)
        _synchronise_tree(made)
        self._make_parent(target)
        older = self._set_aside(target)
        while True:
            try:
                os.rename(made, target)
                break
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
            # From here to the rename above, readers find the old content under its hidden name.
            aside = f"{_hidden_name(target)}{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            with suppress(FileNotFoundError):
                os.rename(target, aside)
                older.append(aside)
        _synchronise(os.path.dirname(target))
        for each in older:
            self._discard(each)
        return f"{self.uri}/{_quoted(name)}"

    def commit_file(self, path: str, name: str) -> str:
        target = self._path(name)
        folder = self.scratch()
        made = os.path.join(folder, "file")
        shutil.copyfile(path, made)
        _synchronise(made)
        self._make_parent(target)
        os.replace(made, target)
        _synchronise(os.path.dirname(target))
        os.rmdir(folder)
        return f"{self.uri}/{_quoted(name)}"

    def names(self, prefix: str) -> list[str]:
        parent = self._path(prefix) if prefix else self._root
        try:
            entries = list(os.scandir(parent))
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = {entry.name for entry in entries if not entry.name.startswith(_HIDDEN) and entry.is_dir()}
        set_aside = {entry.name.removeprefix(_OLD).rpartition(".")[0] for entry in entries if _is_old(entry)}
        return sorted(found | set_aside)

    def fetch(self, name: str) -> str:
        target = self._path(name)
        for _ in range(_TRIES):  # a writer may be between its two renames
            if os.path.isdir(target):
                return target
            if aside := self._set_aside(target):
                return aside[-1]
        raise _absent(f"{self.uri}/{_quoted(name)}")

    def remove(self, name: str) -> None:
        target = self._path(name)
        # The fallbacks go first: they must not come to light when the folder is gone. Only if it is there, though.
        older = self._set_aside(target)
        if os.path.isdir(target):
            for each in older:
                self._discard(each)
            self._discard(target)
        else:
            for each in older:  # the newest last
                self._discard(each)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, *_checked(name).split("/"))

    def _make_parent(self, target: str) -> None:
        parent = os.path.dirname(target)
        missing = []
        while not os.path.isdir(parent) and parent != os.path.dirname(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        for each in missing:
            _synchronise(os.path.dirname(each))

    def _set_aside(self, target: str) -> list[str]:
        """Return the folders that were replaced under a name and are still there, the newest last."""
        parent, start = os.path.dirname(target), os.path.basename(_hidden_name(target))
        try:
            with os.scandir(parent) as entries:
                found = [
                    entry.path
                    for entry in entries
                    if entry.name.startswith(start) and _is_old(entry) and "." not in entry.name[len(start) :]
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found)

    def _discard(self, path: str) -> None:
        """Remove a folder (or file) so that nobody sees half of it."""
        trash = os.path.join(self._root, _TRASH)
        os.makedirs(trash, exist_ok=True)
        gone = os.path.join(trash, uuid.uuid4().hex)
        try:
            os.rename(path, gone)
        except FileNotFoundError:
            return
        _synchronise(os.path.dirname(path))
        _remove(gone)


class _BucketStorage:
    """The storage of a bucket."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._bucket = _Bucket(self.uri)
        self._scratch: set[str] = set()

    def scratch(self) -> str:
        folder = tempfile.mkdtemp(prefix="rallypoint-")
        self._scratch.add(os.path.realpath(folder))
        return folder

    def commit(self, folder: str, name: str) -> str:
        _checked(name)
        before = self._manifest(name)
        version = f"v-{uuid.uuid4().hex}"
        files, folders = [], []
        for path, is_folder in _walk(folder):
            relative = os.path.relpath(path, folder).replace(os.sep, "/")
            if is_folder:
                folders.append(relative)
            else:
                self._bucket.upload(path, f"{name}/{version}/{relative}")
                files.append({"path": relative, "size": os.path.getsize(path)})
        manifest = {"v": _VERSION, "data": version, "files": files, "folders": folders}
        self._bucket.write(f"{name}{_MANIFEST}", json.dumps(manifest).encode())
        self._remove_versions(name, keep=version, replaced=before["data"] if before else None)
        if os.path.realpath(folder) in self._scratch:
            self._scratch.discard(os.path.realpath(folder))
            shutil.rmtree(folder, ignore_errors=True)
        return f"{self.uri}/{name}/{version}"

    def commit_file(self, path: str, name: str) -> str:
        self._bucket.upload(path, _checked(name))
        return f"{self.uri}/{name}"

    def names(self, prefix: str) -> list[str]:
        found = self._bucket.names(_checked(prefix) if prefix else "")
        return sorted(name.removesuffix(_MANIFEST) for name in found if name.endswith(_MANIFEST))

    def fetch(self, name: str) -> str:
        _checked(name)
        for attempt in range(_TRIES):
            manifest = self._manifest(name)
            if manifest is None:
                break
            try:
                return self._download(name, manifest)
            except FileNotFoundError:  # replaced while it was downloaded: the next manifest names what is there
                if attempt == _TRIES - 1:
                    raise
        raise _absent(f"{self.uri}/{name}")

    def remove(self, name: str) -> None:
        manifest = self._manifest(_checked(name))
        self._bucket.delete([f"{name}{_MANIFEST}"])
        self._remove_versions(name, keep=None, replaced=manifest["data"] if manifest else None)

    def _manifest(self, name: str) -> dict[str, Any] | None:
        try:
            manifest = json.loads(self._bucket.read(f"{name}{_MANIFEST}"))
        except FileNotFoundError:
            return None
        if not isinstance(manifest, dict) or manifest.get("v") != _VERSION:
            msg = (
                f"got a manifest of another version at {self.uri}/{name}{_MANIFEST}, expected version {_VERSION}; "
                "run the job with the Rallypoint that wrote it"
            )
            raise StorageError(msg)
        return manifest

    def _download(self, name: str, manifest: dict[str, Any]) -> str:
        """Return the content's folder in this host's cache, which the ranks of a host share."""
        version = manifest["data"]
        key = hashlib.sha256(f"{self.uri}/{name}/{version}".encode()).hexdigest()[:32]
        cached = os.path.join(_cache(), key)
        if os.path.isdir(cached):
            return cached
        part = f"{cached}.{uuid.uuid4().hex}"
        os.makedirs(part)
        try:
            for relative in manifest["folders"]:
                os.makedirs(_inside(part, relative), exist_ok=True)
            for file in manifest["files"]:
                target = _inside(part, file["path"])
                os.makedirs(os.path.dirname(target), exist_ok=True)
                self._bucket.download(f"{name}/{version}/{file['path']}", target)
                if (got := os.path.getsize(target)) != file["size"]:
                    uri = f"{self.uri}/{name}/{version}/{file['path']}"
                    msg = f"got {got} bytes of {uri}, expected {file['size']}; try again"
                    raise StorageError(msg)
            try:
                os.rename(part, cached)
            except OSError as error:  # another rank was faster
                if error.errno not in _OCCUPIED:
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cached

    def _remove_versions(self, name: str, *, keep: str | None, replaced: str | None) -> None:
        """Delete the version that a commit replaced, and those that killed processes left a day ago."""
        limit = time.time() - _STALE
        newest: dict[str, float] = {}
        paths: dict[str, list[str]] = {}
        for path, modified in self._bucket.entries(name):
            version = path[len(name) + 1 :].partition("/")[0]
            if re.fullmatch(r"v-[0-9a-f]{32}", version) and version != keep:
                newest[version] = max(newest.get(version, 0.0), modified)
                paths.setdefault(version, []).append(path)
        for version, found in paths.items():
            if version == replaced or newest[version] < limit:
                self._bucket.delete(found)


_BUCKETS = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}


class _Bucket:
    """Objects of a bucket below a prefix, over obstore."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        try:
            self._obstore = importlib.import_module("obstore")
            stores = importlib.import_module("obstore.store")
        except ImportError:
            msg = (
                f"the store is the bucket {uri}, and {sys.executable} has no package 'obstore' to reach it with: "
                "install obstore in the job's Python, or use a file:// store that the job can see"
            )
            raise ModuleNotFoundError(msg, name="obstore") from None
        self._errors = importlib.import_module("obstore.exceptions").BaseError
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        options: dict[str, Any] = {"prefix": prefix or None}
        if scheme == "s3":
            options |= _s3_options()
        self._pid = os.getpid()
        self._store = self._run("open", "", lambda: getattr(stores, _BUCKETS[scheme])(bucket, **options))

    def read(self, path: str) -> bytes:
        return bytes(self._run("read", path, lambda: self._obstore.get(self._store, path).bytes()))

    def write(self, path: str, data: bytes) -> None:
        self._run("write", path, lambda: self._obstore.put(self._store, path, data))

    def upload(self, source: str, path: str) -> None:
        with open(source, "rb") as file:
            self._run("write", path, lambda: self._obstore.put(self._store, path, file))

    def download(self, path: str, target: str) -> None:
        def copy() -> None:
            with open(target, "wb") as file:
                file.writelines(self._obstore.get(self._store, path).stream())

        self._run("read", path, copy)

    def names(self, prefix: str) -> list[str]:
        found = self._run("list", prefix, lambda: self._obstore.list_with_delimiter(self._store, prefix or None))
        return [meta["path"].rpartition("/")[2] for meta in found["objects"]]

    def entries(self, prefix: str) -> list[tuple[str, float]]:
        found = self._run("list", prefix, lambda: self._obstore.list(self._store, prefix).collect())
        return [(meta["path"], meta["last_modified"].timestamp()) for meta in found]

    def delete(self, paths: list[str]) -> None:
        with suppress(FileNotFoundError):
            self._run("delete", paths[0], lambda: self._obstore.delete(self._store, paths))

    def _run(self, action: str, path: str, call: Callable[[], Any]) -> Any:
        if os.getpid() != self._pid:
            msg = (
                f"cannot {action} {self._uri}/{path}: got a process that was forked after the bucket was opened, whose "
                "threads stayed behind; expected stage() to be used in the process that it began in"
            )
            raise StorageError(msg)
        try:
            return call()
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error) and "ContainerNotFound" not in str(error):
                raise
            reason = _reason(error)
        except (self._errors, ValueError) as error:
            reason = _reason(error)
        # The original's text may hold a signed request.
        where = f"cannot {action} {self._uri}/{path}"
        msg = f"{where}: {reason}; check the bucket and the credentials in the job's environment"
        raise StorageError(msg) from None


def _s3_options() -> dict[str, Any]:
    options: dict[str, Any] = {}
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    if next((endpoint for endpoint in endpoints if endpoint), "").startswith("http://"):
        options["client_options"] = {"allow_http": True}
    given = any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"))
    if not given and importlib.util.find_spec("boto3"):
        # boto3 knows profiles and single sign-on, which obstore does not.
        with suppress(ValueError):  # it found nothing: obstore's own search then says so
            options["credential_provider"] = importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider()
    return options


def _checked(name: str) -> str:
    parts = name.split("/")
    fault = ""
    if not name or "" in parts:
        fault = "has an empty part"
    elif "." in parts or ".." in parts:
        fault = "has a part '.' or '..'"
    elif re.search(r"[\x00-\x1f\x7f]", name):
        fault = "has a control character"
    elif any(part.startswith(_HIDDEN) or part.endswith(_MANIFEST) for part in parts):
        fault = f"has a part that starts with {_HIDDEN!r} or ends with {_MANIFEST!r}, which are Rallypoint's own"
    elif any(len(part.encode(errors="replace")) > _MAX_PART for part in parts):
        fault = f"has a part of more than {_MAX_PART} bytes"
    if fault:
        msg = f"got the name {name!r}, which {fault}; expected one such as 'model' or 'tables/flights'"
        raise ValueError(msg)
    return name


def _quoted(path: str) -> str:
    return quote(path, safe="/:+=@,;!$&'()*~")


def _absent(uri: str) -> FileNotFoundError:
    msg = f"nothing whole was kept at {uri}; expected a folder that was committed: check its name"
    return FileNotFoundError(errno.ENOENT, msg)


def _hidden_name(target: str) -> str:
    parent, name = os.path.split(target)
    return os.path.join(parent, f"{_OLD}{name}.")


def _is_old(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(_OLD) and entry.is_dir()


def _lies_in(path: str, folder: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def _inside(folder: str, relative: str) -> str:
    """Join a path that a manifest names; the manifest is data of the store, not of this process."""
    target = os.path.normpath(os.path.join(folder, relative))
    if not target.startswith(folder + os.sep):
        msg = f"got the path {relative!r} in a manifest, expected one inside of its folder; remove what it names"
        raise StorageError(msg)
    return target


def _walk(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield every file of a tree, and every folder below its root, with whether it is a folder."""

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


def _synchronise_tree(folder: str) -> None:
    for path, _ in _walk(folder):
        if not os.path.islink(path):
            _synchronise(path)
    _synchronise(folder)


def _synchronise(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)


def _remove_stale(folder: str) -> None:
    limit = time.time() - _STALE
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if _last_change(entry.path) < limit:
            _remove(entry.path)


def _last_change(path: str) -> float:
    """Return when anything in a tree was last written, now if it is going meanwhile."""
    try:
        # A folder's own time does not change when a file in it grows.
        return max([os.lstat(path).st_mtime, *(os.lstat(each).st_mtime for each, _ in _walk(path))])
    except (OSError, ValueError):
        return time.time()


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


def _reason(error: Exception) -> str:
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    line = text.strip().partition("\n")[0].partition("<?xml")[0].rstrip(" .:")
    line = re.sub(r"(https?://)(?:[^/\s@]*@)?([^\s?]*)(?:\?\S*)?", r"\1\2", line)
    for name, value in os.environ.items():
        if (
            len(value) >= _SHORTEST_SECRET
            and name.startswith(("AWS_", "AZURE_", "GOOGLE_"))
            and re.search("KEY|SECRET|TOKEN", name)
        ):
            line = line.replace(value, "***")
    return f"{line[:300]} ({code[1]})" if code and code[1] not in line else line[:300]
