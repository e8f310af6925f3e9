"""The SavedModel that is deployed: on this host, fetched from a bucket, or exported from a Keras model."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rallypoint.frameworks.tensorflow.serving.signature import FILE
from rallypoint.worker.bucket import CLASSES, Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

_KERAS_FILES = (".keras", ".h5", ".hdf5")
_CHUNK = 1 << 20  # bytes


class NoModelError(ValueError):
    """There is no model, or none that can be served."""


def local_path(place: str) -> str | None:
    """Return the local path that a path or a ``file://`` URI names; None for a bucket's URI."""
    if place.startswith("file://"):
        return unquote(urlsplit(place).path)
    return None if place.partition("://")[0] in CLASSES else place


def fetch(place: str, scratch: str) -> str:
    """Return where on this host the model at a path or a URI is: a SavedModel's folder, or a Keras model's file.

    Args:
        place: The path or URI.
        scratch: An empty folder for what is downloaded.

    Raises:
        NoModelError: There is none.
    """
    path = local_path(place)
    if path is None:
        path = _download(place, scratch)
    if path.endswith(_KERAS_FILES) and Path(path).is_file():
        return path
    if Path(path, FILE).is_file():
        return path
    found = sorted(each.name for each in Path(path).iterdir())[:10] if Path(path).is_dir() else "nothing"
    msg = f"got the model {place!r}, where there is {found}; expected a folder with {FILE}, or a file *.keras or *.h5"
    raise NoModelError(msg)


def content_digest(path: str) -> str:
    """Return a name of a file's or a folder's content that is different for different contents."""
    total = hashlib.sha256()
    for file in [Path(path)] if Path(path).is_file() else files_below(path):
        total.update(f"{file.relative_to(path) if file != Path(path) else file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


def files_below(folder: str) -> list[Path]:
    """Return every file of a folder, ``saved_model.pb`` last."""
    found = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return sorted(found, key=lambda path: (path == Path(folder, FILE), str(path)))


def as_saved_model(path: str, scratch: str, say: Callable[[str], None]) -> str:
    """Return the folder of a SavedModel; a Keras model's file is exported.

    Args:
        path: What `fetch` returned.
        scratch: A folder to export into.
        say: Writes a line to the log.
    """
    if Path(path).is_dir():
        return path
    target = str(Path(scratch, "exported"))
    keras: Any = importlib.import_module("tf_keras" if os.environ.get("TF_USE_LEGACY_KERAS") == "1" else "keras")
    say(f"exporting {Path(path).name} with Keras {keras.__version__}")
    keras.models.load_model(path, compile=False).export(target)
    return target


def _download(uri: str, scratch: str) -> str:
    """Download the object, or all objects below the prefix, that a URI names."""
    if uri.endswith(_KERAS_FILES):
        parent, _, name = uri.rpartition("/")
        target = Path(scratch, name)
        try:
            Bucket(parent).download(name, str(target))
        except FileNotFoundError as error:
            msg = f"got the model {uri!r}, expected an object that is there"
            raise NoModelError(msg) from error
        return str(target)
    bucket, root = Bucket(uri), Path(scratch, "model")
    for name, _ in bucket.entries(""):
        target = root / name
        if not target.resolve().is_relative_to(root.resolve()):
            continue  # names in a bucket are its writers'
        target.parent.mkdir(parents=True, exist_ok=True)
        bucket.download(name, str(target))
    return str(root)
