"""Sets version labels in a server's model config file, and waits until the server goes by them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rallypoint.frameworks.deploy.lease import Lease
from rallypoint.frameworks.deploy.records import open_records
from rallypoint.frameworks.tensorflow.serving.labels import ConfigFileError, labels_of, with_labels
from rallypoint.frameworks.tensorflow.serving.model import local_path
from rallypoint.worker.storage_names import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rallypoint.frameworks.tensorflow.serving.server import Server

_LEASES = ".rallypoint"


class LabelError(TimeoutError):
    """The server does not go by the labels that the config file has."""


class ServedLabels:
    """The labels of one model.

    Args:
        config_file: The path or URI of the file.
        server: The model on the server.
        names: The labels to set.
        owner: Who sets them, as text.
        pause: Seconds between two looks at the server.
        say: Writes a line to the log.
    """

    def __init__(  # noqa: PLR0913 - each comes from somewhere else
        self,
        config_file: str,
        server: Server,
        names: Sequence[str],
        *,
        owner: str,
        pause: float,
        say: Callable[[str], None],
    ) -> None:
        folder, _, self._file = config_file.rpartition("/")
        local = local_path(folder)
        self._records = open_records(folder if local is None else f"file://{quoted(local)}")
        self._where = config_file
        self._server = server
        self._names = names
        self._lease = Lease(self._records, f"{_LEASES}/{self._file}", owner)
        self._pause = pause
        self._say = say
        self._before: dict[str, int] | None = None
        self._version = 0

    def current(self) -> dict[str, int]:
        """Return the labels in the file, with the versions that they name.

        Raises:
            ConfigFileError: It does not list this model, or is none.
        """
        return labels_of(self._text(), self._server.name)

    def set(self, version: int, *, within: float) -> None:
        """Have the labels name a version that is available.

        Raises:
            ConfigFileError: The file does not fit.
            LabelError: The server does not go by it in time.
        """
        if not self._names:
            return
        with self._lease.held(within=within, tell=self._say):
            text = self._text()
            self._before, self._version = labels_of(text, self._server.name), version
            self._write(text, {**self._before, **dict.fromkeys(self._names, version)})
        deadline = time.monotonic() + within
        while missing := [name for name in self._names if self._server.labelled(name) != version]:
            if time.monotonic() > deadline:
                msg = (
                    f"the server does not have {', '.join(missing)} for version {version} within {within:g} s; does it "
                    f"run with --model_config_file={self._where} and --model_config_file_poll_wait_seconds?"
                )
                raise LabelError(msg)
            time.sleep(self._pause)
        self._say(f"labelled {', '.join(self._names)}: version {version}")

    def restore(self) -> None:
        """Have the labels that name the version of `set` name what they named before."""
        if self._before is None:
            return
        with self._lease.held(within=self._pause + 10.0):
            text = self._text()
            now = labels_of(text, self._server.name)
            kept = {name: number for name, number in now.items() if number != self._version or name not in self._names}
            # An attempt that was killed may have set them before: what goes away is nothing to go back to.
            earlier = {name: number for name, number in self._before.items() if number != self._version}
            self._write(text, {**{name: earlier[name] for name in self._names if name in earlier}, **kept})

    def _write(self, text: str, labels: dict[str, int]) -> None:
        self._records.write(self._file, with_labels(text, self._server.name, labels).encode())

    def _text(self) -> str:
        data = self._records.read(self._file)
        if data is None:
            msg = f"there is no model config file {self._where}: correct config_file="
            raise ConfigFileError(msg)
        return data.decode(errors="surrogateescape")
