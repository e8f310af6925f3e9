"""Finds a launcher by the scheme of its URI."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rallypoint.errors import LaunchError

if TYPE_CHECKING:
    from rallypoint.launchers.base import Launcher

_LAUNCHERS = {"local": "rallypoint.launchers.local:LocalLauncher"}


def open_launcher(uri: str) -> Launcher:
    """Return the launcher of a URI such as ``local:///var/lib/rallypoint/runs``.

    Raises:
        LaunchError: There is no launcher of that scheme.
    """
    scheme = urlsplit(uri).scheme
    if scheme not in _LAUNCHERS:
        known = ", ".join(f"{name}://…" for name in sorted(_LAUNCHERS))
        msg = f"got the launcher {uri!r}, expected one of {known}; correct the launcher's URI in the connection"
        raise LaunchError(msg)
    module, _, name = _LAUNCHERS[scheme].partition(":")
    launcher: Launcher = getattr(import_module(module), name).from_uri(uri)
    return launcher
