"""``@task.ray_tune``: a search over parameters of a function of the DAG file.

The parameters of the space are filled in by each trial; the others are arguments of the task, as ever.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint
from rallypoint import search


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_ray_tune_decorator() -> None:
    """Look for the learning rate with which gradient descent ends lowest; a retry keeps the trials that have ended."""

    @task.ray_tune(
        space={"learning_rate": search.loguniform(1e-3, 1.5), "momentum": search.uniform(0, 0.95)},
        metric="loss",
        num_samples=12,
        search="optuna",
        scheduler=search.Asha(max_t=8, reduction_factor=2),
        reuse_actors=True,
        seed=0,
        retries=1,
        retry_delay=timedelta(seconds=5),
        deferrable=True,
    )
    def descend(steps: int, learning_rate: float, momentum: float) -> dict[str, Any]:
        import json
        from pathlib import Path

        stage = rallypoint.stage()
        state = {"step": 0, "x": 5.0, "speed": 0.0}
        if checkpoint := stage.latest_checkpoint():
            state = json.loads(Path(checkpoint, "state.json").read_text())
        while state["step"] < steps:
            state["speed"] = momentum * state["speed"] - learning_rate * 2 * state["x"]
            state["x"] += state["speed"]
            state["step"] += 1
            text = json.dumps(state)
            stage.save_checkpoint(lambda folder, text=text: Path(folder, "state.json").write_text(text))
            stage.report(step=int(state["step"]), total=steps, loss=state["x"] ** 2)
        return {"x": state["x"]}

    @task
    def show(result: dict[str, Any]) -> None:
        print(f"best of {result['trials']['total']} trials: {result['config']}, table {result['table']}")

    show(descend(steps=8))


example_ray_tune_decorator()
