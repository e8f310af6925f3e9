"""What a cluster says of Serve: its applications, their configs and replicas, and where they are reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNNING, DEPLOY_FAILED, UNHEALTHY, DELETING = "RUNNING", "DEPLOY_FAILED", "UNHEALTHY", "DELETING"
_HEALTHY = "HEALTHY"
_SCALING = ("UPSCALING", "DOWNSCALING")
_AUTOSCALING = "AUTOSCALING"
_EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 - read, never bound
_DEFAULT_PORT = 8000


@dataclass(frozen=True)
class Replica:
    """One replica of a deployment.

    Args:
        id: Its id.
        state: Serve's word for its state.
        node_id: The node that it is on.
        log: The path of its log, below the node's log folder.
        started: Seconds since the epoch.
    """

    id: str
    state: str
    node_id: str = ""
    log: str = ""
    started: float = 0.0


@dataclass(frozen=True)
class Deployment:
    """One deployment of an application.

    Args:
        name: Its name.
        status: Serve's word for its status.
        trigger: What brought it about.
        message: Serve's words, with a traceback of the replica if one failed to start.
        target: How many replicas there are to be; an autoscaler changes it.
        replicas: Those that there are.
        dead: Those that ended lately.
    """

    name: str
    status: str
    trigger: str
    message: str
    target: int
    replicas: tuple[Replica, ...]
    dead: tuple[Replica, ...]

    @property
    def running(self) -> int:
        """How many replicas run."""
        return sum(replica.state == RUNNING for replica in self.replicas)

    @property
    def ready(self) -> bool:
        """Whether it has what it needs; while an autoscaler works, one replica is enough."""
        if self.status in _SCALING and self.trigger == _AUTOSCALING:
            return self.running >= min(1, self.target)
        return self.status == _HEALTHY and self.running >= self.target


@dataclass(frozen=True)
class Application:
    """One application.

    Args:
        name: Its name.
        status: Serve's word for its status.
        message: Serve's words, with a traceback if it could not be built.
        route_prefix: Where it is served; None without a route.
        config: What was applied; None if it was deployed from Python code, or is being removed.
        deployments: Its deployments.
    """

    name: str
    status: str
    message: str
    route_prefix: str | None
    config: dict[str, Any] | None
    deployments: tuple[Deployment, ...]

    @property
    def running(self) -> int:
        """How many replicas run, over all deployments."""
        return sum(deployment.running for deployment in self.deployments)

    @property
    def target(self) -> int:
        """How many replicas there are to be."""
        return sum(deployment.target for deployment in self.deployments)

    @property
    def ready(self) -> bool:
        """Whether it runs, with every deployment."""
        return self.status == RUNNING and all(deployment.ready for deployment in self.deployments)


@dataclass(frozen=True)
class Live:
    """Serve on a cluster.

    Args:
        applications: By name.
        options: What a config has beside its applications: proxy location, HTTP and gRPC options, target capacity.
        started: Whether Serve runs at all.
    """

    applications: Mapping[str, Application]
    options: Mapping[str, Any]
    started: bool

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Live:
        """Return what the dashboard's answer says. What is missing in it is as if it were empty."""
        names = ("proxy_location", "http_options", "grpc_options", "target_capacity")
        options = {name: value[name] for name in names if value.get(name) is not None}
        applications = {name: _application(name, each) for name, each in _dict(value, "applications").items()}
        return cls(applications, options, started="http_options" in options)

    def config(self, name: str) -> dict[str, Any] | None:
        """Return an application's config; None if there is no such application, or it is being removed."""
        application = self.applications.get(name)
        return application.config if application and application.status != DELETING else None

    def serve_url(self, dashboard_url: str) -> str:
        """Return where the HTTP proxy is reached, as far as the cluster says so.

        Args:
            dashboard_url: Its host stands in for a proxy that listens on all addresses.
        """
        options = self.options.get("http_options", {})
        host = str(options.get("host", ""))
        if host in _EVERYWHERE:
            host = urlsplit(dashboard_url).hostname or "127.0.0.1"
        scheme = "https" if options.get("ssl_certfile") else "http"
        shown = f"[{host}]" if ":" in host else host
        root = str(options.get("root_path") or "").rstrip("/")
        return f"{scheme}://{shown}:{options.get('port', _DEFAULT_PORT)}{root}"


def _application(name: str, value: Mapping[str, Any]) -> Application:
    config = value.get("deployed_app_config")
    deployments = _dict(value, "deployments")
    return Application(
        name=name,
        status=str(value.get("status", "")),
        message=str(value.get("message") or ""),
        route_prefix=value.get("route_prefix"),
        config=config if isinstance(config, dict) else None,
        deployments=tuple(_deployment(each, deployments[each]) for each in sorted(deployments)),
    )


def _deployment(name: str, value: Mapping[str, Any]) -> Deployment:
    target = value.get("target_num_replicas")
    return Deployment(
        name=name,
        status=str(value.get("status", "")),
        trigger=str(value.get("status_trigger", "")),
        message=str(value.get("message") or ""),
        target=target if isinstance(target, int) else 0,
        replicas=_replicas(value, "replicas"),
        dead=_replicas(value, "recent_dead_replicas"),
    )


def _replicas(value: Mapping[str, Any], name: str) -> tuple[Replica, ...]:
    found = value.get(name)
    return tuple(
        Replica(
            id=str(each.get("replica_id", "")),
            state=str(each.get("state", "")),
            node_id=str(each.get("node_id") or ""),
            log=str(each.get("log_file_path") or ""),
            started=float(each.get("start_time_s") or 0.0),
        )
        for each in (found if isinstance(found, list) else [])
        if isinstance(each, dict)
    )


def _dict(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return {key: each for key, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}
