"""The five promises for stages of plain Python, and that never two copies of the user's code are alive.

Most of it is asked of a stage that waits in its worker and of one that is deferred, at the same time.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import psutil
import pytest
from airflow_instance import Component

from rallypoint.worker.supervisor import read_json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture
def witness(tmp_path):
    """The file that the user's code writes; at no time were two copies of it alive."""
    path = tmp_path / "witness.txt"
    yield path
    assert "beside" not in (path.read_text() if path.exists() else "")


def starts(witness):
    """Return the starts of the user's code, and what it said of a copy of itself that was alive."""
    return [line.rpartition(" pid ")[0] or line for line in witness.read_text().splitlines()]


def started(airflow, dag_id, witness, task="count"):
    run = airflow.start(dag_id, {"witness": str(witness)})
    return run, airflow.wait_for_step(dag_id, run, task, 3)


def failed(airflow, dag_id, witness):
    with airflow.told(witness, "fail"):
        run = airflow.start(dag_id, {"witness": str(witness)})
        airflow.api.wait_for_run(dag_id, run, state="failed", timeout=120)
    return run


def cleared(airflow, dag_id, run, task="count", **options):
    airflow.api.clear(dag_id, run, [task], **options)
    airflow.api.wait_for_run(dag_id, run, timeout=120)


# Processes die -------------------------------------------------------------------------------------------------------


def test_a_scheduler_that_dies_with_its_workers_restarts_no_job(airflow, witness):
    with airflow.told(witness, "hold"):
        run, _ = started(airflow, "in_worker_retried", witness)
        airflow.instance.kill(Component.SCHEDULER)
        airflow.instance.restart(Component.SCHEDULER)
        airflow.api.wait_until(
            lambda: airflow.api.task_instance("in_worker_retried", run, "count").try_number == 2 or None,
            "the second try",
            timeout=180,
        )
    airflow.api.wait_for_run("in_worker_retried", run, timeout=120)
    assert airflow.api.xcom("in_worker_retried", run, "count") == {"first": 0, "attempt": 1}
    assert starts(witness) == ["attempt 1 first 0"]


def test_a_worker_that_is_killed_after_the_jobs_end_loses_no_result(airflow, tmp_path):
    """Two workers: one dies before the outcome is recorded, the other one before it is delivered."""
    armed = [airflow.instance.home.parent / point for point in ("after-end", "after-outcome")]
    for file in armed:
        file.touch()
    witnesses = [tmp_path / "one", tmp_path / "two"]
    runs = [airflow.start("in_worker_retried", {"witness": str(witness)}) for witness in witnesses]
    for run, witness in zip(runs, witnesses, strict=True):
        airflow.api.wait_for_run("in_worker_retried", run, timeout=240)
        assert airflow.api.task_instance("in_worker_retried", run, "count").try_number == 2
        assert airflow.api.xcom("in_worker_retried", run, "count") == {"first": 0, "attempt": 1}
        assert starts(witness) == ["attempt 1 first 0"]
    assert not [file for file in armed if file.exists()]


@pytest.mark.parametrize("who", ["supervisor", "everything"])
def test_a_lost_job_is_continued_by_the_automatic_retry(airflow, witness, who):
    with airflow.told(witness, "hold"):
        run, snapshot = started(airflow, "in_worker_retried", witness)
        attempt = snapshot.entry.record.id
        folder = airflow.instance.home / "rallypoint" / "runs" / attempt
        supervisor = read_json(str(folder / "started.json"))["pid"]
        below = [child.pid for child in psutil.Process(supervisor).children(recursive=True)]
        for pid in {"supervisor": [supervisor], "everything": [supervisor, *below]}[who]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        airflow.wait_until_gone(snapshot)
    airflow.api.wait_for_run("in_worker_retried", run, timeout=120)
    assert airflow.api.xcom("in_worker_retried", run, "count") == {"first": 3, "attempt": 2}
    assert [one.state for one in airflow.attempts("in_worker_retried", run, "count")] == ["lost", "succeeded"]
    assert starts(witness) == ["attempt 1 first 0", "attempt 2 first 3"]


# A person clears, or time is over ------------------------------------------------------------------------------------


def test_clearing_a_waiting_stage_stops_its_job_before_the_next_one_starts(airflow, in_both_modes):
    def check(mode, witness):
        with airflow.told(witness, "hold"):
            run, _ = started(airflow, mode, witness)
            if mode == "in_triggerer":
                # A trigger that has not begun has no `on_kill`.
                airflow.wait_for_words(mode, run, "count", f"trigger {mode}/{run}/count")
            airflow.api.clear(mode, run, ["count"])
            airflow.wait_for_step(mode, run, "count", 4, attempt=2)
            if mode == "in_triggerer":  # the first try's trigger asks for the end of its job late, and harms nothing
                words = "attempt 1 was stopped: the task was cleared", "belongs to a newer try by now: left alone"
                airflow.wait_for_words(mode, run, "count", *words)
        airflow.api.wait_for_run(mode, run, timeout=120)
        assert airflow.api.xcom(mode, run, "count") == {"first": 3, "attempt": 2}
        assert [one.state for one in airflow.attempts(mode, run, "count")] == ["cancelled", "succeeded"]
        assert starts(witness) == ["attempt 1 first 0", "attempt 2 first 3"]

    in_both_modes(check)


