"""Runs whenever `flights` has made a model: what another team starts on the asset (see `prefect.yaml`).

The twin of `dags/flights_on_new_model.py`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger


@flow(name="flights-on-new-model")
def announce(uri: str, metrics: dict[str, Any] | None = None) -> dict[str, Any]:
    """Log where the new model is and how good it is.

    Args:
        uri: The model's URI, from the event that started this run.
        metrics: The last metrics of the stage that made it, from the same event.
    """
    extra = {"uri": uri, "metrics": metrics or {}}
    get_run_logger().info("a new model: %s with %s", extra["uri"], extra["metrics"])
    return extra
