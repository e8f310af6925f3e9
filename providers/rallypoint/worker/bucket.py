"""Objects of a bucket, over obstore: the one way in which a process of the job reaches its bucket."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLASSES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}  # of obstore, by the URI's scheme
_SHORTEST_SECRET = 4  # a shorter one is a placeholder, and would be found in every other word
_MAX_REASON = 300
_first_user: int | None = None


class StorageError(OSError):
    """The job cannot reach its bucket, or was refused there."""


class Bucket:
    """The objects below a prefix.

    Args:
        uri: ``s3://``, ``gs://`` or ``az://`` with bucket and prefix; credentials come from the environment.

    Raises:
        ModuleNotFoundError: This Python has no obstore.
        StorageError: The environment's settings are wrong.
    """

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
            options["credential_provider"] = _boto3_credentials()
        self._store = self._run("open", "", lambda: getattr(stores, CLASSES[scheme])(bucket, **options))

    def read(self, path: str) -> bytes:
        """Return an object's content.

        Raises:
            FileNotFoundError: There is no such object; so does `download`.
            StorageError: The bucket cannot be read; each method raises it alike.
        """
        return bytes(self._run("read", path, lambda: self._obstore.get(self._store, path).bytes()))

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing an older one."""
        self._run("write", path, lambda: self._obstore.put(self._store, path, data))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one, and return whether this call wrote it."""
        exists = importlib.import_module("obstore.exceptions").AlreadyExistsError

        def write() -> bool:
            try:
                self._obstore.put(self._store, path, data, mode="create")
            except exists:
                return False
            return True

        return bool(self._run("write", path, write))

    def upload(self, source: str, path: str) -> None:
        """Write a local file's content as an object."""
        with open(source, "rb") as file:
            self._run("write", path, lambda: self._obstore.put(self._store, path, file))

    def download(self, path: str, target: str) -> None:
        """Write an object's content to a local file."""

        def copy() -> None:
            with open(target, "wb") as file:
                file.writelines(self._obstore.get(self._store, path).stream())

        self._run("read", path, copy)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below the folder ``prefix``."""
        found = self._run("list", prefix, lambda: self._obstore.list_with_delimiter(self._store, prefix or None))
        return [meta["path"].rpartition("/")[2] for meta in found["objects"]]

    def entries(self, prefix: str) -> list[tuple[str, float]]:
        """Return path and time of the last change, in seconds since the epoch, of every object below ``prefix``."""
        found = self._run("list", prefix, lambda: self._obstore.list(self._store, prefix).collect())
        return [(meta["path"], meta["last_modified"].timestamp()) for meta in found]

    def delete(self, paths: list[str]) -> None:
        """Delete objects; absent ones are fine."""
        with suppress(FileNotFoundError):
            self._run("delete", paths[0], lambda: self._obstore.delete(self._store, paths))

    def refuse_fork(self) -> None:
        """Raise a `StorageError` in a process that was forked after obstore was used: it would wait for ever."""
        if is_forked():
            msg = (
                f"cannot use {self._uri}: got a process that was forked after the bucket was opened, whose threads "
                "stayed behind; expected stage() to be used in the process that it began in"
            )
            raise StorageError(msg)

    def _run(self, action: str, path: str, call: Callable[[], Any]) -> Any:
        self.refuse_fork()
        try:
            return call()
        except (self._errors, FileNotFoundError, ValueError) as error:
            lacks_bucket = "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error)
            if isinstance(error, FileNotFoundError) and not lacks_bucket:
                raise
            msg = (
                f"cannot {action} {self._uri}/{path}: {reason(error, os.environ)}; "
                "check the bucket and the credentials in the job's environment"
            )
        raise StorageError(msg)  # outside of the handler: the original's text may hold a signed request


def is_forked() -> bool:
    """Return whether this process was forked from one that used obstore, whose threads stayed behind there.

    The first call says that obstore is used from now on.
    """
    global _first_user  # noqa: PLW0603 - obstore's threads are the process's, so is what is known of them
    _first_user = _first_user or os.getpid()
    return _first_user != os.getpid()


def reason(error: Exception, settings: Mapping[str, str]) -> str:
    """Return the first line of an error of obstore, whose other lines may hold requests, and the server's code.

    Args:
        error: The error.
        settings: By variable: those that are secrets are masked.
    """
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    line = text.strip().partition("\n")[0].partition("<?xml")[0].rstrip(" .:")
    line = re.sub(r"(https?://)(?:[^/\s@]*@)?([^\s?]*)(?:\?\S*)?", r"\1\2", line)  # no user, no signature
    for name, value in settings.items():
        if (
            re.fullmatch(r"(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN).*(?<!_FILE)", name)
            and len(value) >= _SHORTEST_SECRET
        ):
            line = line.replace(value, "***")
    if code and code[1] not in line:
        line = f"{line} ({code[1]})"
    return line[:_MAX_REASON]


def _boto3_credentials() -> Any:
    """Return boto3's chain, which knows profiles and single sign-on; None for obstore's own."""
    given = any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"))
    if not given and importlib.util.find_spec("boto3"):
        with suppress(ValueError):  # it found nothing: obstore's own search then says so
            return importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider()
    return None
