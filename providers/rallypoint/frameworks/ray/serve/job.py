"""The jobs of Ray Serve: deploy an application, roll it back, remove it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from rallypoint.frameworks.ray.serve.failures import FAILURE_RULES
from rallypoint.frameworks.ray.serve.history import KEEP_VERSIONS
from rallypoint.frameworks.ray.serve.question import ServeProbe
from rallypoint.spec.entry import Module
from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.job import Job, digest
from rallypoint.spec.service import SERVICE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.spec.failure import FailureRule
    from rallypoint.spec.gang import Gang

SETTINGS = "serve.json"  # in the attempt's folder: what the driver is to do
DRIVER = "rallypoint.frameworks.ray.serve.driver"

_IMPORT_PATH = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[:.][A-Za-z_]\w*$")
_HEADER = re.compile(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:\w*PASSW(?:OR)?D|SECRET|TOKEN|CREDENTIALS?|\w*APIKEY|(?:API|ACCESS|PRIVATE|SECRET|ACCOUNT|AUTH)_KEY)"
    r"(?:_|$)",
    re.IGNORECASE,
)
_PACKAGE_SCHEMES = ("gcs://", "https://", "s3://", "gs://", "azure://", "abfss://", "file://", "local://")


@dataclass(frozen=True, kw_only=True)
class ServeJob(Job):
    """What deploys, rollbacks and removals share: an application on a cluster, by its dashboard's REST API.

    The job is control-plane work: its process runs where the launcher is, speaks plain HTTP, and needs neither Ray nor
    Rallypoint in its Python. For a cluster with token authentication give ``secrets={"RAY_AUTH_TOKEN": …}``; any other
    secret header goes, as for Ray's own command line, into ``secrets={"RAY_JOB_HEADERS": '{"Cookie": "…"}'}``.

    Args:
        name: The application's name.
        dashboard_url: The dashboard's address, such as ``"http://127.0.0.1:8265"``, or a mapping that has one as
            ``dashboard_url``, such as a `RayCluster`'s result, whose lease is then renewed while this job runs.
        cluster: The name under which the store keeps the cluster's history; host and port of the dashboard by default.
            Name it where the address changes or is a tunnel's.
        serve_url: Where Serve's HTTP proxy is reached, such as a load balancer's address; by default it is derived
            from what the cluster says.
        timeout: Seconds until the application has to be as it is wanted.
        restore_timeout: Seconds until the previous config has to be healthy again after a failure.
        poll_interval: Seconds between two looks at the cluster.
        headers: HTTP headers of each request to the dashboard. No secrets.
        ca_file: A file of certificate authorities for a dashboard behind ``https://``; the system's by default.
        verify: Whether the certificate is checked.
        entry: Not given: the driver is Rallypoint's own.

    Raises:
        InvalidJobError: A value is wrong.
    """

    action: ClassVar[str]
    own_rules: ClassVar[tuple[FailureRule, ...]] = FAILURE_RULES

    entry: Any = field(default=Module(DRIVER), init=False, repr=False)
    name: str
    dashboard_url: str | Mapping[str, Any]
    cluster: str | None = None
    serve_url: str | None = None
    timeout: float = 900.0
    restore_timeout: float = 300.0
    poll_interval: float = 0.5
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        address: object = self.dashboard_url
        if isinstance(address, dict):
            object.__setattr__(self, "dashboard_url", address.get("dashboard_url"))
            if SERVICE in address and address not in self.uses:
                object.__setattr__(self, "uses", (*self.uses, address))
        super().__post_init__()
        for name in ("name", "cluster"):
            text: object = getattr(self, name)
            if (text is not None or name == "name") and (not isinstance(text, str) or not text.strip()):
                raise self.invalid(name, text, "a name")
        self._check_url("dashboard_url", self.dashboard_url)
        if self.serve_url is not None:
            self._check_url("serve_url", self.serve_url)
        for name in ("timeout", "restore_timeout", "poll_interval"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise self.invalid(name, value, "seconds above 0")
        self._check_headers()

    def _check_headers(self) -> None:
        for header, text in self.headers.items():
            if not _HEADER.match(header) or re.search(r"[\r\n\0]", str(text)):
                raise self.invalid("headers", header, "a header's name with text of one line")
            if header.lower() in _SECRET_HEADERS:
                fix = "give secrets={'RAY_AUTH_TOKEN': …}, or {'RAY_JOB_HEADERS': '{\"" + header + "\": …}'}"
                raise self.invalid("headers", header, "headers without secrets, which would be written to files", fix)

    def _check_url(self, name: str, value: object) -> None:
        parts = urlsplit(value) if isinstance(value, str) else None
        try:
            good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or parts is None:
            raise self.invalid(name, value, 'an address such as "http://127.0.0.1:8265"')
        if "@" in parts.netloc or parts.query or parts.fragment:
            shown = f"{parts.scheme}://…"
            raise self.invalid(name, shown, "an address without user, password, query and fragment")

    def roles(self) -> tuple[Role, ...]:
        """Return one role: the driver."""
        argv = (Macro.PYTHON, "-m", DRIVER, f"{Macro.RUN_DIR}/{SETTINGS}")
        return (Role(name="driver", argv=argv, env=dict(self.env), resources=self.resources),)

    def plan(self) -> Gang:
        """Return the gang; what it is to do is in a file of the attempt's folder."""
        return super().plan().with_more(files={SETTINGS: json.dumps(self.settings(), sort_keys=True).encode()})

    def settings(self) -> dict[str, Any]:
        """Return what the driver is to do, as JSON without secrets."""
        return {
            "v": 1,
            "action": self.action,
            "name": self.name,
            "dashboard_url": str(self.dashboard_url).rstrip("/"),
            "cluster": self.cluster,
            "serve_url": self.serve_url,
            "timeout": self.timeout,
            "restore_timeout": self.restore_timeout,
            "poll_interval": self.poll_interval,
            "headers": dict(self.headers),
            "ca_file": self.ca_file,
            "verify": self.verify,
            "secret_names": sorted(self.secrets),
            "temporary": any(use.get("dashboard_url") == self.dashboard_url for use in self.uses),
        }

    def fingerprint(self) -> dict[str, str]:
        """Return what makes two attempts the same work: the application, where it is, and its config, as digests."""
        about_how = {
            "v", "action", "timeout", "restore_timeout", "poll_interval", "headers", "ca_file", "verify",
            "secret_names", "probe", "temporary", "keep_versions",
        }  # fmt: skip
        parts = {name: digest(value) for name, value in self.settings().items() if name not in about_how}
        return {"entry": f"ray serve {self.action} {self.name}", **parts}


