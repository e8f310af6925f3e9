"""Watches a service's lease, so that a service ends when nobody wants it any more.

Whoever waits for the service or uses it writes the lease again and again. Here it is only looked at: when its content
has not changed for that many seconds by this host's own clock, it has expired. So no two clocks are compared, and a
lease that cannot be read (a full disk, a bucket that is out of reach) expires, too.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rallypoint.worker.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

_SHARE = 0.1  # of a lease that passes between two looks
_LONGEST = 30.0  # seconds between two looks: what they cost is nothing, and an expiry is noticed soon


class LeaseWatch:
    """Looks at a lease from a thread of its own: a bucket may answer late, and the supervisor does not wait for it.

    Args:
        uri: A ``file://`` path, or a bucket's object, whose credentials come from the environment.
        seconds: How long the lease lasts after every change.
    """

    def __init__(self, uri: str, seconds: float) -> None:
        self.seconds = seconds
        self._uri = uri
        self._seen: bytes | None = None
        self._renewed = time.monotonic()
        threading.Thread(target=self._run, name="rallypoint-lease", daemon=True).start()

    @property
    def expired(self) -> bool:
        """Whether it was not renewed for too long."""
        return time.monotonic() - self._renewed >= self.seconds

    def _run(self) -> None:
        read: Callable[[], bytes] | None = None
        while True:
            with contextlib.suppress(OSError, ImportError):  # it is absent, or out of reach
                read = read or _reader(self._uri)
                content = read()
                if content != self._seen:
                    self._seen, self._renewed = content, time.monotonic()
            time.sleep(min(self.seconds * _SHARE, _LONGEST))


def _reader(uri: str) -> Callable[[], bytes]:
    if not uri.startswith("file://"):
        folder, _, name = uri.rpartition("/")
        bucket = Bucket(folder)
        return lambda: bucket.read(name)
    path = unquote(urlsplit(uri).path)

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return read
