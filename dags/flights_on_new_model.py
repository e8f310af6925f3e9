"""Runs whenever `flights` has published a model: what another team schedules on the asset."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, dag, task


@dag(
    schedule=[Asset("flights_model", uri="rallypoint://flights/model")], tags=["rallypoint", "example"], doc_md=__doc__
)
def flights_on_new_model() -> None:
    """Read the URI and the metrics of the model from the event that triggered this run."""

    @task
    def announce(triggering_asset_events: dict[Any, Any] | None = None) -> dict[str, Any]:
        events = [event for found in (triggering_asset_events or {}).values() for event in found]
        extra: dict[str, Any] = dict(events[-1].extra)
        print(f"a new model: {extra['uri']} with {extra['metrics']}")
        return extra

    announce()


flights_on_new_model()
