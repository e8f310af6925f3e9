"""Local code for the cluster: folders are zipped, named by their content, uploaded, and kept for a rollback.

The cluster forgets a package once nothing uses it, so a copy lies in the store, as long as the history needs it.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.deploy.rest import RefusedError
from rallypoint.frameworks.ray.serve.history import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rallypoint.frameworks.deploy.records import Records
    from rallypoint.frameworks.ray.serve.client import Dashboard

MAX_PACKAGE = 500 << 20  # bytes: what Ray's control store takes
_SCHEME = "gcs://"
_PREFIX = "_ray_pkg_"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same content
_LEFT_OUT = frozenset({"__pycache__", ".git", ".hg", ".venv", "venv", ".mypy_cache", ".pytest_cache", ".ruff_cache"})


class Packages:
    """Uploads packages.

    Args:
        dashboard: The cluster.
        records: The store.
    """

    def __init__(self, dashboard: Dashboard, records: Records) -> None:
        self._dashboard = dashboard
        self._records = records
        self._packed: dict[str, bytes] = {}

    def packed(self, config: Mapping[str, Any], *, archive: str | None) -> dict[str, Any]:
        """Return a config with URIs in the place of folders, which are zipped; `send` makes them be there.

        Args:
            config: The application's config.
            archive: A zip of Python modules that goes along, whatever the config says.

        Raises:
            RefusedError: A folder is not there, or too large.
        """
        runtime_env = dict(config.get("runtime_env") or {})
        modules = [self._uri(path, parent=True) for path in runtime_env.get("py_modules") or []]
        if archive is not None:
            modules.append(self._pack(Path(archive).read_bytes()))
        if modules:
            runtime_env["py_modules"] = modules
        if folder := runtime_env.get("working_dir"):
            runtime_env["working_dir"] = self._uri(folder, parent=False)
        return {**config, "runtime_env": runtime_env} if runtime_env else dict(config)

    def send(self) -> None:
        """Store and upload what `packed` has zipped."""
        while self._packed:
            name, data = self._packed.popitem()
            self._records.create(f"{PACKAGES}/{name}", data)
            if not self._dashboard.has_package(name):
                self._dashboard.put_package(name, data)

    def restore(self, config: Mapping[str, Any]) -> None:
        """Upload what a config needs and the cluster has forgotten, from the store."""
        for uri in _uris(config):
            name = uri.removeprefix(_SCHEME)
            if not self._dashboard.has_package(name) and (data := self._records.read(f"{PACKAGES}/{name}")):
                self._dashboard.put_package(name, data)

    def _uri(self, path: str, *, parent: bool) -> str:
        if not path.startswith("/"):
            return path
        if path.endswith((".zip", ".whl")) and Path(path).is_file():
            return self._pack(Path(path).read_bytes(), path[-4:])
        if not Path(path).is_dir():
            msg = f"got {path!r} in runtime_env, expected a folder, .zip or .whl on this host: correct the path"
            raise RefusedError(msg)
        return self._pack(zipped(Path(path), parent=parent))

    def _pack(self, data: bytes, suffix: str = ".zip") -> str:
        if len(data) >= MAX_PACKAGE:
            msg = (
                f"got a package of {len(data):,} bytes, expected less than {MAX_PACKAGE:,}: leave data out of the "
                "folder, or put the zip into a bucket and give its URI"
            )
            raise RefusedError(msg)
        name = f"{_PREFIX}{hashlib.sha256(data).hexdigest()[:40]}{suffix}"
        self._packed[name] = data
        return f"{_SCHEME}{name}"


def zipped(folder: Path, *, parent: bool) -> bytes:
    """Return a folder as a zip, the same bytes for the same content.

    Args:
        folder: The folder. Caches, virtual environments and version control in it are left out.
        parent: Whether the folder itself is in the zip, as a Python module has to be.
    """
    root = folder.parent if parent else folder
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for path in _files(folder):
            info = zipfile.ZipInfo(path.relative_to(root).as_posix(), date_time=_EPOCH)
            info.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
            target.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(files):
            if not name.endswith(".pyc"):
                yield Path(where) / name


def _uris(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "runtime_env" and isinstance(each, dict):
                named = [each.get("working_dir"), *(each.get("py_modules") or [])]
                yield from (uri for uri in named if isinstance(uri, str) and uri.startswith(_SCHEME))
            else:
                yield from _uris(each)
    elif isinstance(value, list):
        for each in value:
            yield from _uris(each)
