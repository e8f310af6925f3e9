"""Stages that fail in every way that a cluster knows, and stages whose inputs or settings a test changes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint

SOON = timedelta(seconds=1)


def note(witness: str, first: int) -> None:
    stage = rallypoint.stage()
    with open(witness, "a", encoding="utf-8") as file:
        file.write(f"attempt {stage.attempt} rank {stage.rank} first {first}\n")


def first_epoch() -> int:
    checkpoint = rallypoint.stage().latest_checkpoint()
    if checkpoint is None:
        return 0
    with open(f"{checkpoint}/epoch", encoding="utf-8") as file:
        return int(file.read())


def save_epoch(epoch: int) -> None:
    def write(folder: str) -> None:
        with open(f"{folder}/epoch", "w", encoding="utf-8") as file:
            file.write(str(epoch))

    rallypoint.stage().save_checkpoint(write, step=epoch)


def rank_is_killed() -> None:
    import os
    import signal
    import time

    if rallypoint.stage().rank == 1:
        print("the last words of rank 1", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


def all_ranks_are_killed() -> None:
    import os
    import signal

    print(f"the last words of rank {rallypoint.stage().rank}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def rank_hangs() -> None:
    import threading

    if rallypoint.stage().rank == 1:
        waiting_for_a_peer_that_never_comes(threading.Event())


def waiting_for_a_peer_that_never_comes(event: Any) -> None:
    event.wait(300)


def rank_is_out_of_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(1 << 31)


def disk_is_full() -> None:
    import shutil

    def write(folder: str) -> None:
        with open("/dev/zero", "rb") as source, open("/dev/full", "wb") as full:
            shutil.copyfileobj(source, full)  # the kernel's own ENOSPC

    rallypoint.stage().save_checkpoint(write, step=1)


def import_fails() -> None:
    import a_module_that_nobody_has  # noqa: F401


def output_floods() -> dict[str, Any]:
    line = "x" * 999
    for _ in range(200_000):
        print(line)
    return {"printed": 200_000}


@dag(schedule=None)
def ways_to_fail() -> None:
    """One task for each way; none depends on another."""
    two = {"nproc_per_node": 2, "deferrable": True}
    one = {"nproc_per_node": 1, "deferrable": True}
    task.torch(task_id="rank_is_killed", **two)(rank_is_killed)()
    task.torch(task_id="all_ranks_are_killed", **two)(all_ranks_are_killed)()
    task.torch(task_id="rank_hangs", stall_timeout=45, **two)(rank_hangs)()
    task.torch(task_id="rank_is_out_of_memory", **one)(rank_is_out_of_memory)()
    task.torch(task_id="disk_is_full", **one)(disk_is_full)()
    task.torch(task_id="import_fails", retries=3, retry_delay=SOON, **one)(import_fails)()
    task.torch(task_id="output_floods", **one)(output_floods)()


@dag(schedule=None, render_template_as_native_obj=True)
def retried() -> None:
    """Runs until a test ends it, and has a retry."""

    @task.torch(nproc_per_node=1, retries=1, retry_delay=SOON, deferrable=True)
    def train(witness: str, epochs: int) -> dict[str, int]:
        import time

        first = first_epoch()
        note(witness, first)
        for epoch in range(first, epochs):
            time.sleep(1)
            save_epoch(epoch + 1)
            rallypoint.stage().report(step=epoch + 1, total=epochs)
        return {"first": first}

    train("{{ dag_run.conf['witness'] }}", epochs=8)


@dag(schedule=None, dagrun_timeout=timedelta(seconds=20))
def limited_run() -> None:
    """Its run as a whole has less time than its stage needs."""

    @task.torch(nproc_per_node=1, deferrable=True)
    def train() -> None:
        import time

        rallypoint.stage().report(step=1, total=2)
        time.sleep(600)

    train()


@dag(schedule=None)
def limited_synchronous() -> None:
    """Waits in a worker and has less time than it needs."""

    @task.torch(nproc_per_node=1, deferrable=False, execution_timeout=timedelta(seconds=12))
    def train() -> None:
        import time

        rallypoint.stage().report(step=1, total=2)
        time.sleep(600)

    train()


@dag(schedule=None)
def changed() -> None:
    """Fails in its third epoch while a file says so; a test changes its argument, its world size or its code."""

    @task.torch(nproc_per_node="{{ var.value.get('world', '1') }}", deferrable=True)
    def train(witness: str, rate: str) -> dict[str, int]:
        import os
        import time

        first = first_epoch()
        note(witness, first)
        for epoch in range(first, 5):
            save_epoch(epoch + 1)
            time.sleep(0.2)
            if epoch == 2 and os.path.exists(f"{witness}.fail"):
                raise RuntimeError("the file says to fail")
        return {"first": first, "world": rallypoint.stage().world_size}  # the code of today

    train("{{ dag_run.conf['witness'] }}", rate="{{ var.value.get('rate', '0.1') }}")


@dag(schedule=None)
def chain() -> None:
    """A stage that reads what another one made."""

    @task.torch(nproc_per_node=1, deferrable=True)
    def make() -> str:
        def write(folder: str) -> None:
            with open(f"{folder}/data", "w", encoding="utf-8") as file:
                file.write("data")

        return rallypoint.stage().save_artifact(write, name="data")

    @task.torch(nproc_per_node=1, deferrable=True)
    def read(data: str, witness: str) -> dict[str, Any]:
        import os

        first = first_epoch()
        note(witness, first)
        save_epoch(first + 1)
        if os.path.exists(f"{witness}.fail"):
            raise RuntimeError("the file says to fail")
        return {"first": first, "data": data}

    read(make(), "{{ dag_run.conf['witness'] }}")


@dag(schedule=None)
def mapped() -> None:
    """Each map index is a stage of its own."""

    @task.torch(nproc_per_node=1, deferrable=True)
    def square(number: int) -> dict[str, Any]:
        stage = rallypoint.stage()
        return {"square": number**2, "stage": stage.name}

    square.expand(number=[2, 3])


ways_to_fail()
retried()
limited_run()
limited_synchronous()
changed()
chain()
mapped()
