"""What user code sees of its stage: ``rallypoint.stage()``.

Every call is optional, and outside of a stage (on a laptop, in a notebook, in a unit test) each works as a local
no-op: there is no checkpoint to find, and what is saved goes to a temporary folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from rallypoint.worker.context import Placement, StageContext
from rallypoint.worker.mirror import Mirror
from rallypoint.worker.process import to_json_value, writer
from rallypoint.worker.storage import Storage, open_storage, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from rallypoint.worker.events import EventWriter

_CHECKPOINTS = "checkpoints"
_ARTIFACTS = "artifacts"
_TENSORBOARD = "tensorboard"
_installed: Stage | None = None


class Stage:
    """This process's view of the stage that it is part of.

    Args:
        context: What the orchestrator said of the stage; None outside of one.
        placement: Rank and world size.
        data_uri: Where checkpoints and artifacts go.
    """

    def __init__(self, context: StageContext | None, placement: Placement, data_uri: str) -> None:
        self._context = context
        self._placement = placement
        self._data_uri = data_uri
        self._opened: Storage | None = None
        self._mirror: Mirror | None = None

    # What is known at the start -------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether an orchestrator runs this process as part of a stage."""
        return self._context is not None

    @property
    def name(self) -> str:
        """The stage's key, such as ``flights/scheduled__2026-11-23/train``."""
        return "/".join(self._context.stage) if self._context else "local"

    @property
    def params(self) -> dict[str, Any]:
        """The JSON values that the job was given as ``params``."""
        return dict(self._context.params) if self._context else {}

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._context.number if self._context else 1

    @property
    def resumed(self) -> bool:
        """Whether this attempt continues an earlier one, which may have left checkpoints."""
        return bool(self._context and self._context.resumed)

    @property
    def rank(self) -> int:
        """The rank of this process in its world; 0 where there is one process."""
        return self._placement.rank

    @property
    def local_rank(self) -> int:
        """The rank of this process on its node."""
        return self._placement.local_rank

    @property
    def world_size(self) -> int:
        """How many processes the world has now; an elastic gang may restart with another number."""
        return self._placement.world_size

    @property
    def data_uri(self) -> str:
        """The root of what the stage's generation keeps; the same for every attempt of the generation."""
        return self._data_uri

    @property
    def tensorboard_dir(self) -> str:
        """A local folder for TensorBoard's event files, whatever writes them.

        Scalars that are written there appear as curves on the stage's page, and ``rallypoint tensorboard`` opens all of
        it. It is the same for every attempt of the generation, so a resumed training goes on in the same curves. Let
        rank 0 write, or give each rank a subfolder, which TensorBoard shows as a run of its own.

        Of a ``file://`` store it is the generation's own folder. For a bucket it is a folder on this host that is
        copied there every 15 s and at the end of the process: few frameworks write event files to every kind of bucket.
        """
        if self._data_uri.startswith("file://"):
            return _local_or_uri(self._data_uri, _TENSORBOARD)
        if self._mirror is None:
            self._mirror = Mirror(f"{self._data_uri}/{_TENSORBOARD}")
        return self._mirror.folder

    # Checkpoints ----------------------------------------------------------------------------------------------------

    @property
    def checkpoint_dir(self) -> str:
        """The folder (or bucket prefix) of the generation's checkpoints, for code that manages its own.

        It is the same for every attempt of the generation and empty in a new one. A local path for a ``file://``
        store, a URI otherwise.
        """
        return _local_or_uri(self._data_uri, _CHECKPOINTS)

    def latest_checkpoint(self) -> str | None:
        """Return the local folder of the newest whole checkpoint, or None if there is none to continue from."""
        names = self._storage.names(_CHECKPOINTS) if self.active else []
        return self._storage.fetch(f"{_CHECKPOINTS}/{names[-1]}") if names else None

    def save_checkpoint(
        self, write: Callable[[str], object], *, step: int | None = None, keep: int | None = None
    ) -> str | None:
        """Save a checkpoint, whole or not at all. Rank 0 writes; on other ranks this returns at once.

        Args:
            write: Is called with an empty folder and writes the checkpoint's files into it.
            step: A number that orders checkpoints, such as the epochs done; one more than the last by default.
            keep: How many checkpoints to keep (the job's ``keep_checkpoints`` by default, at least 1).

        Returns:
            The checkpoint's URI; None on other ranks and outside of a stage.
        """
        if self.rank != 0:
            return None
        if not self.active:
            with tempfile.TemporaryDirectory(prefix="rallypoint-") as folder:
                write(folder)
            return None
        names = self._storage.names(_CHECKPOINTS)
        number = step if step is not None else (_number(names[-1]) + 1 if names else 1)
        if number < 0:
            msg = f"save_checkpoint(step=…): got {number}, expected 0 or more"
            raise ValueError(msg)
        began = time.monotonic()
        name = f"step-{number:012d}"
        with scratch_folder(self._storage) as folder:
            write(folder)
            size = _size(folder)
            uri = self._storage.commit(folder, f"{_CHECKPOINTS}/{name}")
        self._events.write(
            "artifact",
            kind="checkpoint",
            name=name,
            uri=uri,
            step=number,
            bytes=size,
            seconds=round(time.monotonic() - began, 3),
        )
        limit = max(1, keep if keep is not None else (self._context.keep_checkpoints if self._context else 1))
        for old in sorted({*names, name})[:-limit]:
            if old != name:
                self._storage.remove(f"{_CHECKPOINTS}/{old}")
        return uri

    # Artifacts, progress, result ------------------------------------------------------------------------------------

    def save_artifact(self, source: str | os.PathLike[str] | Callable[[str], object], name: str | None = None) -> str:
        """Keep a file or a folder under the stage's generation, whole or not at all. Rank 0 writes.

        Args:
            source: A file, a folder, or a function that is called with an empty folder and writes into it.
            name: The artifact's name; the file's or folder's own by default.

        Returns:
            Its URI, small enough for XCom. Other ranks write nothing, and theirs is without the version that a bucket
            adds: the stage's result is rank 0's.

        Raises:
            ValueError: The source is a function and there is no name.
        """
        if callable(source) and name is None:
            msg = "save_artifact(function): got no name, expected save_artifact(function, name='…')"
            raise ValueError(msg)
        if self.rank != 0:
            return f"{self._data_uri}/{_ARTIFACTS}/{name or _own_name(source)}"
        if not callable(source) and os.path.isfile(source):
            name = name or os.path.basename(source)
            size = os.path.getsize(source)
            uri = self._storage.commit_file(os.fspath(source), f"{_ARTIFACTS}/{name}")
        else:
            with scratch_folder(self._storage) as folder:
                if callable(source):
                    source(folder)
                else:
                    name = name or _own_name(source)
                    shutil.copytree(source, folder, dirs_exist_ok=True)
                size = _size(folder)
                uri = self._storage.commit(folder, f"{_ARTIFACTS}/{name}")
        self._events.write("artifact", kind="artifact", name=name, uri=uri, bytes=size)
        return uri

    def report(self, *, step: int | None = None, total: int | None = None, unit: str = "step", **metrics: Any) -> None:
        """Report progress and metrics; they are shown live in the orchestrator. Rank 0 reports, others return at once.

        It may be called for every batch: a call takes some microseconds. Reports that come faster than ten a second
        are joined into one line, which has the last progress and the last value of every metric; it is written within
        0.1 s, and before a checkpoint, an artifact, the result and the end of the process. Only a process that is
        killed loses up to the last 0.1 s. What is joined is for people to watch; a history of every value belongs in
        a file (`save_artifact`) or an experiment tracker.

        Args:
            step: How much is done, such as epochs or batches.
            total: How much there is to do, in the same unit.
            unit: What is counted, such as ``"epoch"``.
            **metrics: Names and numbers, such as ``loss=0.3``.
        """
        if self.rank != 0:
            return
        values = to_json_value(metrics)
        most = None if total is None else int(total)
        self._events.report(values, {} if step is None else {"step": int(step), "total": most, "unit": unit})

    def link(self, name: str, url: str) -> None:
        """Show a link, such as a dashboard's, in the orchestrator's UI while the stage runs."""
        self._events.write("link", name=name, url=url)

    def result(self, value: Any) -> None:
        """Set the stage's result, for scripts and modules; a function returns it. Rank 0's counts.

        Raises:
            NotJSONError: JSON cannot hold it.
        """
        if self.rank == 0:
            self._events.write("result", value=to_json_value(value))

    @property
    def _events(self) -> EventWriter:
        return writer()

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            self._opened = open_storage(self._data_uri)
        return self._opened


def _local_or_uri(uri: str, name: str) -> str:
    if not uri.startswith("file://"):
        return f"{uri}/{name}"
    folder = os.path.join(unquote(uri.removeprefix("file://")), name)
    os.makedirs(folder, exist_ok=True)
    return folder


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def _own_name(source: object) -> str:
    return os.path.basename(os.path.abspath(str(source)))


def _size(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(where, file)) for where, _, files in os.walk(folder) for file in files)


@lru_cache(maxsize=1)
def stage() -> Stage:
    """Return this process's stage; outside of one, a stand-in on which every call works and keeps nothing."""
    if _installed is not None:
        return _installed
    context = StageContext.from_environment()
    placement = Placement.from_environment()
    if context is not None:
        return Stage(context, placement, context.data_uri)
    return Stage(None, placement, "file://" + tempfile.mkdtemp(prefix="rallypoint-local-"))


def install(replacement: Stage | None) -> None:
    """Have `stage` return another one in this process; for drivers whose framework has trials or workers of its own.

    Args:
        replacement: The stage; None for the one that the environment says, read anew.
    """
    global _installed  # noqa: PLW0603 - a process has one stage
    _installed = replacement
    stage.cache_clear()
