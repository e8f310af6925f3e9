"""Runs the user's code: a script, a module or a function, in the way that Python itself would."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import runpy
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MAGIC = b"rallypoint-function\n"


class EntryLoadError(RuntimeError):
    """The user's code cannot be loaded here; another try fails in the same way."""


def pack_function(pickled: bytes, header: Mapping[str, Any]) -> bytes:
    """Return the file that carries a pickled call: a JSON header that can be read before anything is unpickled."""
    head = json.dumps(dict(header), sort_keys=True).encode()
    return _MAGIC + struct.pack(">I", len(head)) + head + pickled


def unpack_function(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the pickled call of a file made by `pack_function`."""
    if not data.startswith(_MAGIC):
        msg = "this is no file of a pickled function"
        raise EntryLoadError(msg)
    start = len(_MAGIC) + 4
    (length,) = struct.unpack(">I", data[len(_MAGIC) : start])
    return json.loads(data[start : start + length]), data[start + length :]


def run_entry(argv: Sequence[str], *, inject: Mapping[str, Any] | None = None) -> Any:
    """Run ``script PATH ARG…``, ``module NAME ARG…`` or ``function FILE``.

    Args:
        argv: The kind of the entry, where it is, and its arguments.
        inject: Values for a function's parameters of these names, such as a connected client.

    Returns:
        The function's return value; None for a script or module.

    Raises:
        EntryLoadError: The entry is not here, or was made for another Python.
    """
    kind, where, *rest = argv
    if kind == "script":
        if not os.path.isfile(where):
            msg = f"there is no script {where!r} on this host: put it where the job can see it"
            raise EntryLoadError(msg)
        sys.argv = [where, *rest]
        # As `python script.py` does: the script's folder comes first.
        sys.path.insert(0, os.path.dirname(os.path.abspath(where)))
        runpy.run_path(where, run_name="__main__")
        return None
    if kind == "module":
        sys.argv = [where, *rest]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(where, run_name="__main__", alter_sys=True)
        return None
    if kind == "function":
        function, args, kwargs = load_function(where)
        return _call(function, args, kwargs, inject or {})
    msg = f"got an entry of kind {kind!r}, expected 'script', 'module' or 'function'"
    raise EntryLoadError(msg)


def load_function(path: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Unpickle a call, if this is the Python that it was made for.

    Raises:
        EntryLoadError: Another Python minor version made it, or a module that it needs is not here.
    """
    with open(path, "rb") as file:
        header, pickled = unpack_function(file.read())
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if header["python"] != here:
        msg = (
            f"the function {header['name']} was pickled by Python {header['python']} and cannot be loaded by the "
            f"job's Python {here} ({sys.executable}): use the same minor version for both, or give the code as a script"
        )
        raise EntryLoadError(msg)
    pickle = importlib.import_module("cloudpickle")
    try:
        function, args, kwargs = pickle.loads(pickled)
    except ImportError as error:
        msg = (
            f"the function {header['name']} needs the module {error.name!r}, which {sys.executable} does not have: "
            "install it there"
        )
        raise EntryLoadError(msg) from error
    return function, args, kwargs


def _call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], inject: Mapping[str, Any]
) -> Any:
    """Call a function, with the injected values for those of its parameters that nothing else was given for."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature takes none of them
        return function(*args, **kwargs)
    given = {
        parameter.name: inject[parameter.name] for parameter in parameters if parameter.name in inject.keys() - kwargs
    }
    if not given:
        return function(*args, **kwargs)
    # Positional arguments fill the other parameters: whoever wrote the call did not count the injected one.
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in given]
    named = dict(zip(places, args, strict=False))
    return function(*args[len(places) :], **named, **kwargs, **given)
