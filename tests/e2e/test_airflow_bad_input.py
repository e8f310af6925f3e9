"""Bad input in a real Airflow: the log says what was got, what was expected and what to do, and nothing is retried.

What can be known while a DAG file is read is an import error of it: see `test_airflow_stages`.
"""

from __future__ import annotations

import json
import venv

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

CONNECTIONS = {
    "bad_store": {"store": "ftp://somewhere/else"},
    "bad_launcher": {"launcher": "teleport://somewhere"},
    "closed_store": {"store": "/proc/no/such/folder"},
}


@pytest.fixture(scope="module")
def bad_input(airflow, tmp_path_factory) -> str:
    """One run of a DAG with a task for each bad input; all have ended."""
    bare = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(bare, with_pip=False)
    airflow.api.request("POST", "/variables", json={"key": "bare_python", "value": str(bare / "bin" / "python")})
    for conn_id, extra in CONNECTIONS.items():
        body = {"connection_id": conn_id, "conn_type": "rallypoint", "extra": json.dumps(extra)}
        airflow.api.request("POST", "/connections", json=body)
    run = airflow.start("bad_input")
    airflow.api.wait_for_run("bad_input", run, state="failed", timeout=300)
    return run


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("unpicklable_function", ["got the function holds_a_lock, which cannot be pickled", "expected", "inside the"]),
        ("missing_script", ["no/such/train.py', expected the absolute path of a file", "correct the path"]),
        ("unknown_store", ["got a store with the scheme 'ftp', expected file:///folder", "change its scheme"]),
        (
            "unknown_launcher",
            ["got the launcher 'teleport://somewhere', expected one of", "correct the launcher's URI"],
        ),
        ("missing_framework", ["does not have torch, which a torch job needs: install it there"]),
        ("missing_python", ["got python='/nowhere/bin/python', expected the path of a Python interpreter on"]),
        ("rendered_nnodes", ["TorchElastic(nnodes=…): got '4:1', expected \"min:max\""]),
        ("result_is_no_json", ["got a result with a builtins.object, expected JSON", "save_artifact"]),
        (
            "unreachable_scheduler",
            ["got the Dask scheduler tcp://127.0.0.1:9", "within 2 s: start it, correct cluster="],
        ),
        (
            "unwritable_store",
            ["cannot", "/proc/no/such/folder", "expected a folder that this process", "choose another"],
        ),
    ],
)
def test_bad_input_is_answered_at_the_start_of_its_task_and_not_retried(airflow, bad_input, task, words):
    log = airflow.api.log("bad_input", bad_input, task)
    missing = [word for word in words if word not in log]
    assert not missing, log
    # A worker that a busy machine starved before it came to this is no retry of ours.
    tries = range(1, airflow.api.task_instance("bad_input", bad_input, task).try_number + 1)
    assert [number for number in tries if words[0] in airflow.api.log("bad_input", bad_input, task, number)] == [
        tries[-1]
    ]


def test_what_could_not_start_left_no_process(airflow, bad_input):
    for task in ("missing_script", "missing_framework", "missing_python"):
        for attempt in airflow.attempts("bad_input", bad_input, task):
            assert not (airflow.instance.home / "rallypoint" / "runs" / attempt.entry.record.id / "logs").exists()
