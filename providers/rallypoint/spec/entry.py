"""The user's code in a job: a script, a module, a Python function, or a jar for those jobs that have a JVM."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import site
import sys
import sysconfig
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rallypoint.errors import InvalidEntryError
from rallypoint.spec.gang import Macro, has_macro
from rallypoint.worker.entry import pack_function

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FUNCTION_FILE = "function.pkl"
PYTHON_MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
_PICKLING = threading.Lock()  # which modules travel by value is a setting of the whole process


@dataclass(frozen=True)
class Script:
    """A Python script, run as ``python script.py ARG…`` would.

    Args:
        path: Where the script is on the hosts that run it.
        args: Its arguments.
    """

    path: str
    args: Sequence[str] = ()

    @property
    def identity(self) -> str:
        """What makes it the same code for a retry, whatever is in it."""
        return f"script {self.path}"

    def arguments(self) -> dict[str, Any]:
        """The arguments that belong to the fingerprint, by name."""
        return _positions(self.args)

    def command(self) -> tuple[str, ...]:
        """The words that `rallypoint.worker.entry.run_entry` takes."""
        return ("script", *_words((self.path, *self.args)))

    def files(self) -> dict[str, bytes]:
        """What has to be shipped with the gang."""
        return {}


@dataclass(frozen=True)
class Module:
    """A Python module, run as ``python -m package.module ARG…`` would.

    Args:
        name: The module's dotted name; the job's Python must have it.
        args: Its arguments.
    """

    name: str
    args: Sequence[str] = ()

    @property
    def identity(self) -> str:
        """What makes it the same code for a retry, whatever is in it."""
        return f"module {self.name}"

    def arguments(self) -> dict[str, Any]:
        """The arguments that belong to the fingerprint, by name."""
        return _positions(self.args)

    def command(self) -> tuple[str, ...]:
        """The words that `rallypoint.worker.entry.run_entry` takes."""
        return ("module", *_words((self.name, *self.args)))

    def files(self) -> dict[str, bytes]:
        """What has to be shipped with the gang."""
        return {}


@dataclass(frozen=True)
class Function:
    """A Python function and its arguments; it travels by cloudpickle to the job, and only in that direction.

    Args:
        call: The function. One of an importable module travels by name; one of a DAG file or a notebook by value.
        args: Positional arguments.
        kwargs: Keyword arguments.
        by_value: Whether everything that the function uses of its module travels by value too. It does of a DAG file
            or a notebook anyway; a face asks for it where importing the module would import the orchestrator.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    by_value: bool = field(default=False, kw_only=True)

    @property
    def identity(self) -> str:
        """What makes it the same code for a retry, whatever is in it."""
        return f"function {_module_label(self.call)}.{self.name}"

    @property
    def name(self) -> str:
        """The function's own name."""
        return getattr(self.call, "__qualname__", type(self.call).__qualname__)

    def arguments(self) -> dict[str, Any]:
        """The arguments that belong to the fingerprint, by name."""
        return {**_positions(self.args), **self.kwargs}

    def command(self) -> tuple[str, ...]:
        """The words that `rallypoint.worker.entry.run_entry` takes."""
        return ("function", f"{Macro.RUN_DIR}/{FUNCTION_FILE}")

    def files(self) -> dict[str, bytes]:
        """What has to be shipped with the gang.

        Raises:
            InvalidEntryError: The function or an argument cannot be pickled.
        """
        header = {"v": 1, "name": self.name, "python": PYTHON_MINOR}
        return {FUNCTION_FILE: pack_function(self._pickled(), header)}

    def _pickled(self) -> bytes:
        with _PICKLING:
            return self._pickled_alone()

    def _pickled_alone(self) -> bytes:
        module = sys.modules.get(getattr(self.call, "__module__", "") or "")
        by_value = module is not None and (self.by_value or not _importable(module))
        if by_value:
            _cloudpickle().register_pickle_by_value(module)
        try:
            return bytes(_cloudpickle().dumps((self.call, tuple(self.args), dict(self.kwargs))))
        except Exception as error:
            msg = (
                f"got the function {self.name}, which cannot be pickled ({type(error).__name__}: {error}), expected "
                "one whose globals, closure and arguments can travel to another process: create locks, connections "
                "and sessions inside the function, or give the code as a script"
            )
            raise InvalidEntryError(msg) from error
        finally:
            if by_value:
                _cloudpickle().unregister_pickle_by_value(module)


