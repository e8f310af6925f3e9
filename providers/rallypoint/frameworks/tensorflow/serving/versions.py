"""A model's base path: a folder per version, and beside them who put which one there.

::

    <base path>/7/saved_model.pb …     what the server loads: it looks for names that are numbers
    <base path>/.rallypoint/7.json     whose version it is, from before it is there until after it is taken away

A number is claimed by creating its record, so two deploys never write the same version, and a number that was taken
away is not given again: a server may remember it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rallypoint.frameworks.deploy.records import open_records
from rallypoint.frameworks.tensorflow.serving.model import files_below, local_path
from rallypoint.frameworks.tensorflow.serving.signature import FILE
from rallypoint.worker.bucket import Bucket
from rallypoint.worker.storage_names import quoted

if TYPE_CHECKING:
    from rallypoint.frameworks.deploy.records import Records

DEPLOYING, SERVING, FAILED, PRUNED = "deploying", "serving", "failed", "pruned"
_OWN = ".rallypoint"
_TRIES = 100
_WHOLE = re.compile(rf"(\d+)/{re.escape(FILE)}")


class Versions(Protocol):
    """The versions below a base path."""

    def numbers(self) -> list[int]:
        """Return the numbers of the versions that are there whole, in order."""
        ...

    def put(self, number: int, folder: str) -> None:
        """Put a SavedModel there as a version: whole in a folder, with ``saved_model.pb`` last in a bucket."""
        ...

    def remove(self, number: int) -> None:
        """Take a version away; an absent one is fine."""
        ...

    def path(self, number: int) -> str:
        """Return where a version is."""
        ...


def open_versions(base_path: str) -> Versions:
    """Return the versions below a path or a URI."""
    local = local_path(base_path)
    return _BucketVersions(base_path) if local is None else _FolderVersions(local)


class _FolderVersions:
    def __init__(self, base: str) -> None:
        self._base = Path(base)

    def numbers(self) -> list[int]:
        with suppress(FileNotFoundError):
            found = [each.name for each in self._base.iterdir() if each.name.isdigit()]
            return sorted(int(name) for name in found if Path(self._base, name, FILE).is_file())
        return []

    def put(self, number: int, folder: str) -> None:
        draft = (
            self._base / _OWN / f"put-{number}"
        )  # on the same file system, and of nobody else: the number is claimed
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(folder, draft)
        for path in files_below(str(draft)):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        draft.rename(self._base / str(number))

    def remove(self, number: int) -> None:
        gone = self._base / _OWN / f"gone-{number}-{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            (self._base / str(number)).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def path(self, number: int) -> str:
        return str(self._base / str(number))


class _BucketVersions:
    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket = Bucket(uri)

    def numbers(self) -> list[int]:
        found = (_WHOLE.fullmatch(path) for path, _ in self._bucket.entries(""))
        return sorted(int(match[1]) for match in found if match)

    def put(self, number: int, folder: str) -> None:
        for path in files_below(folder):
            self._bucket.upload(str(path), f"{number}/{path.relative_to(folder)}")

    def remove(self, number: int) -> None:
        paths = [path for path, _ in self._bucket.entries(str(number)) if path.startswith(f"{number}/")]
        for path in sorted(paths, key=lambda each: each != f"{number}/{FILE}"):  # what makes it whole goes first
            self._bucket.delete([path])

    def path(self, number: int) -> str:
        return f"{self._uri}/{number}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of one version.

    Args:
        number: Its number.
        owner: The stage and its generation, as text.
        digest: The content that it was made from.
        model: Where that was.
        state: ``deploying``, ``serving``, ``failed`` or ``pruned``.
        reason: Why it failed, in a line.
        created: Seconds since the epoch.
    """

    number: int
    owner: str
    digest: str
    model: str
    state: str = DEPLOYING
    reason: str = ""
    created: float = field(default_factory=time.time)


class Journal:
    """The entries of the versions below a base path.

    Args:
        base_path: The path or URI.
    """

    def __init__(self, base_path: str) -> None:
        local = local_path(base_path)
        uri = base_path if local is None else f"file://{quoted(local)}"
        self._records: Records = open_records(f"{uri}/{_OWN}")

    def entries(self) -> list[Entry]:
        """Return all entries, the newest first."""
        names = (name.removesuffix(".json") for name in self._records.names(""))
        found = (self._read(int(name)) for name in names if name.isdigit())
        return sorted(filter(None, found), key=lambda entry: -entry.number)

    def claim(self, *, owner: str, digest: str, model: str, taken: int) -> Entry:
        """Write the entry of a new version, before it is there, and return it with its number.

        Args:
            owner: The stage and its generation.
            digest: The content.
            model: Where that is.
            taken: The largest number that is there without an entry.
        """
        for _ in range(_TRIES):
            newest = max((entry.number for entry in self.entries()), default=0)
            entry = Entry(number=max(newest, taken) + 1, owner=owner, digest=digest, model=model)
            if self._records.create(f"{entry.number}.json", _text(entry)):
                return entry
        msg = f"{_TRIES} other deploys claimed versions at the same time: retry later"
        raise TimeoutError(msg)

    def set(self, entry: Entry, state: str, reason: str = "") -> Entry:
        """Write what became of a version."""
        done = replace(entry, state=state, reason=reason)
        self._records.write(f"{entry.number}.json", _text(done))
        return done

    def _read(self, number: int) -> Entry | None:
        data = self._records.read(f"{number}.json")
        try:
            value = json.loads(data or b"")
            return Entry(**{name: value[name] for name in Entry.__dataclass_fields__})
        except (ValueError, KeyError, TypeError):
            # Another's file, or half of one: the number counts as taken, by nobody who is known.
            return Entry(number=number, owner="", digest="", model="", state="", created=0.0)


def _text(entry: Entry) -> bytes:
    return json.dumps({"v": 1, **asdict(entry)}, sort_keys=True, indent=1).encode()
