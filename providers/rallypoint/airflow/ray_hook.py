"""The connection type ``ray``: the dashboard of a Ray cluster, as a place where jobs run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from rallypoint.airflow.launcher_connections import RAY, ray_launcher
from rallypoint.errors import RallypointError

if TYPE_CHECKING:
    from rallypoint.launchers.ray_jobs import RayJobsLauncher


class RayHook(BaseHook):
    """Finds a Ray cluster.

    Args:
        ray_conn_id: A connection of type ``ray``: host, port and schema of the dashboard, its token as the password;
            ``headers``, ``cookies``, ``verify`` and more in the extra.
    """

    conn_name_attr = "ray_conn_id"
    default_conn_name = "ray_default"
    conn_type = RAY
    hook_name = "Ray cluster (Rallypoint)"

    def __init__(self, ray_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ray_conn_id = ray_conn_id

    def get_conn(self) -> RayJobsLauncher:
        """Return the launcher of the cluster.

        Raises:
            AirflowNotFoundException: There is no such connection.
            LaunchError: A field of it is wrong.
        """
        from rallypoint.launchers.ray_jobs import RayJobsLauncher  # noqa: PLC0415 - DAG files import hooks

        return RayJobsLauncher.from_uri(*ray_launcher(self.get_connection(self.ray_conn_id)))

    def test_connection(self) -> tuple[bool, str]:
        """Ask the dashboard for its version, as the *Test* button wants it."""
        try:
            launcher = self.get_conn()
            version = asyncio.run(launcher.check())
        except RallypointError as error:
            return False, str(error)
        return True, f"Ray {version} answers at {launcher.address.url}"
