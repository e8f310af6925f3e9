"""TensorFlow in a real Airflow: the example's training next to its baseline, and a worker that is killed.

Every process imports TensorFlow, which takes 12 to 19 s: there are no more tests than these two.
"""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SOON = 300.0  # seconds that a job of two processes may take to start on a busy machine


def test_the_flights_are_trained_on_two_workers_and_held_against_the_baseline(airflow):
    run = airflow.start("flights_tensorflow", {"fraction": 0.05, "epochs": 2, "batch_size": 256})
    airflow.api.wait_for_run("flights_tensorflow", run, timeout=700)
    trained = airflow.api.xcom("flights_tensorflow", run, "train_tensorflow")
    assert [epoch["epoch"] for epoch in trained["history"]] == [0, 1]
    assert trained["model"].startswith("file://")
    table = airflow.api.xcom("flights_tensorflow", run, "compare")
    assert table["passed"] is True
    assert table["model"] == trained["test"]
    log = airflow.api.log("flights_tensorflow", run, "compare")
    for name, column in (("TensorFlow", "model"), ("baseline", "baseline")):
        (line,) = [line for line in log.splitlines() if name in line and "roc_auc" in line]
        assert f"roc_auc {table[column]['roc_auc']:.4f}" in line


def test_a_killed_worker_fails_the_try_and_the_next_one_continues_from_the_checkpoint(airflow, witness):
    run = airflow.start("multi_worker", {"witness": str(witness)})

    def held():
        found = airflow.attempts("multi_worker", run, "fit")
        return found[0] if found and (found[0].view.step or 0) >= 3 else None

    def explain():
        return airflow.api.describe("multi_worker", run)

    snapshot = airflow.api.wait_until(held, "three steps of multi_worker.fit", timeout=SOON, explain=explain)
    os.kill(snapshot.view.processes["worker-1"].pid, signal.SIGKILL)
    airflow.api.wait_for_run("multi_worker", run, timeout=SOON)
    result = airflow.api.xcom("multi_worker", run, "fit")
    assert result == {"first": 3, "total": 6.0, "replicas": 2.0, "attempt": 2}
    assert sorted(witness.read_text().splitlines()) == [
        "attempt 1 rank 0 first 0",
        "attempt 1 rank 1 first 0",
        "attempt 2 rank 0 first 3",
        "attempt 2 rank 1 first 3",
    ]
    log = airflow.api.log("multi_worker", run, "fit", 1)
    assert "worker-1 on" in log
    assert "SIGKILL" in log
    assert "continuing from its last checkpoint" in airflow.api.log("multi_worker", run, "fit", 2)
    assert not airflow.jobs_alive(snapshot.entry.record.id)
