"""What travels with every gang: Rallypoint's remote half and cloudpickle, in one zip that Python imports from.

So the job's Python needs neither. The archive holds the same bytes for the same version, which lets a launcher keep
one copy.
"""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ARCHIVE = "rallypoint.zip"
_PARTS = ("__init__.py", "errors.py", "worker", "frameworks", "examples", "spec")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LEVEL = 1  # of the compression: every task's process makes the zip, and a smaller one is hardly smaller


@lru_cache(maxsize=1)
def archive() -> bytes:
    """Return the zip's bytes."""
    import cloudpickle  # noqa: PLC0415 - DAG files import this module, and only a task needs it

    pickle = Path(cloudpickle.__file__).resolve().parent
    others = {(Path(pickle.name) / file.relative_to(pickle)).as_posix(): file.read_bytes() for file in _sources(pickle)}
    return pack(_PARTS, others)


def pack(parts: Sequence[str], others: Mapping[str, bytes]) -> bytes:
    """Return a zip that Python imports from; of the same content it has the same bytes.

    Args:
        parts: Files and folders of this package.
        others: Further files, by their names in the zip.
    """
    package = Path(__file__).resolve().parent.parent
    files = {
        (Path(package.name) / file.relative_to(package)).as_posix(): file.read_bytes()
        for part in parts
        for file in _sources(package / part)
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in {**files, **others}.items():
            target.writestr(zipfile.ZipInfo(name, date_time=_EPOCH), data, zipfile.ZIP_DEFLATED, _LEVEL)
    return buffer.getvalue()


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))
