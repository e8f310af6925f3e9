"""The flights pipeline on Spark as a Prefect flow, once on a real server and a real local Spark."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FLOWS = Path(__file__).resolve().parents[3] / "flows"


@pytest.mark.e2e
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_the_flow_trains_both_models_on_the_rows_that_it_made(prefect, monkeypatch):
    monkeypatch.syspath_prepend(str(FLOWS))
    made = importlib.import_module("flights_spark").flights_spark(fraction=0.05, iterations=8)
    assert made["passed"] is True
    assert set(made["models"]) == {"gbt", "logistic"}
    assert made["rows"] > 2000
