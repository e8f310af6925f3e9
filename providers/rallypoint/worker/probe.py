"""Says what this Python has, as one JSON line, without importing any of it.

``python -S probe.py`` would miss site-packages, so the launcher runs it plainly: ``python probe.py torch dask``.
"""

from __future__ import annotations

import importlib.util
import json
import sys


def main(modules: list[str]) -> None:
    """Print the version and which of the modules cannot be found."""
    missing = []
    for name in modules:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            missing.append(name)
    print(json.dumps({"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "missing": missing}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
