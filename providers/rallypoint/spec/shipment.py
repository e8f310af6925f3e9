"""What travels with every gang: Rallypoint's remote half and cloudpickle, in one zip that Python imports from.

So the job's Python needs neither. The archive holds the same bytes for the same version, which lets a launcher keep
one copy.
"""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path

ARCHIVE = "rallypoint.zip"
_PARTS = ("__init__.py", "errors.py", "worker", "frameworks", "examples", "spec")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LEVEL = 1  # of the compression: every task's process makes the zip, and a smaller one is hardly smaller


@lru_cache(maxsize=1)
def archive() -> bytes:
    """Return the zip's bytes."""
    import cloudpickle  # noqa: PLC0415 - DAG files import this module, and only a task needs it

    package = Path(__file__).resolve().parent.parent
    pickle = Path(cloudpickle.__file__).resolve().parent
    files = [file for part in _PARTS for file in _sources(package / part)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for root, sources in ((package, files), (pickle, _sources(pickle))):
            for file in sources:
                info = zipfile.ZipInfo((Path(root.name) / file.relative_to(root)).as_posix(), date_time=_EPOCH)
                target.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED, _LEVEL)
    return buffer.getvalue()


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))
