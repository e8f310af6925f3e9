"""The plugin that brings the links and the stage page into Airflow.

It is also imported where there is no API server (workers, the triggerer), so the page is loaded when it is asked for.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from rallypoint.airflow.links import PREFIX, DaskDashboardLink, StageLink, TensorBoardLink


class _Page:
    """An ASGI application that imports the page with its first request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from rallypoint.airflow.page import app  # noqa: PLC0415 - FastAPI is no business of a worker

        await app(scope, receive, send)


class RallypointPlugin(AirflowPlugin):
    """What Airflow loads through the entry point ``airflow.plugins``."""

    name = "rallypoint"
    fastapi_apps: list[dict[str, Any]] = [{"app": _Page(), "url_prefix": PREFIX, "name": "Rallypoint"}]  # noqa: RUF012 - Airflow's own shape
    operator_extra_links = [StageLink(), DaskDashboardLink(), TensorBoardLink()]  # noqa: RUF012 - Airflow's own shape
