"""The connection type ``slurm``: a partition of a Slurm cluster, as a place where jobs run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from rallypoint.airflow.launcher_connections import SLURM, slurm_launcher
from rallypoint.errors import RallypointError

if TYPE_CHECKING:
    from rallypoint.launchers.slurm import SlurmLauncher


class SlurmHook(BaseHook):
    """Finds a Slurm cluster.

    Args:
        slurm_conn_id: A connection of type ``slurm``: the partition as the host, the shared folder as ``root``, and
            ``account``, ``qos``, ``time`` and more in the extra.
    """

    conn_name_attr = "slurm_conn_id"
    default_conn_name = "slurm_default"
    conn_type = SLURM
    hook_name = "Slurm (Rallypoint)"

    def __init__(self, slurm_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slurm_conn_id = slurm_conn_id

    def get_conn(self) -> SlurmLauncher:
        """Return the launcher of the partition.

        Raises:
            AirflowNotFoundException: There is no such connection.
            LaunchError: A field of it is wrong.
        """
        from rallypoint.launchers.slurm import SlurmLauncher  # noqa: PLC0415 - DAG files import hooks

        return SlurmLauncher.from_uri(*slurm_launcher(self.get_connection(self.slurm_conn_id)))

    def test_connection(self) -> tuple[bool, str]:
        """Ask Slurm for its version and the partition, as the *Test* button wants it."""
        try:
            found = asyncio.run(self.get_conn().check())
        except RallypointError as error:
            return False, str(error)
        return True, found
