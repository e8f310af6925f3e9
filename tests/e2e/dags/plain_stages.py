"""Stages of one plain Python process each, the cheapest there are: in a worker, and the same in the triggerer.

Every start of the user's code appends a line to a witness file, and another one if it finds a copy of itself alive.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint

WITNESS = "{{ dag_run.conf['witness'] }}"
RETRIED = {"retries": 1, "retry_delay": timedelta(seconds=1)}
WAITS = {"in_worker": False, "in_triggerer": True}  # whether its stages are deferred


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def bear_witness(witness: str, first: int) -> None:
    import os

    with open(witness, "a+", encoding="utf-8") as file:
        file.seek(0)
        for line in file.read().splitlines():
            pid = line.rpartition(" ")[2]
            if line.startswith("attempt") and is_alive(int(pid)):
                file.write(f"beside {pid}\n")
        file.write(f"attempt {rallypoint.stage().attempt} first {first} pid {os.getpid()}\n")


def count(witness: str, epochs: int = 4, rate: str = "") -> dict[str, Any]:
    """Count epochs, with a checkpoint after each; from the third on, fail or wait while a file says so."""
    import os
    import time

    del rate  # an argument that a test changes
    stage = rallypoint.stage()
    checkpoint, first = stage.latest_checkpoint(), 0
    if checkpoint:
        with open(f"{checkpoint}/epoch", encoding="utf-8") as file:
            first = int(file.read())
    bear_witness(witness, first)
    for epoch in range(first + 1, epochs + 1):
        stage.save_checkpoint(lambda folder, epoch=epoch: write(f"{folder}/epoch", str(epoch)), step=epoch)
        stage.report(step=epoch, total=epochs)
        if epoch == 3 and os.path.exists(f"{witness}.fail"):
            raise RuntimeError("the file says to fail")
        while epoch >= 3 and os.path.exists(f"{witness}.hold"):
            time.sleep(0.05)
    return {"first": first, "attempt": stage.attempt}


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def make() -> str:
    return rallypoint.stage().save_artifact(lambda folder: write(f"{folder}/data", "data"), name="data")


def read(data: str, witness: str) -> dict[str, Any]:
    return {**count(witness), "data": data}


def square(number: int) -> dict[str, Any]:
    return {"square": number**2, "stage": rallypoint.stage().name}


def dags(name: str, *, deferrable: bool) -> None:
    """Make the DAGs whose stages wait in one place."""

    def stage(function: Any, **options: Any) -> Any:
        return task.python_job(task_id=function.__name__, deferrable=deferrable, **options)(function)

    @dag(dag_id=name, schedule=None)
    def plain() -> None:
        stage(count)(WITNESS, rate="{{ var.value.get('plain_rate', '0.1') }}")

    @dag(dag_id=f"{name}_retried", schedule=None)
    def retried() -> None:
        stage(count, **RETRIED)(WITNESS)

    @dag(dag_id=f"{name}_limited_run", schedule=None, dagrun_timeout=timedelta(seconds=15))
    def limited_run() -> None:
        stage(count)(WITNESS)

    @dag(dag_id=f"{name}_limited", schedule=None)
    def limited() -> None:
        stage(count, execution_timeout=timedelta(seconds=12))(WITNESS)

    @dag(dag_id=f"{name}_chain", schedule=None)
    def chain() -> None:
        stage(read)(stage(make)(), WITNESS)

    @dag(dag_id=f"{name}_mapped", schedule=None)
    def mapped() -> None:
        stage(square).expand(number=[2, 3])

    for make_dag in (plain, retried, limited_run, limited, chain, mapped):
        make_dag()


for name, deferrable in WAITS.items():
    dags(name, deferrable=deferrable)