@dataclass(frozen=True, kw_only=True)
class RayServe(ServeJob):
    """Deploys one application to Ray Serve, next to the others, and restores its previous config on failure.

    The live config is read, this application's part replaced, and the whole applied; then the application has to be
    ``RUNNING`` with all replicas of its deployments, and to answer the `probe`. Otherwise its previous config is
    applied again (or it is removed, if there was none), and the stage fails with what the failed replica said. A retry
    goes on where the last attempt was. Each applied config is kept in the store, for `RayServeRollback`, until a prune.

    The result is ``{"name", "route_prefix", "url", "version", "replicas"}``.

    Ray's API has no conditional write: a deploy by another tool in the milliseconds between reading and writing is
    overwritten. Deploys by Rallypoint through the same store wait for each other.

    Args:
        import_path: The application or its builder in the cluster's Python, such as
            ``"rallypoint.examples.flights.serving:app"``.
        route_prefix: Where it is served; None for no HTTP route.
        args: JSON arguments of the application's builder. No secrets: they are kept in the store.
        deployments: Options per deployment, as in Serve's config file: ``[{"name": "Model", "num_replicas": 2}]``, with
            ``autoscaling_config``, ``ray_actor_options``, ``max_ongoing_requests`` and so on.
        runtime_env: The application's runtime environment. Folders of this machine as ``working_dir`` and
            ``py_modules`` are zipped and uploaded; they have to be absolute.
        ship_rallypoint: Whether Rallypoint's shipped part goes along as a Python module, so that the cluster can import
            ``rallypoint`` without an installation.
        replica_secrets: Names among `secrets` that the replicas get as environment variables too. Their values are
            part of the live config in Ray, as for every tool, but not of what the store keeps.
        options: Further fields of the application in Serve's config, such as ``logging_config``.
        probe: A request that it has to answer.
        http_host: Where Serve's HTTP proxy listens, if this deploy is the first that Serve is started for.
        http_port: Its port, likewise.
        keep_versions: How many versions of the application ``rallypoint prune`` leaves in the store, with the code that
            they need; None for all. The one that runs and the one to roll back to stay in any case.

    Raises:
        InvalidJobError: A value is wrong.

    The fields are those of "Serve Config Files" in the Ray documentation.
    """

    kind: ClassVar[str] = "ray-serve"
    action: ClassVar[str] = "deploy"

    import_path: str
    route_prefix: str | None = "/"
    args: Mapping[str, Any] = field(default_factory=dict)
    deployments: Sequence[Mapping[str, Any]] = ()
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    ship_rallypoint: bool = False
    replica_secrets: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    probe: ServeProbe | Mapping[str, Any] | None = None
    http_host: str | None = None
    http_port: int | None = None
    keep_versions: int | None = KEEP_VERSIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        path: object = self.import_path
        if not isinstance(path, str) or not _IMPORT_PATH.match(path):
            raise self.invalid("import_path", path, '"package.module:app"')
        route = self.route_prefix
        bad_route = route is not None and (not route.startswith("/") or (route != "/" and route.endswith("/")))
        if bad_route or (route and ("{" in route or "}" in route)):
            raise self.invalid("route_prefix", route, 'a path such as "/flights" without a "/" at its end, or None')
        self._check_json()
        self._check_deployments()
        self._check_runtime_env()
        names: object = self.replica_secrets
        if not isinstance(names, list | tuple) or not all(name in self.secrets for name in names):
            raise self.invalid("replica_secrets", names, "a list of names among secrets=")
        if isinstance(self.probe, dict):
            try:
                object.__setattr__(self, "probe", ServeProbe(**self.probe))
            except TypeError as error:
                raise self.invalid("probe", self.probe, f"the fields of ServeProbe ({error})") from error
        if self.probe is not None and route is None:
            raise self.invalid("probe", self.probe, "None where route_prefix=None: there is no route to ask")
        port: object = self.http_port
        if port is not None and (not isinstance(port, int) or not 0 < port < 1 << 16):
            raise self.invalid("http_port", port, "a port from 1 to 65535, or None for Ray's default")
        kept: object = self.keep_versions
        if kept is not None and (isinstance(kept, bool) or not isinstance(kept, int) or kept < 1):
            raise self.invalid("keep_versions", kept, "1 or more, a whole number, or None to keep all")

    def _check_json(self) -> None:
        for name in ("args", "runtime_env", "options"):
            value: object = getattr(self, name)
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise self.invalid(name, value, f"JSON ({error})") from error
            if not isinstance(value, dict):
                raise self.invalid(name, value, "a dict")
        taken = {"name", "route_prefix", "import_path", "args", "deployments", "runtime_env", "host", "port"}
        if found := taken & self.options.keys():
            raise self.invalid("options", sorted(found), "fields that have no parameter of their own")

    def _check_deployments(self) -> None:
        seen: set[str] = set()
        expected = 'a list of dicts with a "name" of its own each'
        given: object = self.deployments
        if not isinstance(given, list | tuple):
            raise self.invalid("deployments", given, expected)
        for deployment in self.deployments:
            name = deployment.get("name") if isinstance(deployment, dict) else None
            if not isinstance(name, str) or not name or name in seen:
                raise self.invalid("deployments", deployment, expected)
            seen.add(name)
            try:
                json.dumps(deployment)
            except (TypeError, ValueError) as error:
                raise self.invalid("deployments", deployment, f"JSON ({error})") from error
            replicas = deployment.get("num_replicas")
            if replicas not in (None, "auto") and deployment.get("autoscaling_config") is not None:
                fix = "leave num_replicas out"
                raise self.invalid("deployments", deployment, "num_replicas or autoscaling_config, not both", fix)
            self._check_no_secrets((deployment.get("ray_actor_options") or {}).get("runtime_env") or {})

    def _check_runtime_env(self) -> None:
        modules: object = self.runtime_env.get("py_modules", [])
        if not isinstance(modules, list):
            raise self.invalid("runtime_env", modules, "py_modules as a list of folders and URIs")
        for path in filter(None, (self.runtime_env.get("working_dir"), *modules)):
            if not isinstance(path, str) or not path.startswith(("/", *_PACKAGE_SCHEMES)):
                expected = "absolute folders, or URIs such as s3://bucket/code.zip, as working_dir and py_modules"
                raise self.invalid("runtime_env", path, expected)
        self._check_no_secrets(self.runtime_env)

    def _check_no_secrets(self, runtime_env: Mapping[str, Any]) -> None:
        variables: object = runtime_env.get("env_vars") or {}
        if not isinstance(variables, dict):
            raise self.invalid("runtime_env", "env_vars of another type", "env_vars as a dict of text")
        for name, value in variables.items():
            if not isinstance(value, str):
                raise self.invalid("runtime_env", {name: type(value).__name__}, "env_vars with text as values")
            if _SECRET_NAME.search(name):
                fix = f"give it as secrets={{{name!r}: …}} with replica_secrets=[{name!r}]"
                raise self.invalid("runtime_env", name, "env_vars without secrets, which the store would keep", fix)

    def settings(self) -> dict[str, Any]:
        """Return what the driver is to do, as JSON without secrets."""
        config: dict[str, Any] = {
            "name": self.name,
            "route_prefix": self.route_prefix,
            "import_path": self.import_path,
            **self.options,
        }
        optional: dict[str, Any] = {"args": dict(self.args), "runtime_env": dict(self.runtime_env)}
        optional["deployments"] = [dict(deployment) for deployment in self.deployments]
        probe = self.probe
        return super().settings() | {
            "config": config | {name: value for name, value in optional.items() if value},
            "ship_rallypoint": self.ship_rallypoint,
            "replica_secrets": sorted(self.replica_secrets),
            "probe": probe.to_json() if isinstance(probe, ServeProbe) else None,
            "keep_versions": self.keep_versions,
            "http_options": {
                name: value for name, value in (("host", self.http_host), ("port", self.http_port)) if value is not None
            },
        }