@dataclass(frozen=True)
class Jar:
    """A Java or Scala application, which only jobs with a JVM take.

    Args:
        path: Where the jar is: a path, or a URI of Hadoop's.
        main_class: The class whose ``main`` is run.
        args: Its arguments.
    """

    path: str
    main_class: str
    args: Sequence[str] = ()

    @property
    def identity(self) -> str:
        """What makes it the same code for a retry, whatever is in it."""
        return f"jar {self.path} {self.main_class}"

    def arguments(self) -> dict[str, Any]:
        """The arguments that belong to the fingerprint, by name."""
        return _positions(self.args)

    def command(self) -> tuple[str, ...]:
        """The words that the job's driver takes."""
        return ("jar", *_words((self.path, self.main_class, *self.args)))

    def files(self) -> dict[str, bytes]:
        """What has to be shipped with the gang."""
        return {}


Entry: TypeAlias = Script | Module | Function | Jar


def as_entry(value: object) -> Entry:
    """Return `value` as an entry: a path is a script, a callable a function.

    Raises:
        InvalidEntryError: It is neither.
    """
    if isinstance(value, Script | Module | Function | Jar):
        return value
    if isinstance(value, str | os.PathLike):
        return Script(os.fspath(value))
    if callable(value):
        return Function(value)
    msg = f"got {value!r} as the entry of a job, expected a script's path, a function, or Script, Module or Function"
    raise InvalidEntryError(msg)


@lru_cache(maxsize=1)
def project_folders() -> tuple[str, ...]:
    """Return the folders of the user's own modules: what is on ``sys.path`` beside the standard library and packages.

    A function that travels may name modules from them (a `plugins` folder, helpers beside the DAG file), so jobs on
    the same host get them on their path too.
    """
    paths = sysconfig.get_paths()
    own = {os.path.realpath(path) for path in (*paths.values(), *site.getsitepackages(), site.getusersitepackages())}
    own |= {str(Path(sys.executable).parent), str(Path(sys.executable).resolve().parent)}
    folders = dict.fromkeys(os.path.realpath(path) for path in sys.path if path)
    return tuple(
        path
        for path in folders
        if Path(path).is_dir() and path not in own and not path.startswith(os.path.realpath(paths["stdlib"]) + os.sep)
    )


def _importable(module: Any) -> bool:
    """Whether another process can import the module by its name: its file lies where its name says.

    Airflow loads DAG files under a made-up name (``unusual_prefix_<hash>_flights``), which no other process knows.
    """
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    tail = module.__name__.replace(".", "/")
    stem = Path(file).with_suffix("")
    return stem.as_posix().endswith(f"/{tail}") or stem.as_posix().endswith(f"/{tail}/__init__")


def _module_label(call: Callable[..., Any]) -> str:
    name = getattr(call, "__module__", None) or "?"
    module = sys.modules.get(name)
    if module is not None and not _importable(module) and getattr(module, "__file__", None):
        return Path(str(module.__file__)).stem
    return name


def _positions(args: Sequence[Any]) -> dict[str, Any]:
    return {f"#{position}": value for position, value in enumerate(args, start=1)}


def _words(args: Sequence[str]) -> tuple[str, ...]:
    words = tuple(str(arg) for arg in args)
    for word in words:
        if has_macro(word) or "\0" in word:
            msg = f"got the argument {word!r}, expected one without NUL and without ${{rallypoint:…}}"
            raise InvalidEntryError(msg)
    return words


def canonical(value: Any) -> bytes:
    """Return bytes that are equal for equal arguments, in every process: sorted JSON, and pickles where that ends."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_stand_in).encode()
    except (TypeError, ValueError):
        return bytes(_cloudpickle().dumps(value))


def _stand_in(value: Any) -> Any:
    """Return JSON that is the same in every process for a value that is none.

    Pickles of sets differ between processes by the order of their items, those of a DAG file's own classes by an id.
    """
    if isinstance(value, set | frozenset):
        return {"set": sorted(canonical(item).decode(errors="backslashreplace") for item in value)}
    if inspect.isroutine(value) or isinstance(value, type):
        return {"name": f"{_module_label(value)}.{value.__qualname__}"}
    module = sys.modules.get(type(value).__module__)
    if hasattr(value, "__dict__") and (module is None or module.__name__ == "__main__" or not _importable(module)):
        return {"class": type(value).__qualname__, "state": vars(value)}
    return {"pickle": hashlib.sha256(_cloudpickle().dumps(value)).hexdigest()}


def _cloudpickle() -> Any:
    """Return the package; DAG files import this module, and only a task pickles."""
    import cloudpickle  # noqa: PLC0415

    return cloudpickle
