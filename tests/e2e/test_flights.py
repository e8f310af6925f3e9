"""The example pipeline, end to end: data, training and evaluation in a real Airflow."""

from __future__ import annotations

import os
import signal

import pytest

from rallypoint.worker.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_the_pipeline_trains_tunes_and_serves_and_its_model_triggers_another_dag(airflow):
    airflow.api.wait_until_parsed("flights_on_new_model")
    airflow.api.unpause("flights_on_new_model")
    conf = {"fraction": 0.3, "epochs": 3, "processes": 3, "trials": 4, "serve_port": free_ports(1)[0]}
    with airflow.alone("flights", conf) as run:
        airflow.api.wait_for_run("flights", run, timeout=700)
    verdict = airflow.api.xcom("flights", run, "evaluate")
    assert verdict["passed"] is True
    model = airflow.api.xcom("flights", run, "train")
    assert model["epochs"] == 3
    assert [rank.world_size for rank in airflow.attempts("flights", run, "train")[0].view.last_round] == [3, 3, 3]
    rows = airflow.api.xcom("flights", run, "preprocess")["rows"]
    assert 0.25 < sum(rows.values()) / 327_346 < 0.35  # of all flights that landed where they were to
    assert airflow.api.xcom("flights", run, "tune")["trials"]["total"] == 4
    served = airflow.api.xcom("flights", run, "smoke")
    assert served["rows"] == 100
    assert served["max_difference"] <= 1e-6
    triggered = airflow.api.wait_until(
        lambda: next(iter(airflow.api.dag_runs("flights_on_new_model")), None),
        "the run that the model triggers",
        timeout=60,
    )
    airflow.api.wait_for_run("flights_on_new_model", triggered.run_id, timeout=60)
    seen = airflow.api.xcom("flights_on_new_model", triggered.run_id, "announce")
    assert seen["uri"] == model["model"]
    assert "val_auc" in seen["metrics"]


def test_clearing_a_training_whose_rank_was_killed_continues_it(airflow):
    run = airflow.start("small_flights")
    snapshot = airflow.wait_for_step("small_flights", run, "train", 2)
    (rank,) = [process for process in snapshot.view.last_round if process.rank == 1]
    os.kill(rank.pid, signal.SIGKILL)
    airflow.api.wait_for_run("small_flights", run, state="failed", timeout=120)
    log = airflow.api.log("small_flights", run, "train")
    assert "rank 1 on" in log
    assert "SIGKILL" in log
    airflow.api.clear("small_flights", run, ["train"])
    airflow.api.wait_for_run("small_flights", run, timeout=240)
    assert airflow.api.xcom("small_flights", run, "train")["first_epoch"] >= 2
    log = airflow.api.log("small_flights", run, "train")
    assert "continuing from its last checkpoint" in log
    assert "epoch 1/40 " not in log


@pytest.mark.parametrize(
    ("dag_id", "task_id", "expected"),
    [
        ("example_torch_operator", "train", {"loss"}),
        ("example_torch_decorator", "sum_of_ranks", {"total", "world_size"}),
        ("example_dask_operator", "count", {"digits"}),
        ("example_dask_decorator", "squares", {"table"}),
        ("example_dask_cluster", "count_more", {"total", "workers"}),
        ("example_ray_job_operator", "estimate_pi", {"pi"}),
        ("example_ray_cluster", "count_more", {"cpus", "nodes"}),
        ("example_ray_train_decorator", "fit", {"loss", "workers"}),
        ("example_ray_tune_decorator", "descend", {"config", "table", "picture"}),
        ("example_tensorflow_operator", "count", {"total"}),
        ("example_spark_operator", "count_words", {"counts", "table"}),
        ("example_spark_decorator", "primes", {"primes"}),
        ("example_spark_cluster", "count_more", {"master", "rows"}),
    ],
)
def test_every_example_of_the_documentation_runs(airflow, dag_id, task_id, expected):
    run = airflow.start(dag_id)
    airflow.api.wait_for_run(dag_id, run, timeout=200)
    assert expected <= airflow.api.xcom(dag_id, run, task_id).keys()
