"""Stages that run as jobs of a Ray cluster, which the connection ``ray_cluster`` names; a test holds and ends them.

The file is not called ``ray.py``: Airflow puts the folder of DAG files on the path, and it would be imported as Ray.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint
from rallypoint import search
from rallypoint.airflow.operators import RayServeOperator, RayServeRollbackOperator, RayServeUndeployOperator

ON_RAY = {"launcher_conn_id": "ray_cluster", "address": "auto"}
WITNESS = "{{ dag_run.conf['witness'] }}"


def note(witness: str, line: str) -> None:
    with open(witness, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def work(witness: str) -> dict[str, Any]:
    """Say that it runs, wait while a file is there, and fail if another one is."""
    import os
    import time

    import ray

    note(witness, f"attempt {rallypoint.stage().attempt}")
    while os.path.exists(f"{witness}.hold"):
        time.sleep(0.1)
    if os.path.exists(f"{witness}.fail"):
        raise ValueError("the loss is NaN")
    return {"attempt": rallypoint.stage().attempt, "connected": ray.is_initialized()}


def trial(witness: str, *, width: int) -> dict[str, Any]:
    """Say which trial runs; the second one waits while a file is there."""
    import os
    import time

    note(witness, f"attempt {rallypoint.stage().attempt} width {width}")
    while width == 2 and os.path.exists(f"{witness}.hold"):
        time.sleep(0.1)
    return {"loss": float(width)}


@dag(schedule=None)
def ray_synchronous() -> None:
    """Waits in the worker."""
    retry = {"retries": 1, "retry_delay": timedelta(seconds=1)}
    task.ray(task_id="work", deferrable=False, **retry, **ON_RAY)(work)(WITNESS)


@dag(schedule=None)
def ray_deferred() -> None:
    """Waits in the triggerer."""
    task.ray(task_id="work", deferrable=True, **ON_RAY)(work)(WITNESS)


@dag(schedule=None)
def ray_sweep() -> None:
    """Searches, one trial after the other."""
    options = {"space": {"width": search.grid([1, 2, 3])}, "search": "grid", "num_samples": 1}
    task.ray_tune(task_id="tune", deferrable=True, max_concurrent_trials=1, **options, **ON_RAY)(trial)(WITNESS)


@dag(schedule=None, render_template_as_native_obj=True)
def ray_served() -> None:
    """Deploys an application twice, goes back to the first one, and removes it."""
    echo = {"name": "echo", "ray_conn_id": "ray_cluster"}
    deploys = [
        RayServeOperator(
            task_id=text,
            import_path="rallypoint.examples.echo:app",
            ship_rallypoint=True,
            route_prefix="/echo",
            app_args={"text": text},
            probe={"expect": {"text": text}},
            http_host="127.0.0.1",
            http_port="{{ dag_run.conf['port'] }}",
            deferrable=True,
            **echo,
        )
        for text in ("first", "second")
    ]
    back = RayServeRollbackOperator(task_id="back", probe={"expect": {"text": "first"}}, deferrable=True, **echo)
    gone = RayServeUndeployOperator(task_id="gone", deferrable=True, **echo)
    deploys[0] >> deploys[1] >> back >> gone


ray_synchronous()
ray_deferred()
ray_served()
ray_sweep()
