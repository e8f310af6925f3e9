"""Stages that fail in every way that a cluster knows, and stages whose inputs or settings a test changes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, dag, task

import rallypoint

SOON = timedelta(seconds=1)
WAITS = {"in_worker": False, "in_triggerer": True}  # whether its stages are deferred
MORE: dict[str, Any] = {}  # a test changes it


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
    import time

    if rallypoint.stage().rank == 1:
        time.sleep(120)
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


def ways_to_fail(mode: str) -> None:
    """One task for each way; none depends on another. Those of one process are of plain Python, which starts sooner."""
    alone: dict[str, Any] = {"deferrable": WAITS[mode]}
    two = {"nproc_per_node": 2, **alone}
    with DAG(f"{mode}_ways_to_fail", schedule=None):
        # The hang takes the longest, so it begins first.
        task.torch(task_id="rank_hangs", stall_timeout=45, priority_weight=2, **two)(rank_hangs)()
        task.torch(task_id="rank_is_killed", **two)(rank_is_killed)()
        task.torch(task_id="all_ranks_are_killed", **two)(all_ranks_are_killed)()
        task.torch(task_id="rank_is_out_of_memory", **two)(rank_is_out_of_memory)()
        task.python_job(task_id="disk_is_full", **alone)(disk_is_full)()
        task.python_job(task_id="import_fails", retries=3, retry_delay=SOON, **alone)(import_fails)()
        task.python_job(task_id="output_floods", **alone)(output_floods)()


@dag(schedule=None, render_template_as_native_obj=True)
def retried() -> None:
    """Waits after its third epoch while a file says so, and has a retry."""

    @task.torch(nproc_per_node=1, retries=1, retry_delay=SOON, deferrable=True)
    def train(witness: str) -> dict[str, int]:
        import os
        import time

        first = first_epoch()
        note(witness, first)
        for epoch in range(first + 1, 5):
            save_epoch(epoch)
            rallypoint.stage().report(step=epoch, total=4)
            while epoch >= 3 and os.path.exists(f"{witness}.hold"):
                time.sleep(0.05)
        return {"first": first}

    train("{{ dag_run.conf['witness'] }}")


def world_size() -> int:
    return rallypoint.stage().world_size


def fail_once(witness: str) -> dict[str, int]:
    import os

    first = first_epoch()
    note(witness, first)
    for epoch in range(first, 5):
        save_epoch(epoch + 1)
        if epoch == 2 and os.path.exists(f"{witness}.fail"):
            raise RuntimeError("the file says to fail")
    return {"first": first, "world": world_size()}


def changed(mode: str) -> None:
    """Fails in its third epoch while a file says so; a test changes its world size, its memory and its code."""
    world = "{{ var.value.get('world', '1') }}"
    with DAG(f"{mode}_changed", schedule=None):
        train = task.torch(task_id="train", nproc_per_node=world, deferrable=WAITS[mode], **MORE)(fail_once)
        train("{{ dag_run.conf['witness'] }}")


retried()
for mode in WAITS:
    ways_to_fail(mode)
    changed(mode)
