"""The store: a folder or a bucket that the orchestrator and the job both reach.

`Store` is the orchestrator's door to it. Everything is asynchronous, because ledger, event reader and engine run inside
the event loop of Airflow's triggerer; `obstore <https://developmentseed.org/obstore/>`_ does the I/O, called on threads
of the module. The job's side is `rallypoint.worker.storage`, which needs no package for a folder.

obstore's own asynchronous functions are not used: their threads touch Python objects after the awaited answer, and a
process that ends meanwhile is aborted by SIGABRT (seen in one of five short processes, obstore 0.12).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from rallypoint.errors import StoreError
from rallypoint.stages.store_options import VARIABLES, Bucket, checked_options
from rallypoint.worker.bucket import is_forked, reason
from rallypoint.worker.storage_names import MANIFEST, fault, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Store"]

_T = TypeVar("_T")
_Backend: TypeAlias = AzureStore | GCSStore | LocalStore | S3Store
# Within the class, `list` is its method.
_Names: TypeAlias = list[str]
_Entries: TypeAlias = list[tuple[str, int]]

_EXPECTED: Final = (
    "file:///folder (or an absolute path), s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
)
_FULL: Final = re.compile(r"No space left on device|Disk quota exceeded")
_PROBE: Final = ".rallypoint-probe"
_TRASH: Final = ".rallypoint-trash"  # below a folder: what is being removed
# Names an object's creator: see `Store.create`. No separators: stores disagree on which ones a metadata key may hold.
_CREATOR: Final = "rallypointcreator"

# Requests to a bucket wait for their answers beside each other; the loop's default pool has a few threads a core.
_THREADS: Final = ThreadPoolExecutor(max_workers=32, thread_name_prefix="rallypoint-store")

_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")
_PAST_THE_END = re.compile(r"Requested range was invalid|status code: 416|<Code>InvalidRange</Code>")
_REFUSED = re.compile(r"status code: 40[13]\b")


class Store:
    """A folder or a bucket prefix, read and written without blocking an event loop.

    One store may be used from several event loops, one after the other, and from several threads. Paths are relative,
    with ``/`` between their parts; they mean the same in every kind of store.

    Attributes:
        uri: The store's URI without a slash at its end.
        local_path: The folder of a ``file://`` store, None for a bucket.
    """

    uri: str
    local_path: Path | None

    def __init__(self, uri: str, place: Path | Bucket) -> None:
        self.uri = uri
        self.local_path = place if isinstance(place, Path) else None
        self._place = place
        self._connecting = threading.Lock()
        self._backend: _Backend | None = None

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @classmethod
    def open(cls, uri: str | os.PathLike[str], *, options: Mapping[str, str] | None = None) -> Store:
        """Open a store; nothing is read, written or connected to before the first operation.

        Args:
            uri: ``file:///folder`` or an absolute path, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or
                ``az://container/prefix``.
            options: Settings and credentials of a bucket by obstore's names, with or without their ``aws_``,
                ``google_`` or ``azure_``, such as ``endpoint_url``. What is not given comes from the environment;
                credentials for S3 come from boto3's chain where boto3 is installed.

        Raises:
            StoreError: The URI or an option is not one of these.
        """
        text = os.fspath(uri)
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls._open_folder(text, text, options)
        if scheme == "file":
            if urlsplit(text).netloc not in {"", "localhost"}:
                raise StoreError(
                    f"got the store {text!r}, expected file:///folder; write three slashes and a full path"
                )
            return cls._open_folder(text, unquote(urlsplit(text).path), options)
        if scheme not in VARIABLES:
            # The rest of the URI may hold credentials.
            raise StoreError(f"got a store with the scheme {scheme!r}, expected {_EXPECTED}; change its scheme")
        if "@" in rest.partition("/")[0] or "?" in rest:
            # The URI goes to logs, the ledger and rendered templates.
            raise StoreError(
                f"got a {scheme}:// store with a user or a query in its URI, expected {_EXPECTED}; "
                "give credentials and settings as options or in the environment"
            )
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if not bucket:
            raise StoreError(f"got the store {text!r}, expected {_EXPECTED}; name a bucket")
        if prefix and (wrong := _fault(prefix)):
            raise StoreError(f"got the store {text!r}, expected {_EXPECTED}; its prefix {wrong}")
        place = Bucket(scheme, bucket, prefix, checked_options(scheme, options or {}))
        return cls(f"{scheme}://{bucket}/{prefix}".rstrip("/"), place)

    @classmethod
    def _open_folder(cls, given: str, path: str, options: Mapping[str, str] | None) -> Store:
        if not path.startswith("/"):
            raise StoreError(
                f"got the store {given!r}, expected {_EXPECTED}; "
                "give the full path: the orchestrator's processes have different working directories"
            )
        if options:
            raise StoreError(
                f"got the options {', '.join(sorted(options))} for {given!r}, expected none: a folder has no options"
            )
        folder = Path(os.path.normpath("/" + path.lstrip("/")))
        return cls(f"file://{quoted(str(folder))}".rstrip("/"), folder)

    def child_uri(self, path: str) -> str:
        """Return the URI of what lies at ``path``."""
        path = _checked(path)
        return f"{self.uri}/{quoted(path) if self.local_path else path}"

    async def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one: of several callers, exactly one gets True.

        Returns:
            True if this call created the object, False if it was already there.

        Raises:
            StoreError: The store cannot be written.
        """
        creator = None if self.local_path else uuid.uuid4().hex

        def write(backend: _Backend) -> None:
            attributes = {_CREATOR: creator} if creator else None
            obstore.put(backend, path, data, mode="create", attributes=attributes)
            self._synchronise(path)

        try:
            await self._run("write", _checked(path), write)
        except AlreadyExistsError:
            # A bucket may have kept the object although its answer was lost, and obstore then asked again: the object
            # that is in the way is this call's own.
            return creator is not None and await self._creator(path) == creator
        return True

    async def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing an older one: a reader gets one or the other, whole.

        Raises:
            StoreError: The store cannot be written.
        """

        def write(backend: _Backend) -> None:
            obstore.put(backend, path, data)
            self._synchronise(path)

        await self._run("write", _checked(path), write)

    async def get(self, path: str) -> bytes | None:
        """Return an object's content, None if it is absent.

        Raises:
            StoreError: The store cannot be read.
        """
        with suppress(FileNotFoundError):
            return await self._run("read", _checked(path), lambda backend: bytes(obstore.get(backend, path).bytes()))
        return None

    async def read_from(self, path: str, start: int, limit: int) -> bytes:
        """Return at most ``limit`` bytes of an object from the offset ``start`` on.

        Returns:
            The bytes; none at or after the end of the object, or if it is absent.

        Raises:
            StoreError: The store cannot be read.
        """

        def read(backend: _Backend) -> bytes:
            try:
                return bytes(obstore.get(backend, path, options={"range": (start, start + limit)}).bytes())
            except GenericError as error:
                if _PAST_THE_END.search(str(error)):
                    return b""
                raise

        with suppress(FileNotFoundError):
            return await self._run("read", _checked(path), read)
        return b""

    async def list(self, prefix: str) -> _Entries:
        """Return path and size of every object below the folder ``prefix`` at any depth, sorted by path.

        Raises:
            StoreError: The store cannot be listed.
        """

        def find(backend: _Backend) -> _Entries:
            return sorted((meta["path"], meta["size"]) for meta in obstore.list(backend, prefix or None).collect())

        with suppress(FileNotFoundError):
            return await self._run("list", _checked_prefix(prefix), find)
        return []

    async def children(self, prefix: str) -> _Names:
        """Return the names of the folders and objects directly below the folder ``prefix``, sorted.

        Raises:
            StoreError: The store cannot be listed.
        """

        def find(backend: _Backend) -> _Names:
            found = obstore.list_with_delimiter(backend, prefix or None)
            paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
            return sorted({PurePosixPath(path).name for path in paths})

        with suppress(FileNotFoundError):
            return await self._run("list", _checked_prefix(prefix), find)
        return []

    async def delete(self, path: str) -> None:
        """Delete an object; an absent one is fine.

        Raises:
            StoreError: The store cannot be written.
        """
        with suppress(FileNotFoundError):
            await self._run("delete", _checked(path), lambda backend: obstore.delete(backend, path))

    async def remove(self, prefix: str) -> None:
        """Delete everything below the folder ``prefix``, and the folder itself; an absent one is fine.

        Killed in the middle, it leaves no half of what was whole: a folder is moved away before it is deleted, and of
        a bucket the manifests of what a job kept go first.

        Raises:
            StoreError: The store cannot be written, or a part of the folder cannot be deleted.
        """
        if folder := self.local_path:
            await self._run("delete", _checked(prefix), lambda _: _remove_folder(folder, prefix))
            return
        paths = [path for path, _ in await self.list(prefix)]
        for is_manifest in (True, False):
            if some := [path for path in paths if path.endswith(MANIFEST) is is_manifest]:
                with suppress(FileNotFoundError):
                    await self._run("delete", prefix, partial(obstore.delete, paths=some))

    async def check(self) -> None:
        """Create, read back and delete a small object, to find now what would stop a stage later.

        Raises:
            StoreError: The store cannot be used, or it ignores the condition of a conditional write.
        """
        probe, data = f"{_PROBE}-{uuid.uuid4().hex}", b"rallypoint"
        try:
            created, again = await self.create(probe, data), await self.create(probe, data)
            found = await self.get(probe)
        finally:
            with suppress(StoreError):  # the first error says more
                await self.delete(probe)
        if found != data or not created:
            raise StoreError(
                f"the store {self.uri} did not return what was written to it a moment ago; "
                "expected a store that reads its own writes: use another one"
            )
        if again:
            raise StoreError(
                f"the store {self.uri} overwrote an object that was to be written only if absent; expected conditional "
                "writes (If-None-Match), without which a stage could run twice: update its server or use another store"
            )

    def job_env(self) -> dict[str, str]:
        """Return the environment variables with which a job opens the same bucket. They hold secrets.

        Credentials that are renewed (an instance's role, a web identity, single sign-on) are not copied, because they
        would expire within the job: the variables that they are found by are. The first call may read the credential
        chain if nothing was read from or written to the store before.

        Returns:
            The variables; none for a ``file://`` store.

        Raises:
            StoreError: There are no credentials.
        """
        if isinstance(self._place, Path):
            return {}
        try:
            return self._place.job_env()
        except ValueError as error:
            raise self._error("open", "", error) from None

    # The backend -----------------------------------------------------------------------------------------------------

    async def _run(self, action: str, path: str, operation: Callable[[_Backend], _T]) -> _T:
        """Give the backend to one operation on a thread, and turn what obstore raises into a `StoreError`.

        What callers answer for themselves passes: an object that is there already, and one that is absent.
        """
        if is_forked():
            raise StoreError(
                f"the store {self.uri} was used before this process was forked, and its threads stayed behind: an "
                "operation would wait for ever; expected a process of its own: start it with multiprocessing's "
                "'spawn' or as a new command"
            )
        try:
            return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: operation(self._connected()))
        except AlreadyExistsError:
            raise
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            absent = isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(str(error))
            if absent and action != "write":
                raise
            raise self._error(action, path, error) from None

    def _connected(self) -> _Backend:
        """Return the backend, made by the first caller; blocks for as long as a credential chain takes."""
        with self._connecting:
            if self._backend is None:
                if isinstance(self._place, Path):
                    self._place.mkdir(parents=True, exist_ok=True)
                    self._backend = LocalStore(self._place)
                else:
                    self._backend = self._place.connect()
            return self._backend

    async def _creator(self, path: str) -> str | None:
        with suppress(FileNotFoundError):

            def read(backend: _Backend) -> str | None:
                return obstore.get(backend, path, options={"head": True}).attributes.get(_CREATOR)

            return await self._run("read", path, read)
        return None

    def _synchronise(self, path: str) -> None:
        """Make a file durable: what the ledger says before a launch must outlive a power failure after it."""
        if self.local_path:
            with suppress(FileNotFoundError):  # somebody deleted it meanwhile
                for each in (self.local_path / path, (self.local_path / path).parent):
                    descriptor = os.open(each, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)

    def _error(self, action: str, path: str, error: Exception) -> StoreError:
        text = str(error)
        where = f"cannot {action} {self.uri}/{path}".removesuffix("/")
        if isinstance(self._place, Path) and _FULL.search(text):
            return StoreError(
                f"{where}: the disk is full ({reason(error, {})}): free space in {self.local_path}, for instance with "
                "`rallypoint prune`; a retry continues"
            )
        if isinstance(self._place, Path):
            return StoreError(
                f"{where}: {reason(error, {})}; expected a folder that this process (user id {os.getuid()}) can create "
                f"and write on this host: check {self.local_path}, or choose another store"
            )
        if "session.get_credentials" in text:
            return StoreError(
                f"{where}: got no AWS credentials from boto3; expected some in the options, the environment, a profile "
                "or the instance's role: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or skip_signature=true"
            )
        if _NO_BUCKET.search(text):
            fix = f"expected the bucket {self._place.name!r} to exist: create it, or correct the store's URI"
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
            fix = "expected credentials that may read, write, list and delete there: check them and the bucket's policy"
        elif "error sending request" in text or "HTTP error" in text:
            fix = "expected an endpoint that answers: check endpoint and region, and that this host reaches them"
        else:
            fix = "check the store's URI, options and permissions"
        settings = {**os.environ, **self._place.settings}
        return StoreError(f"{where}: {reason(error, settings)}; {fix}")


def _fault(path: str) -> str:
    """Return what is wrong with a path, the empty string if nothing is."""
    parts = path.split("/")
    if any(re.search(r"#\d+$", part) for part in parts):
        return "has a part that ends in '#' and digits, which a folder keeps for files being written"
    if any(re.search(r"[A-Za-z][:|]$", part) for part in parts):
        return "has a part that ends like a drive letter, 'a:' or 'a|', which obstore takes for a folder"
    return fault(path)


def _checked(path: str) -> str:
    if wrong := _fault(path):
        raise ValueError(f"got the path {path!r}, which {wrong}; expected names with '/' between them")
    return path


def _checked_prefix(prefix: str) -> str:
    return _checked(prefix) if prefix else prefix


def _remove_folder(root: Path, path: str) -> None:
    trash = root / _TRASH
    trash.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        gone = (root / path).rename(trash / uuid.uuid4().hex)
        shutil.rmtree(gone)
    shutil.rmtree(trash, ignore_errors=True)  # with what one that was killed has left
