"""Runs whenever `flights` has made a model: a Ray Serve that runs all the time answers with it from then on.

An event starts it (see `prefect.yaml`). The twin of `dags/flights_on_new_model.py`, which only says that there is one.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from rallypoint import RayServe
from rallypoint.prefect import run_stage


@flow(name="flights-on-new-model")
def redeploy(
    uri: str,
    metrics: dict[str, Any] | None = None,
    least_auc: float = 0.65,
    dashboard_url: str = "http://127.0.0.1:8265",
    serve_port: int = 8000,
) -> dict[str, Any]:
    """Serve a new model instead of the one before, if it is good enough.

    A deploy that does not become healthy is taken back, and the model before answers on.

    Args:
        uri: The model's URI, from the event that started this run.
        metrics: The last metrics of the stage that made it, from the same event.
        least_auc: The validation AUC that a model has to have, to be served.
        dashboard_url: Dashboard of the Ray cluster that serves.
        serve_port: Port of the served model, if nothing was served on that cluster before.
    """
    auc = (metrics or {}).get("val_auc", 0.0)
    if auc < least_auc:
        get_run_logger().warning("%s is not served: its AUC is %.4f, expected %g or more", uri, auc, least_auc)
        return {"uri": uri, "served": None}
    application = RayServe(
        name="flights",
        dashboard_url=dashboard_url,
        import_path="rallypoint.examples.flights.serving:app",
        args={"model": uri},
        ship_rallypoint=True,
        http_host="127.0.0.1",
        http_port=serve_port,
    )
    served = run_stage(application, name="redeploy", retries=1)
    get_run_logger().info("%s answers at %s", uri, served["url"])
    return {"uri": uri, "served": served}
