"""Zips that Ray unpacks on its nodes: the gang's own files, and the user's folders."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import zipfile
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_PACKAGE = 500 << 20  # bytes: what Ray's control store takes
ALWAYS_LEFT_OUT = (
    "__pycache__",
    "*.pyc",
    ".git",
    ".hg",
    ".venv",
    "venv",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same content


@dataclass(frozen=True)
class Package:
    """A zip for the cluster.

    Args:
        name: Its name there.
        data: Its bytes.
    """

    name: str
    data: bytes = field(repr=False)

    @property
    def uri(self) -> str:
        """How a runtime environment names it."""
        return f"gcs://{self.name}"

    @property
    def folder(self) -> str:
        """The name of the folder that a node unpacks it into."""
        return self.name.removesuffix(".zip")


def of_content(data: bytes) -> Package:
    """Return a package that is named by what is in it, so that it is uploaded once."""
    return Package(f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip", data)


def of_secret(data: bytes) -> Package:
    """Return a package whose name nobody can guess."""
    return Package(f"_ray_pkg_{secrets.token_hex(16)}.zip", data)


def zip_files(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of files by their paths in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in sorted(files.items()):
            target.writestr(zipfile.ZipInfo(name, date_time=_EPOCH), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unzip_files(data: bytes) -> dict[str, bytes]:
    """Return the files of a zip by their paths in it."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        return {info.filename: source.read(info) for info in source.infolist() if not info.is_dir()}


def of_path(path: str, *, excludes: Sequence[str] = (), parent: bool = False) -> Package:
    """Return the package of a folder, module file, wheel or zip on this host. It reads files: run it in a thread.

    Args:
        path: Where it is.
        excludes: Shell patterns of paths below the folder, or of names at any depth, that are left out.
        parent: Whether the folder itself is in the zip, as a Python package has to be.

    Raises:
        PreflightError: It is not there, or too large.
    """
    root = Path(path).expanduser().absolute()
    if root.is_file() and root.suffix == ".zip":
        _check_size(path, root.stat().st_size)
        return of_content(root.read_bytes())
    if root.is_file() and root.suffix == ".whl":  # Ray reads version and tags in a wheel's name
        _check_size(path, root.stat().st_size)
        return Package(root.name, root.read_bytes())
    if root.is_file() and root.suffix == ".py":
        return of_content(zip_files({root.name: root.read_bytes()}))
    if not root.is_dir():
        msg = (
            f"got {path!r} in runtime_env, expected a folder, .py, .zip or .whl file on this host, or a URI such as "
            "s3://bucket/code.zip"
        )
        raise PreflightError(msg)
    base = root.parent if parent else root
    total, buffer = 0, io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for file in _files(root, excludes):
            total += file.stat().st_size
            _check_size(path, total)
            info = zipfile.ZipInfo(file.relative_to(base).as_posix(), date_time=_EPOCH)
            info.external_attr = (file.stat().st_mode & 0o777) << 16  # a script may be executable
            target.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return of_content(buffer.getvalue())


def _files(root: Path, excludes: Sequence[str]) -> Iterator[Path]:
    patterns = (*ALWAYS_LEFT_OUT, *excludes)
    for where, folders, names in os.walk(root):
        here = Path(where)
        folders[:] = sorted(name for name in folders if not _left_out(here / name, root, patterns))
        for name in sorted(names):
            file = here / name
            if file.is_file() and not _left_out(file, root, patterns):
                yield file


def _left_out(path: Path, root: Path, patterns: Sequence[str]) -> bool:
    below = path.relative_to(root).as_posix()
    return any(fnmatch(below, pattern.strip("/")) or fnmatch(path.name, pattern.strip("/")) for pattern in patterns)


def _check_size(path: str, size: int) -> None:
    if size > MAX_PACKAGE:
        msg = (
            f"got {path!r} in runtime_env with more than {MAX_PACKAGE >> 20} MiB, expected less: leave files out with "
            "excludes, or give the URI of a zip in a bucket"
        )
        raise PreflightError(msg)
