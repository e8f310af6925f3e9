"""The five promises in a real Airflow: processes are killed, stages cleared and marked, inputs changed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest
from airflow_instance import Component

from rallypoint.worker.supervisor import read_json

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def run_folder(airflow, snapshot) -> Path:
    return airflow.instance.home / "rallypoint" / "runs" / snapshot.entry.record.id


def wait_until_gone(airflow, snapshot) -> None:
    attempt = snapshot.entry.record.id
    airflow.api.wait_until(lambda: not airflow.jobs_alive(attempt) or None, f"the end of {attempt}", timeout=40)


# The orchestrator's processes die


@pytest.mark.parametrize("component", [Component.TRIGGERER, Component.SCHEDULER])
def test_a_component_that_is_killed_and_restarted_restarts_no_job(airflow, witness, component):
    run = airflow.start("deferred", {"witness": str(witness), "epochs": 30})
    airflow.wait_for_step("deferred", run, "train", 1)
    airflow.instance.kill(component)
    airflow.instance.restart(component)
    airflow.api.wait_for_run("deferred", run, timeout=180)
    assert airflow.api.xcom("deferred", run, "train")["attempt"] == 1
    assert len(witness.read_text().splitlines()) == 1


@pytest.mark.parametrize("point", ["before-intent", "after-intent", "after-launch", "after-handle"])
def test_a_worker_that_is_killed_in_the_launch_path_leaves_one_job(airflow, witness, point):
    armed = airflow.instance.home.parent / point
    armed.touch()
    run = airflow.start("retried", {"witness": str(witness)})
    airflow.api.wait_for_run("retried", run, timeout=180)
    assert not armed.exists()
    assert airflow.api.task_instance("retried", run, "train").try_number == 2
    assert airflow.api.xcom("retried", run, "train") == {"first": 0}
    assert witness.read_text().splitlines() == ["attempt 1 rank 0 first 0"]


@pytest.mark.parametrize("point", ["after-end", "after-outcome"])
def test_a_triggerer_that_is_killed_after_the_jobs_end_loses_no_result(airflow, witness, point):
    armed = airflow.instance.home.parent / point
    armed.touch()
    run = airflow.start("deferred", {"witness": str(witness), "epochs": 3})
    airflow.api.wait_until(lambda: not armed.exists() or None, f"the triggerer to reach {point}", timeout=120)
    airflow.instance.restart(Component.TRIGGERER)
    airflow.api.wait_for_run("deferred", run, timeout=180)
    assert airflow.api.xcom("deferred", run, "train") == {"first": 0, "epochs": 3, "attempt": 1}
    assert len(witness.read_text().splitlines()) == 1


# A person marks, or time is over


@pytest.mark.parametrize("state", ["failed", "success"])
@pytest.mark.parametrize("dag_id", ["deferred", "synchronous"])
def test_marking_a_waiting_stage_stops_its_job(airflow, witness, dag_id, state):
    run = airflow.start(dag_id, {"witness": str(witness), "epochs": 600})
    snapshot = airflow.wait_for_step(dag_id, run, "train", 1)
    airflow.api.mark(dag_id, run, "train", state)
    wait_until_gone(airflow, snapshot)
    assert airflow.attempts(dag_id, run, "train")[0].state == "cancelled"
    assert len(witness.read_text().splitlines()) == 1


def test_the_timeout_of_a_whole_run_stops_its_jobs(airflow):
    run = airflow.start("limited_run")
    snapshot = airflow.wait_for_step("limited_run", run, "train", 1)
    airflow.api.wait_for_run("limited_run", run, state="failed", timeout=120)
    wait_until_gone(airflow, snapshot)
    assert airflow.attempts("limited_run", run, "train")[0].state == "cancelled"


def test_the_execution_timeout_of_a_synchronous_stage_stops_its_job(airflow):
    run = airflow.start("limited_synchronous")
    airflow.api.wait_for_run("limited_synchronous", run, state="failed", timeout=120)
    assert "Timeout" in airflow.api.log("limited_synchronous", run, "train")
    (attempt,) = airflow.attempts("limited_synchronous", run, "train")
    wait_until_gone(airflow, attempt)
    assert airflow.attempts("limited_synchronous", run, "train")[0].state == "cancelled"


# Something changed before the retry


@pytest.fixture
def variable(airflow):
    """Sets an Airflow variable, and removes it afterwards."""
    names = []

    def put(name: str, value: str) -> None:
        airflow.api.request("POST", "/variables", json={"key": name, "value": value})
        names.append(name)

    yield put
    for name in names:
        airflow.api.request("DELETE", f"/variables/{name}")


def fail_once(airflow, dag_id: str, witness: Path) -> str:
    fail = witness.with_name(f"{witness.name}.fail")
    fail.touch()
    run = airflow.start(dag_id, {"witness": str(witness)})
    airflow.api.wait_for_run(dag_id, run, state="failed", timeout=120)
    fail.unlink()
    return run


def test_a_changed_argument_starts_from_scratch_and_the_log_says_which(airflow, witness, variable):
    run = fail_once(airflow, "changed", witness)
    variable("rate", "0.5")
    airflow.api.clear("changed", run, ["train"])
    airflow.api.wait_for_run("changed", run, timeout=120)
    assert airflow.api.xcom("changed", run, "train")["first"] == 0
    assert "because the work changed: argument rate changed" in airflow.api.log("changed", run, "train")


def write_whole(dag_file, text):
    """Write a file so that the dag-processor never reads half of it, and takes its DAGs for removed."""
    draft = dag_file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(dag_file)


def test_changed_code_memory_and_world_size_continue_from_the_checkpoint(airflow, witness, variable):
    run = fail_once(airflow, "changed", witness)
    variable("world", "2")
    dag_file = airflow.instance.dags / "faults.py"
    text = dag_file.read_text()
    changed = text.replace('"world": rallypoint.stage().world_size}', '"world": 10 * stage_size()}')
    changed = changed.replace("'1') }}\", ", "'1') }}\", job_resources=MORE_MEMORY, ")
    changed = changed.replace(
        "def first_epoch",
        'MORE_MEMORY = rallypoint.Resources(memory="4GiB")\n\n\n'
        "def stage_size() -> int:\n    return rallypoint.stage().world_size\n\n\ndef first_epoch",
        1,
    )
    write_whole(dag_file, changed)
    try:
        airflow.api.clear("changed", run, ["train"])
        airflow.api.wait_for_run("changed", run, timeout=120)
    finally:
        write_whole(dag_file, text)
    assert airflow.api.xcom("changed", run, "train") == {"first": 3, "world": 20}
    gangs = [
        read_json(str(run_folder(airflow, one) / "gang.json")) for one in airflow.attempts("changed", run, "train")
    ]
    assert [gang["roles"][0]["resources"]["memory"] for gang in gangs] == [None, "4GiB"]


def test_another_launcher_continues_from_the_checkpoint(airflow, witness):
    run = fail_once(airflow, "changed", witness)
    extra = f'{{"launcher": "local://{airflow.instance.home}/other-runs"}}'
    body = {"connection_id": "rallypoint_default", "conn_type": "rallypoint", "extra": extra}
    airflow.api.request("POST", "/connections", json=body)
    try:
        airflow.api.clear("changed", run, ["train"])
        airflow.api.wait_for_run("changed", run, timeout=120)
    finally:
        airflow.api.request("DELETE", "/connections/rallypoint_default")
    assert airflow.api.xcom("changed", run, "train")["first"] == 3
    launchers = [one.entry.record.launcher.rpartition("/")[2] for one in airflow.attempts("changed", run, "train")]
    assert launchers == ["runs", "other-runs"]


def test_a_stage_whose_upstream_was_cleared_too_starts_from_scratch(airflow, witness):
    run = fail_once(airflow, "chain", witness)
    before = airflow.api.xcom("chain", run, "make")
    airflow.api.clear("chain", run, ["make"], include_downstream=True)
    airflow.api.wait_for_run("chain", run, timeout=120)
    result = airflow.api.xcom("chain", run, "read")
    assert result["first"] == 0
    assert result["data"] == airflow.api.xcom("chain", run, "make") != before
    assert "argument data changed" in airflow.api.log("chain", run, "read")


def test_each_map_index_is_a_stage_of_its_own(airflow):
    run = airflow.start("mapped")
    airflow.api.wait_for_run("mapped", run, timeout=120)
    results = [airflow.api.xcom("mapped", run, "square", map_index=index) for index in (0, 1)]
    assert [result["square"] for result in results] == [4, 9]
    assert [result["stage"] for result in results] == [f"mapped/{run}/square/0", f"mapped/{run}/square/1"]


# The job's processes die


def kill(airflow, snapshot, who: str) -> None:
    supervisor = read_json(str(run_folder(airflow, snapshot) / "started.json"))["pid"]
    everything = [supervisor, *(child.pid for child in psutil.Process(supervisor).children(recursive=True))]
    for pid in {"supervisor": [supervisor], "everything": everything}[who]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("who", ["supervisor", "everything"])
def test_a_lost_job_is_continued_by_the_automatic_retry(airflow, witness, who):
    run = airflow.start("retried", {"witness": str(witness)})
    snapshot = airflow.wait_for_step("retried", run, "train", 3)
    kill(airflow, snapshot, who)
    airflow.api.wait_for_run("retried", run, timeout=180)
    assert airflow.api.xcom("retried", run, "train")["first"] >= 3
    assert [one.state for one in airflow.attempts("retried", run, "train")] == ["lost", "succeeded"]
    assert len(witness.read_text().splitlines()) == 2
    assert "stage failed, retryable: the job: lost" in airflow.api.log("retried", run, "train", 1)
    assert not airflow.jobs_alive(snapshot.entry.record.id)


@pytest.fixture(scope="module")
def ways_to_fail(airflow) -> str:
    """One run of a DAG with a task for each way to fail; all have ended."""
    run = airflow.start("ways_to_fail")
    airflow.api.wait_for_run("ways_to_fail", run, state="failed", timeout=300)
    return run


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("rank_is_killed", ["retryable: rank 1 on", "killed (SIGKILL)", "| the last words of rank 1", "all logs: "]),
        ("all_ranks_are_killed", ["retryable: rank ", "killed (SIGKILL)", "| the last words of rank ", "all logs: "]),
        ("rank_hangs", ["retryable: the job: stalled", "rank 1 (pid", "waiting_for_a_peer_that_never_comes"]),
        ("rank_is_out_of_memory", ["retryable: rank 0 on", "out of memory", "MemoryError"]),
        ("disk_is_full", ["retryable: rank 0 on", "disk full", "No space left on device"]),
        ("import_fails", ["user error: rank 0 on", "No module named 'a_module_that_nobody_has'"]),
    ],
)
def test_a_failure_names_its_cause(airflow, ways_to_fail, task, words):
    log = airflow.api.log("ways_to_fail", ways_to_fail, task)
    missing = [word for word in [*words, "what to do: "] if word not in log]
    assert not missing, log


def test_a_user_error_is_not_retried(airflow, ways_to_fail):
    assert airflow.api.task_instance("ways_to_fail", ways_to_fail, "import_fails").try_number == 1


def test_a_flood_of_output_is_survived_and_the_log_stays_readable(airflow, ways_to_fail):
    assert airflow.api.xcom("ways_to_fail", ways_to_fail, "output_floods") == {"printed": 200_000}
    (attempt,) = airflow.attempts("ways_to_fail", ways_to_fail, "output_floods")
    whole = run_folder(airflow, attempt) / "logs" / "rank-0.r0.log"
    assert whole.stat().st_size == 200_000 * 1000
    assert len(airflow.api.log("ways_to_fail", ways_to_fail, "output_floods")) < 20_000_000
