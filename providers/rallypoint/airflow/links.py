"""The buttons of a task in Airflow's UI. They are there from the moment the job is started."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from airflow.sdk import BaseOperatorLink, conf

from rallypoint.airflow.place import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

PREFIX = "/rallypoint"
DASHBOARD = "Dask dashboard"
RAY_DASHBOARD = "Ray dashboard"
RAY_JOB = "Ray job"
RAY_SERVE = "Ray Serve application"
SPARK_UI = "Spark UI"
SPARK_HISTORY = "Spark history"
RAY_LAUNCHERS = ("ray-jobs://", "ray-jobs+https://")  # the URIs of Ray clusters as launchers


def stage_page(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the address of a stage's page, below wherever Airflow's UI is served."""
    base = urlsplit(conf.get("api", "base_url", fallback="") or "/").path.rstrip("/")
    parts = "/".join(quote(part, safe="") for part in (dag_id, run_id, task_id, str(map_index)))
    return f"{base}{PREFIX}/stages/{parts}"


class StageLink(BaseOperatorLink):
    """The stage's page: its attempts, ranks, progress, failure and logs, live."""

    name = "Rallypoint stage"
    path = ""

    def get_link(self, operator: BaseOperator, *, ti_key: RuntimeTaskInstanceProtocol) -> str:  # type: ignore[override]
        """Return the page of the task instance: from its key and its connection, nothing that a deferral would lose."""
        map_index = ti_key.map_index if ti_key.map_index is not None else -1
        page = stage_page(ti_key.dag_id, ti_key.run_id, ti_key.task_id, map_index)
        conn_id = getattr(operator, "rallypoint_conn_id", DEFAULT_CONN_ID)
        asked = {} if conn_id == DEFAULT_CONN_ID else {"conn": conn_id}
        if launcher := getattr(operator, "launcher_conn_id", None):
            asked["on"] = launcher
        return page + self.path + (f"?{urlencode(asked, quote_via=quote)}" if asked else "")


class DaskDashboardLink(StageLink):
    """Goes on to the Dask dashboard of the running attempt."""

    name = DASHBOARD
    path = f"/links/{quote(DASHBOARD)}"


class RayDashboardLink(StageLink):
    """Goes on to the dashboard of the Ray that the attempt runs, or runs on."""

    name = RAY_DASHBOARD
    path = f"/links/{quote(RAY_DASHBOARD)}"


class RayJobLink(StageLink):
    """Goes on to the page of the attempt's job on the Ray dashboard, where the launcher is a Ray cluster."""

    name = RAY_JOB
    path = f"/links/{quote(RAY_JOB)}"

    def get_link(self, operator: BaseOperator, *, ti_key: RuntimeTaskInstanceProtocol) -> str:  # type: ignore[override]
        """Return the page; nothing, which Airflow does not show, for a task whose job runs elsewhere."""
        runs_on = getattr(operator, "runs_on", None) or ""
        return super().get_link(operator, ti_key=ti_key) if runs_on.startswith(RAY_LAUNCHERS) else ""


class RayServeLink(StageLink):
    """Goes on to the page of the application that the attempt deploys on the Ray dashboard."""

    name = RAY_SERVE
    path = f"/links/{quote(RAY_SERVE)}"


class SparkUILink(StageLink):
    """Goes on to the UI of the attempt's Spark application while it runs."""

    name = SPARK_UI
    path = f"/links/{quote(SPARK_UI)}"


class SparkHistoryLink(StageLink):
    """Goes on to the application on the history server; nothing, which Airflow does not show, where none is named."""

    name = SPARK_HISTORY
    path = f"/links/{quote(SPARK_HISTORY)}"

    def get_link(self, operator: BaseOperator, *, ti_key: RuntimeTaskInstanceProtocol) -> str:  # type: ignore[override]
        """Return the page, if the task names a history server."""
        known = getattr(operator, "job_options", {}).get("history_server")
        return super().get_link(operator, ti_key=ti_key) if known else ""


class TensorBoardLink(StageLink):
    """Goes on to the TensorBoard that ``[rallypoint] tensorboard_url`` names, or to how to open one."""

    name = "TensorBoard"
    path = "/tensorboard"
