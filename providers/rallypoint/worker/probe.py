"""Says what this Python has, as one JSON line, without importing any of it.

``python -S`` would miss site-packages, so the launcher runs it plainly, by its text: this file may lie in a zip.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys


def absent(modules: list[str]) -> list[str]:
    """Return those of the modules that cannot be found."""
    missing = []
    for name in modules:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            missing.append(name)
    return missing


def main(modules: list[str]) -> None:
    """Print the version, which of the modules cannot be found, and the versions of the others."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = {"python": version, "missing": absent(modules), "versions": {name: _version(name) for name in modules}}
    print(json.dumps(found))  # noqa: T201


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # it is missing, or a part of a package of another name
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
