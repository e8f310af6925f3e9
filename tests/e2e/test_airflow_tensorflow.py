"""TensorFlow in a real Airflow: the examples, and a worker that is killed.

Every process imports TensorFlow, which takes 12 to 19 s: there are no more tests than these.
"""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest

from rallypoint.stages.history import tensorboard_prefix

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SOON = 300.0  # seconds that a job of two processes may take to start on a busy machine


def test_the_flights_are_trained_on_two_workers_and_shown_beside_torch_and_the_baseline(airflow):
    run = airflow.start("flights_tensorflow", {"fraction": 0.05, "epochs": 2, "batch_size": 256})
    airflow.api.wait_for_run("flights_tensorflow", run, timeout=700)
    trained = airflow.api.xcom("flights_tensorflow", run, "train_tensorflow")
    assert [epoch["epoch"] for epoch in trained["history"]] == [0, 1]
    assert trained["model"].startswith("file://")
    table = airflow.api.xcom("flights_tensorflow", run, "compare")
    assert table["passed"] is True
    assert table["tensorflow"] == trained["test"]
    log = airflow.api.log("flights_tensorflow", run, "compare")
    for name in ("tensorflow", "torch", "baseline"):
        assert 0.5 < table[name]["roc_auc"] < 1
        (line,) = [line for line in log.splitlines() if name in line and "log_loss" in line]
        assert f"roc_auc {table[name]['roc_auc']:.4f}" in line


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


@pytest.fixture
def tensorboard(airflow, tmp_path):
    """The address of a TensorBoard on the whole store, started as docs/tensorflow.md says."""
    store, port = airflow.instance.home / "rallypoint", str(airflow.tensorboard_port)
    command = Path(sys.executable).with_name("tensorboard")
    with (tmp_path / "tensorboard.log").open("w") as log:
        process = subprocess.Popen([command, "--logdir", store, "--port", port], stdout=log, stderr=subprocess.STDOUT)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


def test_fit_of_keras_draws_its_curves_and_the_link_opens_them_in_a_tensorboard(airflow, tensorboard):
    run = airflow.start("example_tensorflow_keras")
    airflow.api.wait_for_run("example_tensorflow_keras", run, timeout=SOON)
    assert airflow.api.xcom("example_tensorflow_keras", run, "fit")["loss"] < 0.01
    # The next task took the model as a module of TensorFlow Hub.
    assert airflow.api.xcom("example_tensorflow_keras", run, "reuse")["y"] == pytest.approx(7, abs=0.2)
    links = airflow.api.links("example_tensorflow_keras", run, "fit")
    page = httpx.get(airflow.instance.url + links["Rallypoint stage"], timeout=60).text
    curves = page.partition('id="tensorboard"')[2]
    assert "epoch_loss" in curves
    assert "<polyline" in curves
    opened = httpx.get(airflow.instance.url + links["TensorBoard"], timeout=60, follow_redirects=True)
    assert str(opened.url).startswith(f"{tensorboard}/?")
    assert "<title>TensorBoard</title>" in opened.text
    assert f'href="{html.escape(str(opened.url))}' in curves  # the page has the same link

    def shown() -> list[str] | None:
        """Return the runs that TensorBoard lists under the filter of the link, once it has read some."""
        runs = httpx.get(f"{tensorboard}/data/runs", timeout=60).json()
        return [name for name in runs if re.search(opened.url.params["runFilter"], name)] or None

    names = airflow.api.wait_until(shown, "the stage's runs in TensorBoard", timeout=SOON)
    of_stage = tensorboard_prefix(airflow.engine("example_tensorflow_keras", run, "fit").ledger, generation=1)
    assert all(name.startswith(f"{of_stage}/") for name in names)
    tags = httpx.get(f"{tensorboard}/data/plugin/scalars/tags", timeout=60).json()
    (name,) = (name for name in names if "epoch_loss" in tags.get(name, {}))
    asked = {"run": name, "tag": "epoch_loss"}
    points = httpx.get(f"{tensorboard}/data/plugin/scalars/scalars", params=asked, timeout=60).json()
    assert [step for _, step, _ in points] == list(range(20))


@pytest.fixture
def model_server(tmp_path):
    """A small model server, in place of `tensorflow_model_server`, and the base path of its model ``line``."""
    script = Path(__file__).resolve().parents[1] / "integration/tensorflow/tf_serving_server.py"
    base, ports = tmp_path / "line", tmp_path / "ports"
    base.mkdir()
    process = subprocess.Popen([sys.executable, script, ports, "--model", "line", base])
    yield ports, base
    process.terminate()
    process.wait(30)


def test_a_model_is_trained_and_deployed_to_a_model_server(airflow, model_server):
    ports, base = model_server
    airflow.api.wait_until(lambda: ports.exists() or None, "the model server", timeout=SOON)
    url = f"http://127.0.0.1:{ports.read_text().split()[0]}"
    run = airflow.start("example_tf_serving_operator", {"rest_url": url, "base_path": str(base)})
    airflow.api.wait_for_run("example_tf_serving_operator", run, timeout=SOON)
    deployed = airflow.api.xcom("example_tf_serving_operator", run, "deploy")
    assert (deployed["version"], deployed["path"]) == (1, f"{base}/1")
    body = json.dumps({"instances": [[3.0]]}).encode()
    with urllib.request.urlopen(f"{url}/v1/models/line:predict", body, 60) as answer:
        assert json.load(answer)["predictions"][0][0] == pytest.approx(6, abs=0.05)
