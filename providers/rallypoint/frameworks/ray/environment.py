"""What the workers of a cluster that was there before get of a job: its variables, its folders and Rallypoint itself.

It travels as a *setup hook*, a function that Ray stores in the cluster's memory and runs first in each of the job's
worker processes. So none of it is in the ``runtime_env`` that the dashboard and the Jobs API show; whoever can connect
to the cluster's GCS can read it there, as they can read everything of the job. Workers of a Ray that was made for the
attempt inherit the driver's environment, and need none of this.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.spec.shipment import ARCHIVE, archive
from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_BUCKET = re.compile(r"^(AWS|AZURE|GOOGLE)_")


def variables(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a worker needs, from the driver's environment.

    Args:
        names: Those of the job: its ``env`` and its secrets.
        environment: The driver's environment.
    """
    stage = context.StageContext.from_environment()
    wanted = {name: environment[name] for name in names if name in environment and name != "PYTHONPATH"}
    for name in (context.EVENTS_URI, context.ATTEMPT_ID):
        if name in environment:
            wanted[name] = environment[name]
    if stage is not None:
        wanted[context.STAGE] = stage.to_json()
        if not stage.data_uri.startswith("file://"):  # workers open the same bucket
            wanted |= {name: value for name, value in environment.items() if _BUCKET.match(name)}
    return wanted


def setup_hook(values: Mapping[str, str]) -> Callable[[], None]:
    """Return the function that prepares a worker process.

    It is nested, so that it travels by value: it runs before anything of Rallypoint can be imported.

    Args:
        values: Variables, from `variables`.
    """
    data = _shipment()
    wanted = dict(values)
    folders = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path).name != ARCHIVE
    ]

    def prepare_worker() -> None:
        import hashlib  # noqa: PLC0415 - the function travels without its module
        import os  # noqa: PLC0415 - likewise
        import sys  # noqa: PLC0415 - likewise
        import tempfile  # noqa: PLC0415 - likewise
        from pathlib import Path  # noqa: PLC0415 - likewise

        os.environ.update(wanted)
        folder = Path(tempfile.gettempdir(), f"rallypoint-shipped-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
            message = f"got {folder}, which others can write to, expected a folder of this user alone: remove it"
            raise RuntimeError(message)
        shipped = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.zip"
        if not shipped.exists():
            draft = folder / f"{shipped.name}.{os.getpid()}"
            draft.write_bytes(data)
            draft.replace(shipped)
        sys.path.insert(0, str(shipped))
        sys.path.extend(each for each in folders if Path(each).is_dir() and each not in sys.path)
        found = [str(shipped), *folders, os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(each for each in found if each)

    return prepare_worker


def _shipment() -> bytes:
    """Return the bytes of the archive that this process was started with."""
    for path in sys.path:
        if Path(path).name == ARCHIVE and Path(path).is_file():
            return Path(path).read_bytes()
    return archive()  # a Ray job has it unpacked
