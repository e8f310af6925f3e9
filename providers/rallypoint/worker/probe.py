"""Says what this Python has, as one JSON line, without importing any of it.

``python -S`` would miss site-packages, so the launcher runs it plainly, by its text: this file may lie in a zip.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from typing import Any


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


def facts(missing: list[str], modules: list[str]) -> dict[str, Any]:
    """Return this Python's minor version, which of the modules are missing, and the versions of the others."""
    versions = {name: version for name in modules if name not in missing and (version := _version(name))}
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "missing": missing, "versions": versions}


def main(modules: list[str]) -> None:
    """Print the facts."""
    print(json.dumps(facts(absent(modules), modules)))  # noqa: T201


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # it is missing, or a part of a package of another name
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
