"""A task for each thing that a user can get wrong and that is not known before its task starts."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint
from rallypoint.airflow.operators import TorchElasticOperator

LOCK = threading.Lock()


def holds_a_lock() -> None:
    LOCK.acquire()


def says_hello() -> str:
    return "hello"


def returns_an_object() -> Any:
    rallypoint.stage().save_checkpoint(lambda folder: None, step=1)
    return object()


def counts(client: Any) -> int:
    return len(client.ncores())


@dag(schedule=None)
def bad_input() -> None:
    """None of the tasks depends on another, and each has retries that it must not use."""
    one: dict[str, Any] = {"deferrable": True, "retries": 2, "retry_delay": timedelta(seconds=1)}
    torch: dict[str, Any] = {"nproc_per_node": 1, **one}
    task.torch(task_id="unpicklable_function", **torch)(holds_a_lock)()
    TorchElasticOperator(task_id="missing_script", script="no/such/train.py", **torch)
    task.torch(task_id="unknown_store", rallypoint_conn_id="bad_store", **torch)(says_hello)()
    task.torch(task_id="unknown_launcher", rallypoint_conn_id="bad_launcher", **torch)(says_hello)()
    task.torch(task_id="missing_framework", python="{{ var.value.bare_python }}", **torch)(says_hello)()
    task.torch(task_id="missing_python", python="/nowhere/bin/python", **torch)(says_hello)()
    task.torch(task_id="rendered_nnodes", nnodes="{{ '4:1' }}", **torch)(says_hello)()
    task.torch(task_id="result_is_no_json", **torch)(returns_an_object)()
    # A scheduler may come up: this one follows the task's own retries, of which it has none.
    still: dict[str, Any] = {**one, "retries": 0}
    task.dask(task_id="unreachable_scheduler", cluster="tcp://127.0.0.1:9", connect_timeout=2, **still)(counts)()
    task.torch(task_id="unwritable_store", rallypoint_conn_id="closed_store", nproc_per_node=1, **still)(says_hello)()


bad_input()
