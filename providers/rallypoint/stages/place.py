"""Where a stage keeps its record and runs its job: what a face finds in its connections or blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.stages.engine import Engine
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.store import Store


@dataclass(frozen=True, kw_only=True)
class Place:
    """A store and a launcher.

    Args:
        store: The store's URI.
        launcher: The launcher's URI.
        store_options: Credentials and settings of the store.
        launcher_options: Credentials and settings of the launcher.
    """

    store: str
    launcher: str
    store_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    launcher_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def open_store(self) -> Store:
        """Return the store.

        Raises:
            StoreError: Its URI or options are wrong.
        """
        # Not at the top: DAG files import this module, and none of them needs a store or an engine while it is read.
        from rallypoint.stages.store import Store  # noqa: PLC0415

        return Store.open(self.store, options=self.store_options or None)

    def engine(self, key: StageKey) -> Engine:
        """Return the engine of a stage here.

        Raises:
            StoreError: The store's URI or options are wrong.
            LaunchError: The launcher's URI or options are wrong.
        """
        from rallypoint.launchers.registry import open_launcher  # noqa: PLC0415 - as above
        from rallypoint.stages.engine import Engine  # noqa: PLC0415 - as above

        return Engine(self.open_store(), key, open_launcher(self.launcher, self.launcher_options or None))


def local_launcher(folder: str, *, python: str | None = None) -> str:
    """Return the URI of the launcher that runs jobs on this machine, in ``<folder>/runs``."""
    return with_python(f"local://{quote(folder)}/runs", python)


def with_python(launcher: str, python: str | None) -> str:
    """Return a launcher's URI with the interpreter that jobs get by default."""
    return f"{launcher}{'&' if '?' in launcher else '?'}python={quote(python)}" if python else launcher
