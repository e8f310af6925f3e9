"""A local folder whose files are copied to a bucket as they grow, for what a framework writes by itself.

Frameworks append to files, and a bucket's objects cannot be appended to: what has changed is uploaded anew, from time
to time and when the process ends. Only a process that is killed loses what came after the last upload.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time

from rallypoint.worker.bucket import Bucket

INTERVAL = 15.0  # seconds between two uploads
_SHARE = 10.0  # a round that took a second is followed by a pause of ten: uploading stays a small part of the work


class Mirror:
    """Copies a folder to a bucket.

    Args:
        uri: The bucket's prefix that the folder is copied to.
        interval: Seconds between two uploads.

    Attributes:
        folder: The folder to write into; it is on the job's own disk and gone when the process has ended.
    """

    def __init__(self, uri: str, *, interval: float = INTERVAL) -> None:
        self.folder = tempfile.mkdtemp(prefix="rallypoint-mirror-")
        self._bucket = Bucket(uri)
        self._interval = interval
        self._sent: dict[str, tuple[int, int]] = {}
        self._uploading = threading.Lock()
        self._pid = os.getpid()
        # Whoever writes here registers its own last flush later, so that one comes before this one.
        atexit.register(self._finish)
        threading.Thread(target=self._run, name="rallypoint-mirror", daemon=True).start()

    def flush(self) -> None:
        """Upload what has changed since the last time.

        Raises:
            StorageError: The bucket cannot be written.
        """
        with self._uploading:
            for where, _, names in os.walk(self.folder):
                for name in names:
                    path = os.path.join(where, name)
                    status = os.stat(path)
                    state = (status.st_size, status.st_mtime_ns)  # as of before: what is appended meanwhile comes next
                    relative = os.path.relpath(path, self.folder)
                    if self._sent.get(relative) != state:
                        self._bucket.upload(path, relative)
                        self._sent[relative] = state

    def _run(self) -> None:
        pause = self._interval
        while True:
            time.sleep(pause)
            began = time.monotonic()
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - the next round tries again; the job must not end by it
                print(f"rallypoint: {self.folder} was not uploaded, will try again: {error}", flush=True)  # noqa: T201
            pause = max(self._interval, _SHARE * (time.monotonic() - began))

    def _finish(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child: the folder is its parent's
        try:
            self.flush()
        except Exception as error:  # noqa: BLE001 - the process ends, and its result is another thing
            print(f"rallypoint: the last of {self.folder} was not uploaded: {error}", flush=True)  # noqa: T201
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
