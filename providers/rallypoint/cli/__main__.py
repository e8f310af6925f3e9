"""Makes ``python -m rallypoint.cli`` the same as ``rallypoint``."""

from __future__ import annotations

from rallypoint.cli import main

if __name__ == "__main__":
    main()
