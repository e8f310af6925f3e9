"""Event lines: how a job answers the orchestrator.

One file per process, one JSON object per line, versioned (``"v": 1``). The kinds are ``opened``, ``progress``,
``metrics``, ``artifact``, ``link``, ``result``, ``ready`` (of a service, with its ``address``), ``failed`` and
``closed``; a reader ignores a kind that it does not know. Of progress and metrics a process writes some ten lines a
second at the most (`rallypoint.worker.reports`). On a bucket, which cannot append, a process uploads the current part
of its lines every other second, whole, and begins a new part when it is large.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rallypoint.worker import context
from rallypoint.worker.reports import Reports

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_LINE = 1 << 20  # bytes of one line; the reader refuses a longer one
PART_SIZE = 1 << 20  # bytes after which a bucket's event file is continued in a new object
UPLOAD_INTERVAL = 2.0  # seconds
_PARTS_OF_A_RUN = 1_000  # numbers of parts that one run of a job has for itself


class EventTooLargeError(ValueError):
    """An event is larger than a line may be."""


class EventWriter:
    """Writes the events of one process.

    Args:
        uri: A ``file://`` folder or a bucket prefix; None writes nothing.
        process: The name of the process, which names its file.
    """

    def __init__(self, uri: str | None, process: str) -> None:
        self.process = process
        self.has_progress = False  # whether the code itself has said how far it is
        self._sink: _Folder | _Bucket | None = None
        if uri:
            self._sink = _Folder(uri, process) if uri.startswith("file://") else _Bucket(uri, process)
            self._reports = Reports(self._append)
            atexit.register(self.flush)  # for what is written after `process.run`

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, after the reports that came before it.

        Raises:
            EventTooLargeError: The line would be larger than 1 MiB.
        """
        if self._sink is not None:
            self._reports.flush()
            self._append(event, fields)

    def report(self, metrics: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Append progress and metrics, joined with others where they come quickly: see `Reports`.

        Args:
            metrics: JSON values by name.
            progress: ``step``, ``total`` and ``unit``; empty if only metrics are reported.

        Raises:
            EventTooLargeError: The line would be larger than 1 MiB.
        """
        self.has_progress = self.has_progress or bool(progress)
        if self._sink is not None:
            self._reports.add(metrics, progress)

    def excuse(self, seconds: float) -> None:
        """Let silence count for the supervisor's stall timer only after so many seconds, or after the next event."""
        if self._sink is not None:
            self._sink.touch(time.time() + seconds)

    def flush(self) -> None:
        """Return when everything written so far can be read by others."""
        if self._sink is not None:
            self._reports.flush()
            self._sink.flush()

    def _append(self, event: str, fields: Mapping[str, Any]) -> None:
        line = json.dumps({"v": 1, "t": time.time(), "event": event, "process": self.process, **fields})
        data = line.encode() + b"\n"
        if len(data) > MAX_LINE:
            msg = (
                f"an event {event!r} of {len(data):,} bytes is larger than the {MAX_LINE:,} bytes that one may have; "
                "save big values with stage().save_artifact() and report the URI"
            )
            raise EventTooLargeError(msg)
        if self._sink is not None:
            self._sink.append(data)


class _Folder:
    """Appends to a file; one write call per line, so that a killed process tears its last line at most.

    A disk that becomes full tears one as well. The next one, when there is room again, begins with the end of that.
    """

    def __init__(self, uri: str, process: str) -> None:
        folder = unquote(urlsplit(uri).path)
        os.makedirs(folder, exist_ok=True)
        self._file = os.open(os.path.join(folder, f"{process}.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._torn = False

    def append(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        written = os.write(self._file, data)
        self._torn = self._torn if written == 0 else written < len(data)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def touch(self, moment: float) -> None:
        os.utime(self._file, (moment, moment))

    def flush(self) -> None:
        """Whoever reads the file sees what was written to it."""


class _Bucket:
    """Uploads what was appended, part by part, from a thread of its own."""

    def __init__(self, uri: str, process: str) -> None:
        from rallypoint.worker.bucket import Bucket  # noqa: PLC0415 - a folder needs none, and a start waits for imports

        self._bucket = Bucket(uri)
        self._process = process
        # A process that starts again in the same attempt has the same name, and must not replace what it wrote before.
        self._part = _PARTS_OF_A_RUN * int(os.environ.get(context.INCARNATION) or 0)
        self._lines = bytearray()  # of this part
        self._uploaded = 0  # bytes of this part
        self._appending = threading.Lock()
        self._uploading = threading.Lock()
        self._sign_of_life = _sign_of_life(process)
        threading.Thread(target=self._run, name="rallypoint-events", daemon=True).start()

    def append(self, data: bytes) -> None:
        self._bucket.refuse_fork()  # the thread that uploads stayed behind
        with self._appending:
            self._lines += data
        self.touch(time.time())

    def touch(self, moment: float) -> None:
        if self._sign_of_life is not None:
            os.utime(self._sign_of_life, (moment, moment))

    def flush(self) -> None:
        with self._uploading:
            with self._appending:
                data = bytes(self._lines)
            if len(data) == self._uploaded:
                return
            self._bucket.write(f"{self._process}.{self._part:06d}.jsonl", data)
            self._uploaded = len(data)
            if len(data) >= PART_SIZE:
                self._part += 1
                self._uploaded = 0
                with self._appending:
                    del self._lines[: len(data)]

    def _run(self) -> None:
        while True:
            time.sleep(UPLOAD_INTERVAL)
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - the next round tries again; the job must not end by it
                print(f"rallypoint: events were not uploaded, will try again: {error}", flush=True)  # noqa: T201


def _sign_of_life(process: str) -> int | None:
    """Open a file whose time says when a bucket's last event was written, for the supervisor's stall timer."""
    folder = os.environ.get(context.LOGS_DIR)
    return os.open(os.path.join(folder, f".events-{process}"), os.O_WRONLY | os.O_CREAT, 0o644) if folder else None
