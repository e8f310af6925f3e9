"""Where TensorFlow's own checkpoints are kept in a stage: below its generation, beside those of ``save_checkpoint``."""

from __future__ import annotations

import os
from urllib.parse import unquote

from rallypoint.worker.stage import stage

_LOCAL = "file://"
_READ_BY_TENSORFLOW = ("gs://",)


class StoreNotWritableError(RuntimeError):
    """TensorFlow itself cannot write to the stage's store."""


def own_folder(name: str) -> str:
    """Return the folder of that name, the same for every attempt of the generation and empty in a new one.

    Raises:
        StoreNotWritableError: The store is one that TensorFlow does not write to.
    """
    uri = stage().data_uri
    if uri.startswith(_LOCAL):
        path = os.path.join(unquote(uri.removeprefix(_LOCAL)), "tensorflow", name)  # noqa: PTH118 - runs in the job
        os.makedirs(path, exist_ok=True)  # noqa: PTH103 - as above
        return path
    if uri.startswith(_READ_BY_TENSORFLOW):
        return f"{uri}/tensorflow/{name}"
    msg = (
        f"got the store {uri}, expected file:// or gs://, which TensorFlow writes its checkpoints to itself; on this "
        "one use stage().save_checkpoint(lambda folder: checkpoint.write(folder + '/state')) and latest_checkpoint()"
    )
    raise StoreNotWritableError(msg)