def test_clearing_a_failed_stage_continues_and_clearing_a_succeeded_one_starts_over(airflow, in_both_modes):
    def check(mode, witness):
        run = failed(airflow, mode, witness)
        cleared(airflow, mode, run)
        assert airflow.api.xcom(mode, run, "count") == {"first": 3, "attempt": 2}
        cleared(airflow, mode, run)
        assert airflow.api.xcom(mode, run, "count") == {"first": 0, "attempt": 3}
        assert [one.entry.record.generation for one in airflow.attempts(mode, run, "count")] == [1, 1, 2]
        assert starts(witness) == ["attempt 1 first 0", "attempt 2 first 3", "attempt 3 first 0"]

    in_both_modes(check)


def test_the_timeout_of_a_whole_run_stops_its_jobs_and_says_so(airflow, in_both_modes):
    def check(mode, witness):
        dag_id = f"{mode}_limited_run"
        with airflow.told(witness, "hold"):
            run, snapshot = started(airflow, dag_id, witness)
            airflow.api.wait_for_run(dag_id, run, state="failed", timeout=120)
            airflow.wait_until_gone(snapshot)
        (ended,) = airflow.attempts(dag_id, run, "count")
        assert ended.state == "cancelled"
        assert "timed out" in ended.entry.outcome.failure.message

    in_both_modes(check)


def test_the_execution_timeout_stops_the_job_and_the_error_says_so(airflow, in_both_modes):
    def check(mode, witness):
        dag_id = f"{mode}_limited"
        with airflow.told(witness, "hold"):
            run = airflow.start(dag_id, {"witness": str(witness)})
            airflow.api.wait_for_run(dag_id, run, state="failed", timeout=120)
            (attempt,) = airflow.attempts(dag_id, run, "count")
            airflow.wait_until_gone(attempt)
        words = {"in_worker": "Timeout", "in_triggerer": "execution_timeout"}[mode]
        assert words in airflow.api.log(dag_id, run, "count")
        assert airflow.attempts(dag_id, run, "count")[0].state == "cancelled"

    in_both_modes(check)


# Something changed before the retry ----------------------------------------------------------------------------------


def changed_and_cleared(airflow, in_both_modes, path, body, name, check):
    """Let a stage fail in both modes, create something in Airflow, clear both, check them, and delete it again."""
    runs = {}

    def fail(mode, witness):
        runs[mode] = failed(airflow, mode, witness)

    def clear(mode, _):
        cleared(airflow, mode, runs[mode])
        check(mode, runs[mode])

    in_both_modes(fail)
    airflow.api.request("POST", path, json=body)
    try:
        in_both_modes(clear)
    finally:
        airflow.api.request("DELETE", f"{path}/{name}")


def test_a_changed_argument_starts_from_scratch_and_the_log_says_which(airflow, in_both_modes):
    def check(mode, run):
        assert airflow.api.xcom(mode, run, "count") == {"first": 0, "attempt": 2}
        assert "because the work changed: argument rate changed" in airflow.api.log(mode, run, "count")

    rate = {"key": "plain_rate", "value": "0.5"}
    changed_and_cleared(airflow, in_both_modes, "/variables", rate, "plain_rate", check)


def test_another_launcher_continues_from_the_checkpoint(airflow, in_both_modes):
    def check(mode, run):
        assert airflow.api.xcom(mode, run, "count") == {"first": 3, "attempt": 2}
        launchers = [one.entry.record.launcher.rpartition("/")[2] for one in airflow.attempts(mode, run, "count")]
        assert launchers == ["runs", "other-runs"]

    name, extra = "rallypoint_default", f'{{"launcher": "local://{airflow.instance.home}/other-runs"}}'
    connection = {"connection_id": name, "conn_type": "rallypoint", "extra": extra}
    changed_and_cleared(airflow, in_both_modes, "/connections", connection, name, check)


def test_a_stage_whose_upstream_was_cleared_too_starts_from_scratch(airflow, in_both_modes):
    def check(mode, witness):
        dag_id = f"{mode}_chain"
        run = failed(airflow, dag_id, witness)
        before = airflow.api.xcom(dag_id, run, "make")
        cleared(airflow, dag_id, run, "make", include_downstream=True)
        result = airflow.api.xcom(dag_id, run, "read")
        assert (result["first"], result["attempt"]) == (0, 2)
        assert result["data"] == airflow.api.xcom(dag_id, run, "make") != before
        assert "argument data changed" in airflow.api.log(dag_id, run, "read")

    in_both_modes(check)


def test_each_map_index_is_a_stage_of_its_own(airflow, in_both_modes):
    def check(mode, _):
        dag_id = f"{mode}_mapped"
        run = airflow.start(dag_id)
        airflow.api.wait_for_run(dag_id, run, timeout=120)
        results = [airflow.api.xcom(dag_id, run, "square", map_index=index) for index in (0, 1)]
        stage = f"{dag_id}/{run}/square"
        assert results == [{"square": 4, "stage": f"{stage}/0"}, {"square": 9, "stage": f"{stage}/1"}]

    in_both_modes(check)
