"""Finds the `Job` that ``FILE.py:NAME`` names."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.errors import InvalidEntryError
from rallypoint.spec.entry import Script
from rallypoint.spec.job import Job

if TYPE_CHECKING:
    from types import ModuleType

_FORM = "FILE.py:NAME, a job in a Python file"


@dataclass(frozen=True)
class Target:
    """A job, and where it was found.

    Args:
        file: The Python file.
        name: The job's name in it.
        job: The job.
    """

    file: Path
    name: str
    job: Job

    @property
    def stage(self) -> str:
        """What its stage is called unless somebody says otherwise."""
        return f"{self.file.stem}.{self.name}"


def load_target(given: str) -> Target:
    """Return the job that ``FILE.py:NAME`` names. The relative path of a script is one beside that file.

    Raises:
        InvalidEntryError: There is no such file or job, or the file cannot be loaded.
    """
    path, _, name = given.rpartition(":")
    if not path or (name and not name.isidentifier()):
        path, name = given, ""
    file = Path(path).expanduser().absolute()
    if not file.is_file() or file.suffix != ".py":
        what = "which is no Python file" if file.exists() else "and there is no such file"
        msg = f"got {given!r} {what}, expected {_FORM}"
        raise InvalidEntryError(msg)
    module = _load(file)
    found = getattr(module, name, None) if name else None
    if isinstance(found, Job):
        return Target(file, name, _beside(file, found))
    if not name:
        problem = "without a name"
    elif hasattr(module, name):
        problem = f"in which {name} is a {type(found).__name__} and no job"
    else:
        problem = f"in which there is no {name}"
    msg = f"got {given!r} {problem}, expected {_FORM}; {_jobs(module, file)}"
    raise InvalidEntryError(msg)


def _beside(file: Path, job: Job) -> Job:
    """Return a job whose script is found from a file's folder, as an operator's is from its DAG file's."""
    entry = job.entry
    return replace(job, entry=replace(entry, path=str(file.parent / entry.path))) if isinstance(entry, Script) else job


def _jobs(module: ModuleType, file: Path) -> str:
    jobs = [f"{name} ({type(value).__name__})" for name, value in vars(module).items() if isinstance(value, Job)]
    return f"{file.name} has the jobs {', '.join(sorted(jobs))}" if jobs else f"{file.name} has no jobs"


def _load(file: Path) -> ModuleType:
    """Run a file as a module of a name that no other module has, so that functions in it travel by value."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:10]
    name = f"rallypoint_target_{digest}_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        msg = f"got {str(file)!r}, which Python cannot load, expected {_FORM}"
        raise InvalidEntryError(msg)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # as `python FILE.py` does, for the modules beside it
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        where = f"{file}:{line}" if line else str(file)
        what = " ".join(str(error).split()) if not isinstance(error, SyntaxError) else error.msg
        msg = f"{where} cannot be loaded: {type(error).__name__}: {what}"
        raise InvalidEntryError(msg) from error
    return module
