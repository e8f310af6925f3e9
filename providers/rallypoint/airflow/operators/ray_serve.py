"""Ray Serve as tasks: deploy an application, roll it back, remove it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseHook

from rallypoint.airflow.launcher_connections import RAY, ray_launcher
from rallypoint.airflow.links import RayJobLink, RayServeLink, StageLink
from rallypoint.airflow.operators.base import StageOperator
from rallypoint.airflow.place import resolve_secrets
from rallypoint.airflow.rendering import is_rendered_later, rendered_object
from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.ray.serve.history import KEEP_VERSIONS
from rallypoint.frameworks.ray.serve.job import RayServe, RayServeRollback, RayServeUndeploy, ServeJob
from rallypoint.frameworks.ray.serve.question import ServeProbe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow.sdk import BaseOperatorLink
    from airflow.sdk.definitions.xcom_arg import XComArg

_LATER = {"name": "later", "dashboard_url": "http://checked-later:8265", "import_path": "checked.later:app"}


class _ServeOperator(StageOperator):
    """What the operators of Ray Serve share: an application, and the cluster that it is on.

    Args:
        name: The application's name.
        dashboard_url: The dashboard's address, or a cluster task's result; alternatively `ray_conn_id`.
        ray_conn_id: A connection of type ``ray``, which has address, token, headers and certificate authority.
        cluster: The name under which the store keeps the cluster's history; host and port of the dashboard by default.
        serve_url: Where Serve's HTTP proxy is reached; derived from what the cluster says by default.
        timeout: Seconds until the application has to be as it is wanted.
        restore_timeout: Seconds until the previous config has to be healthy again after a failure.
        headers: HTTP headers of each request to the dashboard. No secrets.
        ca_file: A file of certificate authorities for a dashboard behind ``https://``.
        **kwargs: `StageOperator`'s; ``script``, ``module`` and ``python_callable`` are not taken.
    """

    job_class: ClassVar[type[ServeJob]]

    template_fields: Sequence[str] = ("env", "python", "uses", "job_options", "launcher_conn_id", "ray_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"env": "json", "job_options": "json"}
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), RayServeLink(), RayJobLink())
    ui_color = "#f4e6d8"

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        name: str,
        dashboard_url: str | Mapping[str, Any] | XComArg | None = None,
        ray_conn_id: str | None = None,
        cluster: str | None = None,
        serve_url: str | None = None,
        timeout: float = 900.0,
        restore_timeout: float = 300.0,
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.ray_conn_id = ray_conn_id
        shared = {
            "name": name, "dashboard_url": dashboard_url, "cluster": cluster, "serve_url": serve_url,
            "timeout": timeout, "restore_timeout": restore_timeout, "headers": headers or {}, "ca_file": ca_file,
        }  # fmt: skip
        if (dashboard_url is None) == (ray_conn_id is None):
            got = {"dashboard_url": dashboard_url, "ray_conn_id": ray_conn_id}
            expected = "exactly one of dashboard_url= and ray_conn_id="
            raise InvalidJobError(type(self).__name__, "dashboard_url", got=got, expected=expected)
        super().__init__(module="rallypoint.serve", job_options={**shared, **(options or {})}, **kwargs)

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        known = {name: value for name, value in options.items() if not is_rendered_later(value)}
        known |= {"dashboard_url": _LATER["dashboard_url"]} if known.get("dashboard_url") is None else {}
        needed = {name: value for name, value in _LATER.items() if name in self.job_class.__dataclass_fields__}
        self.job_class(
            **{**needed, **known},
            secrets=dict.fromkeys(self.secrets, ""),
            keep_checkpoints=self.keep_checkpoints,
            stall_timeout=self.stall_timeout,
            env=env,
        )

    def job(self) -> ServeJob:
        """Return the job, from the rendered fields and the connection.

        Raises:
            InvalidJobError: A rendered value is wrong.
        """
        options = dict(self.job_options)
        secrets = resolve_secrets(self.secrets)
        if self.ray_conn_id is not None:
            found, more = of_connection(self.ray_conn_id)
            options |= {name: value for name, value in found.items() if not options.get(name)}
            secrets = {**more, **secrets}
        options["dashboard_url"] = rendered_object(options["dashboard_url"])
        return self.job_class(
            **options,
            secrets=secrets,
            params=self.job_params,
            env={key: str(value) for key, value in self.env.items()},
            python=self.python,
            resources=self.job_resources,
            stall_timeout=self.stall_timeout,
            failure_rules=self.failure_rules,
            uses=[rendered_object(each) for each in self.uses],
        )


class RayServeOperator(_ServeOperator):
    """Deploys one application to Ray Serve, next to the others, and restores its previous config on failure.

    The parameters are those of `rallypoint.RayServe`; everything else is that of a stage's operator. Secrets of the
    replicas are given by reference, as ``secrets={"HF_TOKEN": "variable:hf_token"}`` and
    ``replica_secrets=["HF_TOKEN"]``.

    Returns:
        ``{"name", "route_prefix", "url", "version", "replicas"}``, as XCom.
    """

    job_class = RayServe

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        import_path: str,
        route_prefix: str | None = "/",
        app_args: Mapping[str, Any] | None = None,
        deployments: Sequence[Mapping[str, Any]] = (),
        runtime_env: Mapping[str, Any] | None = None,
        ship_rallypoint: bool = False,
        replica_secrets: Sequence[str] = (),
        app_options: Mapping[str, Any] | None = None,
        probe: ServeProbe | Mapping[str, Any] | None = None,
        http_host: str | None = None,
        http_port: int | None = None,
        keep_versions: int | None = KEEP_VERSIONS,
        **kwargs: Any,
    ) -> None:
        options = {
            "import_path": import_path, "route_prefix": route_prefix, "args": app_args or {},
            "deployments": list(deployments), "runtime_env": runtime_env or {}, "ship_rallypoint": ship_rallypoint,
            "replica_secrets": list(replica_secrets), "options": app_options or {},
            "probe": probe.to_json() if isinstance(probe, ServeProbe) else probe,
            "http_host": http_host, "http_port": http_port, "keep_versions": keep_versions,
        }  # fmt: skip
        super().__init__(options=options, **kwargs)


class RayServeRollbackOperator(_ServeOperator):
    """Deploys an earlier config of an application again.

    The parameters are those of `rallypoint.RayServeRollback`; everything else is that of a stage's operator.

    Returns:
        ``{"name", "route_prefix", "url", "version", "replicas"}``, as XCom.
    """

    job_class = RayServeRollback

    def __init__(
        self,
        *,
        version: int | str | None = None,
        probe: ServeProbe | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        probed = probe.to_json() if isinstance(probe, ServeProbe) else probe
        super().__init__(options={"version": version, "probe": probed}, **kwargs)


class RayServeUndeployOperator(_ServeOperator):
    """Removes one application; the others stay as they are.

    The parameters are those of `rallypoint.RayServeUndeploy`; everything else is that of a stage's operator.

    Returns:
        ``{"name", "removed", "version"}``, as XCom.
    """

    job_class = RayServeUndeploy


def of_connection(ray_conn_id: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a connection of type ``ray`` says of a dashboard: a job's parameters, and its secrets.

    Raises:
        InvalidJobError: It is of another type.
        LaunchError: A field of it is wrong.
    """
    connection = BaseHook.get_connection(ray_conn_id)
    if connection.conn_type != RAY:
        raise InvalidJobError("RayServe", "ray_conn_id", got=ray_conn_id, expected=f"a connection of type {RAY!r}")
    uri, options = ray_launcher(connection)
    scheme, _, rest = uri.partition("?")[0].partition("://")
    found: dict[str, Any] = {"dashboard_url": f"{'https' if scheme.endswith('+https') else 'http'}://{rest}"}
    verify = options.get("verify")
    if isinstance(verify, str) and verify.lower() not in ("true", "false"):
        found["ca_file"] = verify
    elif str(verify).lower() == "false":
        found["verify"] = False
    headers = dict(options.get("headers", {}))
    if cookies := options.get("cookies"):
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    secrets = {"RAY_JOB_HEADERS": json.dumps(headers)} if headers else {}
    return found, secrets | ({"RAY_AUTH_TOKEN": options["token"]} if options.get("token") else {})
