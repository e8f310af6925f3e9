"""A run's conf chooses where its jobs run, with the DAG's code unchanged."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from rallypoint.airflow.operators import StageOperator
from rallypoint.airflow.operators.cluster import StopClusterOperator
from rallypoint.airflow.place import launcher_id

FLIGHTS = Path(__file__).resolve().parents[3] / "dags" / "flights.py"


@pytest.fixture(scope="module")
def stages():
    dag = next(
        value for value in runpy.run_path(str(FLIGHTS)).values() if callable(value) and hasattr(value, "__wrapped__")
    )()
    return [task for task in dag.tasks if isinstance(task, StageOperator | StopClusterOperator)]


@pytest.mark.parametrize(("chosen", "expected"), [("gpus", "gpus"), (None, None), ("", None)])
def test_every_stage_of_flights_runs_where_the_conf_says(stages, chosen, expected):
    assert len(stages) == 8
    for stage in stages:
        native = stage.dag.get_template_env()
        rendered = stage.render_template(stage.launcher_conn_id, {"params": {"launcher": chosen}}, native)
        assert launcher_id(None, rendered) == expected, stage.task_id
        assert "launcher_conn_id" in stage.template_fields
