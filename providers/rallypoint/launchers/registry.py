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
    "ssh": "rallypoint.launchers.ssh:SSHLauncher",
    "slurm": "rallypoint.launchers.slurm:SlurmLauncher",
}
_WITHOUT_OPTIONS = frozenset({"local"})


@runtime_checkable
class Reopenable(Protocol):
    """A launcher with options beside its URI, such as credentials."""

    def reopen(self, uri: str) -> Launcher | None:
        """Return the launcher of another URI with the same options; None if they are no business of that host."""
        ...


@runtime_checkable
class Scoped(Protocol):
    """A launcher that tells apart the attempts of two stores which have the same id, since both may use its cluster."""

    def within(self, store: str) -> Launcher:
        """Return the same launcher for the attempts of one store, and no other's."""
        ...


def open_launcher(uri: str, options: Mapping[str, Any] | None = None, *, ambient: bool = True) -> Launcher:
    """Return the launcher of a URI such as ``local:///var/lib/rallypoint/runs`` or ``ray-jobs://ray-head:8265``.

    Args:
        uri: Where gangs run. It is recorded and logged, so it holds no secret.
        options: Credentials and settings that the launcher takes beside it.
        ambient: Whether it may use credentials of the environment, where it knows any.

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
    more = {} if scheme in _WITHOUT_OPTIONS else {"options": options, "ambient": ambient}
    launcher: Launcher = getattr(import_module(module), name).from_uri(uri, **more)
    return launcher


def launcher_of(uri: str, own: Launcher | None) -> Launcher:
    """Return the launcher of a record: the own one if it is that, else one with its options if they are for that host.

    Without an own one a person looks, and the credentials of their environment are used. Beside an own one a record's
    URI gets no credentials but those that are for its host: who can write the store can write any host into it.

    Raises:
        LaunchError: There is no launcher of that scheme.
    """
    if own is None:
        return open_launcher(uri)
    if own.uri == uri:
        return own
    return (own.reopen(uri) if isinstance(own, Reopenable) else None) or open_launcher(uri, ambient=False)


def scoped(launcher: Launcher, store: str) -> Launcher:
    """Return a launcher for the attempts of one store, if it can tell them from another's."""
    return launcher.within(store) if isinstance(launcher, Scoped) else launcher