@dataclass(frozen=True, kw_only=True)
class RayServeRollback(ServeJob):
    """Deploys an earlier config of an application again, from the history that the store keeps.

    It is a deploy like any other: it waits, restores on failure, and gets a version number of its own. Values of
    ``replica_secrets`` are not in the history: give them as `secrets` again, or those of the live config are used.

    The result is that of `RayServe`.

    Args:
        version: The number of a version; None for the one that ran before the current one.
        probe: A request that it has to answer.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "ray-serve-rollback"
    action: ClassVar[str] = "rollback"

    version: int | None = None
    probe: ServeProbe | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        version: object = self.version
        if isinstance(version, str) and version.strip().isdigit():  # a rendered template is text
            version = int(version)
            object.__setattr__(self, "version", version)
        if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
            raise self.invalid("version", version, "a version's number from 1, or None for the previous one")
        if isinstance(self.probe, dict):
            object.__setattr__(self, "probe", ServeProbe(**self.probe))

    def settings(self) -> dict[str, Any]:
        """Return what the driver is to do, as JSON without secrets."""
        probe = self.probe.to_json() if isinstance(self.probe, ServeProbe) else None
        return super().settings() | {"version": self.version, "probe": probe}


@dataclass(frozen=True, kw_only=True)
class RayServeUndeploy(ServeJob):
    """Removes one application; the others stay as they are. One that is not there is removed already.

    The history keeps its configs, so `RayServeRollback` brings it back. The result is ``{"name", "removed",
    "version"}``: whether it was there, and the number of the removal in the history.
    """

    kind: ClassVar[str] = "ray-serve-undeploy"
    action: ClassVar[str] = "undeploy"
