"""TensorFlow Hub inside a job: modules by handle or path, kept in the store for retries and other stages.

``load`` and ``layer`` take what `tensorflow_hub.load` and `tensorflow_hub.KerasLayer` take. The difference is in the
download: it is published in the cache whole or not at all, without a lock file, so a download that was killed holds
nobody up (TensorFlow Hub's own waits ten minutes for its lock to go stale), and a missing network is an error at once.

The cache is ``TFHUB_CACHE_DIR`` if that is set; else ``tfhub`` in the stage's store, folder or bucket; else, outside
of a stage, TensorFlow Hub's own default. Its folders have TensorFlow Hub's own names, so a module that was put there by
other means is found, and one that was downloaded here is found by other tools.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlencode, urlsplit

from rallypoint.worker.context import StageContext
from rallypoint.worker.storage import Storage, open_storage, scratch_folder
from rallypoint.worker.storage_names import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

CACHE_DIR = "TFHUB_CACHE_DIR"  # TensorFlow Hub's own
STORE_FOLDER = "tfhub"
TIMEOUT = 60.0  # seconds that a server may be silent
_MODEL = "saved_model.pb"
_HTTP = ("http://", "https://")
_COMPRESSED = {"tf-hub-format": "compressed"}  # how TF Hub's hosting protocol asks for a tar.gz


class HubError(OSError):
    """A module cannot be had: nobody answers, or what is there is none."""


class HubNotFoundError(HubError):
    """The server answers, and has no such module; another try fails in the same way."""


def load(handle: str, **options: Any) -> Any:
    """Load a module.

    Args:
        handle: A folder with a SavedModel, its ``file://`` URI, an ``http(s)://`` handle that is hosted as TensorFlow
            Hub does, or anything else that `tensorflow_hub` resolves, such as a ``gs://`` path.
        **options: `tensorflow_hub.load`'s.

    Returns:
        The loaded SavedModel.

    Raises:
        HubError: It cannot be had; the message says where it was looked for and what to do.
    """
    return _hub().load(resolve(handle), **options)


def layer(handle: str, *, keras: Literal["3", "legacy"] | None = None, trainable: bool = False, **options: Any) -> Any:
    """Return a module as a layer of the Keras that this process uses.

    `tensorflow_hub.KerasLayer` is a layer of the legacy tf-keras and refused by models of Keras 3. There, the module
    becomes a `keras.layers.TFSMLayer`, whose ``call_endpoint`` is the module's ``__call__``, else its
    ``serving_default`` signature.

    Args:
        handle: As `load`'s.
        keras: ``"3"`` or ``"legacy"``; by default what ``TF_USE_LEGACY_KERAS`` says, as TensorFlow does.
        trainable: Whether its weights are trained.
        **options: `tensorflow_hub.KerasLayer`'s, or `keras.layers.TFSMLayer`'s.

    Raises:
        HubError: The module cannot be had.
        ValueError: ``keras`` is something else.
    """
    if keras not in (None, "3", "legacy"):
        msg = f"got keras={keras!r}, expected '3', 'legacy' or None for what TF_USE_LEGACY_KERAS says"
        raise ValueError(msg)
    path = resolve(handle)
    if keras == "legacy" or (keras is None and os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")):
        return _hub().KerasLayer(path, trainable=trainable, **options)
    layers: Any = importlib.import_module("keras").layers
    if "call_endpoint" not in options:
        tensorflow: Any = importlib.import_module("tensorflow")
        itself = callable(tensorflow.saved_model.load(path))
        options["call_endpoint"] = "__call__" if itself else "serving_default"
    return layers.TFSMLayer(path, trainable=trainable, **options)


def resolve(handle: str) -> str:
    """Return where a module is on this host; one that is behind ``http(s)://`` is downloaded unless the cache has it.

    Returns:
        A folder with a SavedModel. Of a handle that only TensorFlow Hub itself can resolve, what it says.

    Raises:
        HubError: It cannot be had.
    """
    if handle.startswith(_HTTP):
        return _cached(handle)
    if "://" in handle and not handle.startswith("file://"):
        os.environ.setdefault(CACHE_DIR, _default_folder())
        return str(_hub().resolve(handle))
    path = unquote(urlsplit(handle).path) if handle.startswith("file://") else handle
    if not Path(path, _MODEL).is_file():
        msg = f"got the module {handle!r}, and there is no {path}/{_MODEL}; expected the folder of a SavedModel"
        raise HubError(msg)
    return path


def _cached(handle: str) -> str:
    storage, where = _cache()
    name = hashlib.sha1(handle.encode()).hexdigest()  # noqa: S324 - TensorFlow Hub's own name for it, no secret
    try:
        return storage.fetch(name)
    except FileNotFoundError:
        with scratch_folder(storage) as folder:
            _download(handle, folder, f"{where}/{name}")
            if name not in storage.names(""):  # another process may have been faster, and somebody reads what it put
                storage.commit(folder, name)
    return storage.fetch(name)


def _download(handle: str, folder: str, looked: str) -> None:
    """Download a module's tar.gz and unpack it.

    Raises:
        HubError: Nobody answers, or this is no module.
        OSError: There is no room for it.
    """
    separator = "&" if urlsplit(handle).query else "?"
    todo = (
        f"give a path to a copy of it, put its files into {looked} from where there is a network, or set {CACHE_DIR} "
        "to a folder that has it"
    )
    try:
        request = urllib.request.Request(f"{handle}{separator}{urlencode(_COMPRESSED)}")  # noqa: S310 - http(s), as asked before
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT) as answer,  # noqa: S310 - likewise
            tarfile.open(fileobj=answer, mode="r|gz") as archive,
        ):
            archive.extractall(folder, filter="data")  # nothing outside of the folder, no devices
    except urllib.error.HTTPError as error:
        kind = HubNotFoundError if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE) else HubError
        msg = f"got the module {handle!r}, and its server answered {error.code}; it is not in {looked}: {todo}"
        raise kind(msg) from error
    except tarfile.TarError as error:
        msg = f"got the module {handle!r}, and its server sent no whole tar.gz ({error}): expected a handle that is hosted as TensorFlow Hub does"  # noqa: E501 - one sentence
        raise HubError(msg) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise  # it came, and there is no room for it
        reason = getattr(error, "reason", None) or error
        msg = f"got the module {handle!r}, which is not in {looked}, and cannot be downloaded ({reason}): {todo}"
        raise HubError(msg) from error
    if not Path(folder, _MODEL).is_file():
        found = ", ".join(sorted(each.name for each in Path(folder).iterdir())[:10]) or "nothing"
        msg = f"got the module {handle!r}, which has {found}; expected a SavedModel of TensorFlow 2, with {_MODEL}"
        raise HubError(msg)


def _cache(environment: Mapping[str, str] = os.environ) -> tuple[Storage, str]:
    """Return the cache, and where it is."""
    stage = StageContext.from_environment()
    if environment.get(CACHE_DIR) or stage is None or not stage.store_uri:
        folder = str(Path(environment.get(CACHE_DIR) or _default_folder()).absolute())
        return open_storage(f"file://{quoted(folder)}"), folder
    uri = f"{stage.store_uri}/{STORE_FOLDER}"
    return open_storage(uri), uri


def _default_folder() -> str:
    """Return the cache of a handle that TensorFlow Hub itself resolves: a folder of the store, if the store is one."""
    stage = StageContext.from_environment()
    if stage is not None and stage.store_uri.startswith("file://"):
        return str(Path(unquote(urlsplit(stage.store_uri).path), STORE_FOLDER))
    return str(Path(tempfile.gettempdir(), "tfhub_modules"))


def _hub() -> Any:
    try:
        return importlib.import_module("tensorflow_hub")
    except ModuleNotFoundError as error:
        if error.name not in ("tensorflow_hub", "pkg_resources"):
            raise
        msg = f"this Python has no {error.name}: install tensorflow-hub, and setuptools below 81 with it"
        raise ModuleNotFoundError(msg, name=error.name) from error
