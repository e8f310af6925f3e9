"""The five promises in a real Airflow for gangs of torch: processes are killed, stages marked, their settings changed.

`test_airflow_plain_stages` has what does not depend on the gang. Where a stage waits for its job is a mode: runs of
both modes go on at the same time.
"""

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


# The orchestrator's processes die


@pytest.mark.parametrize("component", [Component.TRIGGERER, Component.SCHEDULER])
def test_a_component_that_is_killed_and_restarted_restarts_no_job(airflow, witness, component):
    with airflow.told(witness, "hold"):
        run = airflow.start("deferred", {"witness": str(witness)})
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
    with airflow.told(witness, "hold"):  # the job, if there is one already, is alive when the next try comes
        run = airflow.start("retried", {"witness": str(witness)})
        airflow.api.wait_for_task("retried", run, "train", "deferred", timeout=180, try_number=2)
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


# A person marks


@pytest.mark.parametrize("state", ["failed", "success"])
def test_marking_a_waiting_stage_stops_its_job(airflow, in_both_modes, state):
    def check(mode, witness):
        dag_id = {"in_worker": "synchronous", "in_triggerer": "deferred"}[mode]
        with airflow.told(witness, "hold"):
            run = airflow.start(dag_id, {"witness": str(witness)})
            snapshot = airflow.wait_for_step(dag_id, run, "train", 1)
            airflow.api.mark(dag_id, run, "train", state)
            airflow.wait_until_gone(snapshot)
        assert airflow.attempts(dag_id, run, "train")[0].state == "cancelled"
        assert len(witness.read_text().splitlines()) == 1

    in_both_modes(check)


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


def write_whole(dag_file, text):
    """Write a file so that the dag-processor never reads half of it, and takes its DAGs for removed."""
    draft = dag_file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(dag_file)


def test_changed_code_memory_and_world_size_continue_from_the_checkpoint(airflow, in_both_modes, variable):
    runs = {}

    def fail(mode, witness):
        dag_id = f"{mode}_changed"
        with airflow.told(witness, "fail"):
            runs[mode] = airflow.start(dag_id, {"witness": str(witness)})
            airflow.api.wait_for_run(dag_id, runs[mode], state="failed", timeout=120)

    def clear(mode, _):
        dag_id, run = f"{mode}_changed", runs[mode]
        airflow.api.clear(dag_id, run, ["train"])
        airflow.api.wait_for_run(dag_id, run, timeout=120)
        assert airflow.api.xcom(dag_id, run, "train") == {"first": 3, "world": 20}
        attempts = airflow.attempts(dag_id, run, "train")
        gangs = [read_json(str(run_folder(airflow, one) / "gang.json")) for one in attempts]
        assert [gang["roles"][0]["resources"]["memory"] for gang in gangs] == [None, "4GiB"]

    in_both_modes(fail)
    variable("world", "2")
    dag_file = airflow.instance.dags / "faults.py"
    text = dag_file.read_text()
    changed = text.replace("MORE: dict[str, Any] = {}", 'MORE = {"job_resources": rallypoint.Resources(memory="4GiB")}')
    changed = changed.replace("return rallypoint.stage().world_size", "return 10 * rallypoint.stage().world_size")
    write_whole(dag_file, changed)
    try:
        in_both_modes(clear)
    finally:
        write_whole(dag_file, text)


# The job's processes die


def kill(airflow, snapshot, who: str) -> None:
    supervisor = read_json(str(run_folder(airflow, snapshot) / "started.json"))["pid"]
    everything = [supervisor, *(child.pid for child in psutil.Process(supervisor).children(recursive=True))]
    for pid in {"supervisor": [supervisor], "everything": everything}[who]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("who", ["supervisor", "everything"])
def test_a_lost_job_is_continued_by_the_automatic_retry(airflow, witness, who):
    with airflow.told(witness, "hold"):
        run = airflow.start("retried", {"witness": str(witness)})
        snapshot = airflow.wait_for_step("retried", run, "train", 3)
        kill(airflow, snapshot, who)
        airflow.wait_until_gone(snapshot)
    airflow.api.wait_for_run("retried", run, timeout=180)
    assert airflow.api.xcom("retried", run, "train") == {"first": 3}
    assert [one.state for one in airflow.attempts("retried", run, "train")] == ["lost", "succeeded"]
    assert witness.read_text().splitlines() == ["attempt 1 rank 0 first 0", "attempt 2 rank 0 first 3"]
    assert "stage failed, retryable: the job: lost" in airflow.api.log("retried", run, "train", 1)


@pytest.fixture(scope="module")
def ways_to_fail(airflow, in_both_modes) -> dict[str, str]:
    """For each mode a run of a DAG with a task for each way to fail; all have ended."""
    runs = {}

    def run(mode, _):
        dag_id = f"{mode}_ways_to_fail"
        runs[mode] = airflow.start(dag_id)
        airflow.api.wait_for_run(dag_id, runs[mode], state="failed", timeout=400)

    in_both_modes(run)
    return runs


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("rank_is_killed", ["retryable: rank 1 on", "killed (SIGKILL)", "| the last words of rank 1", "all logs: "]),
        ("all_ranks_are_killed", ["retryable: rank ", "killed (SIGKILL)", "| the last words of rank ", "all logs: "]),
        ("rank_hangs", ["retryable: the job: stalled", "rank 1 (pid", "waiting_for_a_peer_that_never_comes"]),
        ("rank_is_out_of_memory", ["retryable: rank 0 on", "out of memory", "MemoryError"]),
        ("disk_is_full", ["retryable: main-0 on", "disk full", "No space left on device"]),
        ("import_fails", ["user error: main-0 on", "No module named 'a_module_that_nobody_has'"]),
    ],
)
def test_a_failure_names_its_cause(airflow, ways_to_fail, mode, task, words):
    log = airflow.api.log(f"{mode}_ways_to_fail", ways_to_fail[mode], task)
    missing = [word for word in [*words, "what to do: "] if word not in log]
    assert not missing, log


def test_a_user_error_is_not_retried(airflow, ways_to_fail, mode):
    assert airflow.api.task_instance(f"{mode}_ways_to_fail", ways_to_fail[mode], "import_fails").try_number == 1


def test_a_flood_of_output_is_survived_and_the_log_stays_readable(airflow, ways_to_fail, mode):
    flood = (f"{mode}_ways_to_fail", ways_to_fail[mode], "output_floods")
    assert airflow.api.xcom(*flood) == {"printed": 200_000}
    (attempt,) = airflow.attempts(*flood)
    (whole,) = (run_folder(airflow, attempt) / "logs").glob("*.log")
    assert whole.stat().st_size == 200_000 * 1000
    assert len(airflow.api.log(*flood)) < 20_000_000
