"""Finds a launcher by the scheme of its URI."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from rallypoint.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.launchers.base import Launcher

_RAY_JOBS = "rallypoint.launchers.ray_jobs:RayJobsLauncher"
_LAUNCHERS = {
    "local": "rallypoint.launchers.local:LocalLauncher",
    "ray-jobs": _RAY_JOBS,
    "ray-jobs+https": _RAY_JOBS,
}
_WITHOUT_OPTIONS = frozenset({"local"})


@runtime_checkable
class Reopenable(Protocol):
    """A launcher with options beside its URI, such as credentials."""

    def reopen(self, uri: str) -> Launcher | None:
        """Return the launcher of another URI with the same options; None if they are no business of that host."""
        ...


def open_launcher(uri: str, options: Mapping[str, Any] | None = None) -> Launcher:
    """Return the launcher of a URI such as ``local:///var/lib/rallypoint/runs`` or ``ray-jobs://ray-head:8265``.

    Args:
        uri: Where gangs run. It is recorded and logged, so it holds no secret.
        options: Credentials and settings that the launcher takes beside it.

    Raises:
        LaunchError: There is no launcher of that scheme, or an option is wrong.
    """
    scheme = urlsplit(uri).scheme
    if scheme not in _LAUNCHERS:
        known = ", ".join(f"{name}://…" for name in sorted(_LAUNCHERS))
        msg = f"got the launcher {uri!r}, expected one of {known}; correct the launcher's URI in the connection"
        raise LaunchError(msg)
    module, _, name = _LAUNCHERS[scheme].partition(":")
    if options and scheme in _WITHOUT_OPTIONS:
        msg = f"got the options {', '.join(sorted(options))} for a {scheme}:// launcher, expected none; leave them out"
        raise LaunchError(msg)
    given = (options,) if options else ()
    launcher: Launcher = getattr(import_module(module), name).from_uri(uri, *given)
    return launcher


def launcher_of(uri: str, own: Launcher | None) -> Launcher:
    """Return the launcher of a record: the own one if it is that, else one with its options if they are for that host.

    Raises:
        LaunchError: There is no launcher of that scheme.
    """
    if own is None:
        return open_launcher(uri)
    if own.uri == uri:
        return own
    return (own.reopen(uri) if isinstance(own, Reopenable) else None) or open_launcher(uri)
