"""What a Python interpreter of this host has, looked up before a job is started with it."""

from __future__ import annotations

import json
import os
import pkgutil
import site
import socket
import subprocess
import sys
from importlib.machinery import PathFinder
from typing import Any

from rallypoint.errors import PreflightError
from rallypoint.worker import probe

# The orchestrator's own settings and credentials are no business of a job.
ORCHESTRATORS = ("AIRFLOW", "_AIRFLOW", "__AIRFLOW", "PREFECT_")


def look_at(python: str, modules: tuple[str, ...]) -> dict[str, Any]:
    """Return an interpreter's minor version, which of the modules it does not have, and the versions of the others.

    They are ``python``, ``missing`` and ``versions``.

    Raises:
        PreflightError: It cannot be run on this host.
    """
    if python == sys.executable and _are_installed(modules):
        return probe.facts([], list(modules))
    try:
        done = subprocess.run(
            [python, "-c", (pkgutil.get_data(probe.__name__, "probe.py") or b"").decode(), *modules],
            env={name: value for name, value in os.environ.items() if not name.startswith(ORCHESTRATORS)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except FileNotFoundError:
        msg = f"got python={python!r}, expected the path of a Python interpreter on {socket.gethostname()}"
        raise PreflightError(msg) from None
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or error
        msg = f"the job's Python {python} cannot be run on {socket.gethostname()}: {detail}"
        raise PreflightError(msg) from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _are_installed(modules: tuple[str, ...]) -> bool:
    """Return whether modules are in this interpreter's own site-packages, where a job of it will find them.

    It saves the start of a process before every launch. What is elsewhere, only the interpreter itself can tell: the
    folders of this process's PYTHONPATH are none of the job's.
    """
    places = site.getsitepackages()
    return all(PathFinder.find_spec(name, places) is not None for name in modules)
