"""Stages that the tests trigger, clear and kill, with functions of the standard library alone.

Every process of a job appends a line to a witness file: what really ran is counted there, not in our own ledger.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint

SOON = timedelta(seconds=1)
SETTINGS = {"witness": "{{ dag_run.conf['witness'] }}", "epochs": "{{ dag_run.conf.get('epochs', 6) }}"}


def epochs_done(checkpoint: str | None) -> int:
    """A helper of the DAG file: it has to travel with the function."""
    if checkpoint is None:
        return 0
    with open(f"{checkpoint}/epoch", encoding="utf-8") as file:
        return int(file.read())


def count_epochs(witness: str, epochs: int, seconds: float = 0.2) -> dict[str, Any]:
    """Count epochs, with a checkpoint after each; wait or fail when a file says so."""
    import os
    import time

    stage = rallypoint.stage()
    first = epochs_done(stage.latest_checkpoint())
    with open(witness, "a", encoding="utf-8") as file:
        file.write(f"attempt {stage.attempt} rank {stage.rank} first {first}\n")
    for epoch in range(first, int(epochs)):
        time.sleep(seconds)
        stage.save_checkpoint(lambda folder, epoch=epoch: write_epoch(folder, epoch + 1), step=epoch + 1)
        stage.report(step=epoch + 1, total=int(epochs), loss=1 / (epoch + 1))
        if os.path.exists(f"{witness}.fail") and epoch == 2:
            raise RuntimeError("the file says to fail")
        print(f"epoch {epoch + 1} of {epochs}", flush=True)
        while os.path.exists(f"{witness}.hold"):
            time.sleep(0.1)
    return {"first": first, "epochs": int(epochs), "attempt": stage.attempt}


def write_epoch(folder: str, epoch: int) -> None:
    with open(f"{folder}/epoch", "w", encoding="utf-8") as file:
        file.write(str(epoch))


@dag(schedule=None, render_template_as_native_obj=True)
def deferred() -> None:
    """Waits in the triggerer."""
    task.torch(task_id="train", nproc_per_node=1, deferrable=True)(count_epochs)(**SETTINGS)


@dag(schedule=None, render_template_as_native_obj=True)
def synchronous() -> None:
    """Waits in the worker."""
    train = task.torch(task_id="train", nproc_per_node=1, deferrable=False, retries=1, retry_delay=SOON)(count_epochs)
    train(**SETTINGS)


deferred()
synchronous()
