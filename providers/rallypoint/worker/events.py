"""Event lines: how a job answers the orchestrator.

One file per process, one JSON object per line, versioned (``"v": 1``). The kinds are ``opened``, ``progress``,
``metrics``, ``artifact``, ``link``, ``result``, ``failed`` and ``closed``; a reader ignores a kind that it does not
know. On a bucket, which cannot append, a process writes to a local file and uploads what is new every other second,
in parts, so that a long run uploads each line a few times at most.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import tempfile
import threading
import time
from typing import Any
from urllib.parse import unquote, urlsplit

MAX_LINE = 1 << 20  # bytes of one line; the reader refuses a longer one
PART_SIZE = 1 << 20  # bytes after which a bucket's event file is continued in a new object
UPLOAD_INTERVAL = 2.0  # seconds


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
        self._lock = threading.Lock()
        self._sink: _Folder | _Bucket | None = None
        if uri:
            self._sink = _Folder(uri, process) if uri.startswith("file://") else _Bucket(uri, process)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Raises:
            EventTooLargeError: The line would be larger than 1 MiB.
        """
        if self._sink is None:
            return
        line = json.dumps({"v": 1, "t": time.time(), "event": event, "process": self.process, **fields})
        data = line.encode() + b"\n"
        if len(data) > MAX_LINE:
            msg = (
                f"an event {event!r} of {len(data):,} bytes is larger than the {MAX_LINE:,} bytes that one may have; "
                "save big values with stage().save_artifact() and report the URI"
            )
            raise EventTooLargeError(msg)
        with self._lock:
            self._sink.append(data)

    def flush(self) -> None:
        """Return when everything written so far can be read by others."""
        if isinstance(self._sink, _Bucket):
            self._sink.upload()


class _Folder:
    """Appends to a file; one write call per line, so that a killed process tears its last line at most."""

    def __init__(self, uri: str, process: str) -> None:
        folder = unquote(urlsplit(uri).path)
        os.makedirs(folder, exist_ok=True)
        self._file = os.open(os.path.join(folder, f"{process}.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, data: bytes) -> None:
        os.write(self._file, data)


class _Bucket:
    """Uploads what was appended, part by part, from a thread of its own."""

    def __init__(self, uri: str, process: str) -> None:
        try:
            obstore_store = importlib.import_module("obstore.store")
        except ImportError:
            import sys  # noqa: PLC0415 - only this message needs it

            msg = (
                f"the store is the bucket {uri}, and {sys.executable} has no package 'obstore' to reach it with: "
                "install obstore in the job's Python, or use a file:// store that the job can see"
            )
            raise RuntimeError(msg) from None
        self._store = obstore_store.from_url(uri, **_allow_http())
        self._process = process
        self._part = 0
        self._pending = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._uploaded = 0
        self._size = 0
        self._io = threading.Lock()
        threading.Thread(target=self._run, name="rallypoint-events", daemon=True).start()
        atexit.register(self.upload)

    def append(self, data: bytes) -> None:
        with self._io:
            self._pending.seek(0, os.SEEK_END)
            self._pending.write(data)
            self._size += len(data)
        if self._size >= PART_SIZE:
            self.upload()

    def upload(self) -> None:
        with self._io:
            if self._size == self._uploaded:
                return
            self._pending.seek(0)
            data = self._pending.read()
            self._store.put(f"{self._process}.{self._part:06d}.jsonl", data)
            self._uploaded = self._size
            if self._size >= PART_SIZE:
                self._part += 1
                self._size = self._uploaded = 0
                self._pending.seek(0)
                self._pending.truncate()

    def _run(self) -> None:
        while True:
            time.sleep(UPLOAD_INTERVAL)
            try:
                self.upload()
            except Exception as error:  # noqa: BLE001 - the next round tries again; the job must not end by it
                print(f"rallypoint: events were not uploaded, will try again: {error}", flush=True)  # noqa: T201


def _allow_http() -> dict[str, Any]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") or os.environ.get("AWS_ENDPOINT", "")
    return {"client_options": {"allow_http": True}} if endpoint.startswith("http://") else {}
