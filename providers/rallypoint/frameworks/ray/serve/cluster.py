"""One application on a cluster: read the live config, replace this application's part, write, look again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.deploy.rest import RefusedError, UnreachableError
from rallypoint.frameworks.ray.serve.live import DELETING, Application, Live
from rallypoint.frameworks.ray.serve.merge import merged, same, taken_route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.frameworks.deploy.lease import Lease
    from rallypoint.frameworks.deploy.termination import Termination
    from rallypoint.frameworks.ray.serve.client import Dashboard

WRITES = 5  # how often a config is written that another writer took away
_PAUSE = 1.0  # seconds between two tries of a dashboard that does not answer
_PATIENCE = 60.0  # seconds that it may be silent


class ConflictError(RuntimeError):
    """Somebody else changed this application meanwhile; what they did is left as it is."""


@dataclass(frozen=True)
class Target:
    """One application on a cluster.

    Args:
        name: The application.
        dashboard: The cluster.
        lease: Held while the configs of all applications are read and written.
        termination: Holds SIGTERM back while a write is under way.
    """

    name: str
    dashboard: Dashboard
    lease: Lease
    termination: Termination

    def look(self, patience: float = _PATIENCE) -> Live:
        """Return the cluster's state; a dashboard that is silent for a while is asked again.

        Args:
            patience: Seconds that it may be silent.

        Raises:
            UnreachableError: It was silent for longer.
            RefusedError: It refuses.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return Live.from_json(self.dashboard.applications())
            except UnreachableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

    def application(self, live: Live) -> Application | None:
        """Return the application as it stands; None if there is none."""
        return live.applications.get(self.name)

    def write(
        self, config: Mapping[str, Any] | None, *, instead_of: Mapping[str, Any] | None, http_options: Any = None
    ) -> None:
        """Apply a config of the application, or remove it, and see that it is there. Others are left as they are.

        Args:
            config: The config; None to remove the application.
            instead_of: What is there now. If it is something else, somebody else has been here.
            http_options: Host and port of the proxies, for a Serve that is not running yet.

        Raises:
            ConflictError: Somebody else changed the application.
            NotOursError: It was deployed from Python code.
            RefusedError: Ray refuses the config, or another application has the route.
            UnreachableError: The dashboard does not answer.
        """
        for _ in range(WRITES):
            with self.lease.held(within=_PATIENCE * 2), self.termination.shield():
                live = self.look()
                self._check(live, config, instead_of)
                if not self._is_there(live, config):
                    try:
                        self.dashboard.apply(merged(live, self.name, config, http_options=http_options))
                    except UnreachableError:
                        time.sleep(_PAUSE)  # it may have been applied all the same: the next look tells
                        continue
                    live = self.look()
                if self._is_there(live, config):
                    return
        msg = (
            f"wrote the config of {self.name!r} {WRITES} times, and each time another writer took it away: end the "
            "other one, or let it keep this application's config"
        )
        raise ConflictError(msg)

    def _is_there(self, live: Live, config: Mapping[str, Any] | None) -> bool:
        application = self.application(live)
        if config is None:
            return application is None or application.status == DELETING
        return same(live.config(self.name), config)

    def _check(self, live: Live, config: Mapping[str, Any] | None, instead_of: Mapping[str, Any] | None) -> None:
        now = live.config(self.name)
        if now is not None and not same(now, config) and not same(now, instead_of):
            msg = (
                f"somebody else deployed {self.name!r} meanwhile: their config is left as it is; let one pipeline "
                "deploy an application at a time"
            )
            raise ConflictError(msg)
        if config is not None and (other := taken_route(live, self.name, config.get("route_prefix", "/"))):
            msg = (
                f"got route_prefix={config.get('route_prefix', '/')!r} for {self.name!r}, which the application "
                f"{other!r} has already: choose another route"
            )
            raise RefusedError(msg)
