"""The connection type ``rallypoint``: a store and a launcher."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from rallypoint.airflow.place import DEFAULT_CONN_ID, credentials_id, is_default_missing, launcher_id, place_of
from rallypoint.errors import LaunchError, RallypointError

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from rallypoint.stages.place import Place


class RallypointHook(BaseHook):
    """Finds the store and the launcher of a connection.

    Args:
        rallypoint_conn_id: A connection of type ``rallypoint``. The default one need not exist.
        launcher_conn_id: The connection of another launcher than that one names, such as one of the type ``ray``.
    """

    conn_name_attr = "rallypoint_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "rallypoint"
    hook_name = "Rallypoint"

    def __init__(
        self, rallypoint_conn_id: str = DEFAULT_CONN_ID, launcher_conn_id: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.rallypoint_conn_id = rallypoint_conn_id
        self.launcher_conn_id = launcher_conn_id

    def get_conn(self) -> Place:
        """Return the store and launcher that the connection names.

        Raises:
            AirflowNotFoundException: There is no such connection, and it is not the default one; or it is of another
                type.
            StoreError: The store's URI or credentials are wrong.
            LaunchError: The launcher's connection is wrong.
        """
        connection: Connection | None = None
        try:
            connection = self.get_connection(self.rallypoint_conn_id)
        except Exception as error:
            if not is_default_missing(self.rallypoint_conn_id, error):
                raise
        self._check(connection)
        other, runs_on = credentials_id(connection), launcher_id(connection, self.launcher_conn_id)
        return place_of(
            connection,
            self.get_connection(other) if other else None,
            self.get_connection(runs_on) if runs_on else None,
        )

    async def aget_place(self) -> Place:
        """Return the same as `get_conn`, from a trigger, without blocking its event loop."""
        connection: Connection | None = None
        try:
            connection = await self.aget_connection(self.rallypoint_conn_id)
        except Exception as error:
            if not is_default_missing(self.rallypoint_conn_id, error):
                raise
        self._check(connection)
        other, runs_on = credentials_id(connection), launcher_id(connection, self.launcher_conn_id)
        return place_of(
            connection,
            await self.aget_connection(other) if other else None,
            await self.aget_connection(runs_on) if runs_on else None,
        )

    def _check(self, connection: Connection | None) -> None:
        # The stage's page takes the id from its reader, who may have no right to look at connections.
        if connection is not None and connection.conn_type != self.conn_type:
            msg = f"got the connection {self.rallypoint_conn_id!r}, expected one of the type {self.conn_type!r}"
            raise AirflowNotFoundException(msg)

    def test_connection(self) -> tuple[bool, str]:
        """Write to the store, and ask the launcher what would run jobs, as the *Test* button wants it."""
        try:
            place = self.get_conn()
            answer = asyncio.run(self._test(place))
        except RallypointError as error:
            return False, str(error)
        return True, f"the store {place.store} can be written, and the launcher {place.launcher} answers{answer}"

    async def _test(self, place: Place) -> str:
        from rallypoint.launchers.base import Surveyable  # noqa: PLC0415 - DAG files import this module
        from rallypoint.launchers.registry import open_launcher  # noqa: PLC0415
        from rallypoint.stages.store import Store  # noqa: PLC0415

        await Store.open(place.store, options=place.store_options or None).check()
        launcher = open_launcher(place.launcher, place.launcher_options or None)
        await launcher.find(f"rp-test-{uuid.uuid4().hex[:12]}")
        if not isinstance(launcher, Surveyable):
            return ""
        reports = await launcher.survey()
        for report in reports:
            if report.problems:
                raise LaunchError(f"{report.host}: {'; '.join(report.problems)}")
        return f" ({', '.join(f'Python {report.python} on {report.host}' for report in reports)})"
