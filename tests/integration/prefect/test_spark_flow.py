"""The flights pipeline on Spark as a Prefect flow, on a real server and a standalone cluster that its stages share."""

from __future__ import annotations

import importlib
from pathlib import Path

import psutil
import pytest
import spark_head
from prefect import flow

from rallypoint.frameworks.spark.cluster import SparkCluster
from rallypoint.prefect import service

FLOWS = Path(__file__).resolve().parents[3] / "flows"


@pytest.mark.e2e
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_flow_trains_both_models_on_a_cluster_that_ends_with_it(prefect, monkeypatch):
    monkeypatch.syspath_prepend(str(FLOWS))
    flights = importlib.import_module("flights_spark").flights_spark
    seen = {}

    @flow(name="flights-spark-on-a-cluster")
    def pipeline():
        with service(SparkCluster(workers=1, lease=3600, **spark_head.SMALL), name="cluster") as cluster:
            seen["daemons"] = daemons_of(cluster)
            made = flights(master=cluster, fraction=0.05, iterations=2, margin=0.3)
            seen["applications"] = spark_head.state_of(cluster)["completedapps"]
            return made

    made = pipeline()
    assert made["passed"] is True
    assert set(made["models"]) == {"gbt", "logistic"}
    assert made["rows"] > 2000
    # Features and both trainings ran there, one application each; then nothing of it is left.
    assert [each["state"] for each in seen["applications"]] == ["FINISHED"] * 3
    assert len(seen["daemons"]) >= 2
    _, left = psutil.wait_procs(seen["daemons"], timeout=60)
    assert left == []


def daemons_of(cluster):
    """Return the master and the worker of a cluster, by their command lines."""
    _, host, port = cluster["master"].replace("//", "").split(":")
    named = {f"spark://{host}:{port}", port}
    found = [(each, spark_head.command_line(each)) for each in psutil.process_iter()]
    return [
        each
        for each, words in found
        if named & set(words) and any(word.startswith("org.apache.spark.deploy.") for word in words)
    ]
