"""Deploys to TensorFlow Serving as stages: a version serves and answers, or what was there before does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from rallypoint import TFServingDeploy
from rallypoint.frameworks.deploy.rest import UnreachableError
from rallypoint.frameworks.tensorflow.serving.deploy import Deployer, NotAvailableError
from rallypoint.frameworks.tensorflow.serving.model import as_saved_model, content_digest
from rallypoint.frameworks.tensorflow.serving.served_labels import LabelError, ServedLabels
from rallypoint.frameworks.tensorflow.serving.server import Server
from rallypoint.frameworks.tensorflow.serving.signature import check, read_signatures
from rallypoint.frameworks.tensorflow.serving.versions import Journal, open_versions
from rallypoint.launchers.local import LocalLauncher
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

DEADLINE = 240.0  # seconds
INTERVAL = timedelta(seconds=0.1)


def export(folder, factor):
    """Write a SavedModel that multiplies by a factor; each has other bytes."""
    import tensorflow as tf

    class Times(tf.Module):
        def __init__(self):
            super().__init__()
            self.factor = tf.Variable(float(factor))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x):
            return {"y": x * self.factor}

    module = Times()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """SavedModels by their factor."""
    folder = tmp_path_factory.mktemp("models")
    return {factor: export(folder / f"times-{factor}", factor) for factor in (2, 3, 5)}


class Cluster:
    """The small model server, one store, and stages with keys of their own."""

    def __init__(self, folder, env):
        self.folder = folder
        self.config = folder / "config/models.config"
        self.config.parent.mkdir()
        self.config.write_text("model_config_list {\n}\n")
        self.hold = folder / "hold"
        self.store = Store.open(folder / "store")
        self.launcher = LocalLauncher(folder / "runs")
        self._numbers = count(1)
        port_file = folder / "port"
        script = Path(__file__).with_name("tf_serving_server.py")
        argv = [sys.executable, script, port_file, "--config", self.config, "--hold", self.hold]
        self.process = subprocess.Popen(argv, env={**os.environ, "TMPDIR": str(folder), **env})
        deadline = time.monotonic() + DEADLINE
        while not port_file.exists():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rest, grpc = port_file.read_text().split()
        self.url, self.grpc = f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}"

    def end(self):
        self.process.terminate()
        self.process.wait(30)

    def serve(self, name, policy="", base=None):
        """Have the server serve a further model."""
        if base is None:
            base = self.folder / name
            base.mkdir()
        block = f"  config {{\n    name: '{name}'\n    base_path: '{base}'\n    {policy}\n  }}\n"
        draft = self.config.with_suffix(".new")
        draft.write_text(self.config.read_text().rstrip().removesuffix("}") + block + "}\n")
        draft.rename(self.config)
        return Served(self, name, base)


class Served:
    def __init__(self, cluster, name, base):
        self.cluster, self.name, self.base = cluster, name, base

    def job(self, model, **more):
        settings = {"timeout": DEADLINE, "rollback_timeout": DEADLINE, "poll_interval": 0.1}
        place = {"model": model, "name": self.name, "base_path": str(self.base), "rest_url": self.cluster.url}
        return TFServingDeploy(**{**place, **settings, **more})

    def engine(self):
        key = StageKey(("serving", "r1", f"{self.name}-{next(self.cluster._numbers)}"))
        return Engine(self.cluster.store, key, self.cluster.launcher)

    async def run(self, job, engine=None, owner="try-1"):
        engine = engine or self.engine()
        started = await engine.start(job, Request(owner=owner))
        return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]

    async def result(self, job, engine=None, owner="try-1"):
        outcome = (await self.run(job, engine, owner)).outcome
        assert outcome.state is State.SUCCEEDED, outcome.failure.render()
        return outcome.result

    async def failure(self, job, engine=None):
        outcome = (await self.run(job, engine)).outcome
        assert outcome.state is State.FAILED, outcome
        return outcome.failure

    def deploy(self, model, *, owner="a stage generation 1", **more):
        """Deploy in this process, which has TensorFlow already."""
        settings = self.job(model, **more).settings()
        server = Server(settings["rest_url"], self.name)
        labels = None
        if settings["config_file"]:
            labels = ServedLabels(
                settings["config_file"], server, settings["labels"], owner=owner, pause=0.1, say=print
            )
        deployer = Deployer(
            settings=settings,
            server=server,
            versions=open_versions(settings["base_path"]),
            journal=Journal(settings["base_path"]),
            labels=labels,
            owner=owner,
            say=print,
        )
        return deployer.run(model, content_digest(model))

    def ask(self, at=""):
        body = json.dumps({"instances": [1.0, 2.0]}).encode()
        with urllib.request.urlopen(f"{self.cluster.url}/v1/models/{self.name}{at}:predict", body, 60) as answer:
            return json.load(answer)["predictions"]

    def ask_by_grpc(self, **which):
        """Return the version that answers, and its answer; the request and the answer are TensorFlow Serving's own."""
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis.predict_pb2 import PredictRequest
        from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

        request = PredictRequest(model_spec={"name": self.name, **which})
        request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0], tf.float32))
        with grpc.insecure_channel(self.cluster.grpc) as channel:
            answer = PredictionServiceStub(channel).Predict(request, timeout=60)
        return answer.model_spec.version.value, tf.make_ndarray(answer.outputs["y"]).tolist()

    def states_by_grpc(self):
        import grpc
        from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
        from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub

        with grpc.insecure_channel(self.cluster.grpc) as channel:
            request = GetModelStatusRequest(model_spec={"name": self.name})
            answer = ModelServiceStub(channel).GetModelStatus(request, timeout=60)
        return {each.version: ModelVersionStatus.State.Name(each.state) for each in answer.model_version_status}

    def numbers(self):
        return sorted(int(each.name) for each in self.base.iterdir() if each.name.isdigit())

    def states(self):
        return {entry.number: entry.state for entry in Journal(str(self.base)).entries()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, s3_endpoint):
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret-key"}
    env = {**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": s3_endpoint}
    cluster = Cluster(tmp_path_factory.mktemp("serving"), env)
    yield cluster
    cluster.end()


@pytest.fixture
def served(cluster, request):
    return cluster.serve(request.node.name.removeprefix("test_")[:40].strip("_"))


@pytest.fixture
def held(cluster):
    """The server looks at nothing while this file is there."""
    cluster.hold.touch()
    yield cluster.hold
    cluster.hold.unlink(missing_ok=True)


PROBE = {"body": {"instances": [1.0, 2.0]}}
SIGNATURE = {"inputs": {"x": ("float32", [None])}, "outputs": {"y": "float32"}}


# As stages -----------------------------------------------------------------------------------------------------------


async def test_a_version_is_deployed_probed_and_labelled_and_the_next_one_takes_over(cluster, served, models):
    more = {"labels": ["stable"], "config_file": str(cluster.config), "signature": SIGNATURE}
    probe = {**PROBE, "expect": {"predictions": [2.0, 4.0]}}
    first = await served.result(served.job(models[2], probe=probe, **more))
    assert first == {
        "name": served.name,
        "version": 1,
        "path": f"{served.base}/1",
        "url": f"{cluster.url}/v1/models/{served.name}",
        "labels": {"stable": 1},
        "pruned": [],
    }
    assert served.ask("/labels/stable") == [2.0, 4.0]
    second = served.deploy(models[3], probe={**probe, "expect": {"predictions": [3.0, 6.0]}, "tolerance": 0}, **more)
    assert (second["version"], second["labels"]) == (2, {"stable": 2})
    assert (served.ask(), served.ask("/labels/stable")) == ([3.0, 6.0], [3.0, 6.0])
    assert served.ask_by_grpc() == served.ask_by_grpc(version_label="stable") == (2, [3.0, 6.0])
    assert served.states_by_grpc() == {2: "AVAILABLE", 1: "END"}


async def test_a_base_path_in_a_bucket_is_served_from_there(cluster, models, s3_store_uri, monkeypatch):
    uri, options = s3_store_uri
    store, base = Store.open(uri, options=options), f"{uri}/models/line"
    served = cluster.serve("in_a_bucket", base=base)
    engine = Engine(store, StageKey(("serving", "r1", "in-a-bucket")), cluster.launcher)
    probe = {**PROBE, "expect": {"predictions": [2.0, 4.0]}}
    first = await served.result(served.job(models[2], probe=probe), engine)
    assert (first["version"], first["path"], served.ask()) == (1, f"{base}/1", [2.0, 4.0])
    for name, value in store.job_env().items():
        monkeypatch.setenv(name, value)
    second = served.deploy(models[3], keep_versions=1)
    assert (second["version"], second["pruned"], served.ask()) == (2, [1], [3.0, 6.0])
    with pytest.raises(AssertionError, match="version 3 was taken away; version 2 is available"):
        served.deploy(models[5], probe=probe)
    assert (open_versions(base).numbers(), served.states()) == ([2], {1: "pruned", 2: "serving", 3: "failed"})
    assert served.ask() == [3.0, 6.0]


async def test_a_model_with_another_signature_is_refused_before_anything_is_copied(served, models):
    failure = await served.failure(served.job(models[2], signature={"inputs": {"x": ("float32", [None, 7])}}))
    assert failure.kind is Kind.USER
    assert "input 'x' is float32[?], expected float32[?, 7]" in failure.headline
    assert list(served.base.iterdir()) == []


async def test_a_version_that_answers_something_else_is_taken_back_and_the_old_answers_are_there(served, models):
    served.deploy(models[2])
    failure = await served.failure(served.job(models[3], probe={**PROBE, "expect": {"predictions": [5.0, 10.0]}}))
    assert failure.kind is Kind.USER
    assert "the answer['predictions'][0] is 3.0, expected 5.0" in failure.headline
    assert "version 2 was taken away; version 1 is available" in failure.render()
    assert (served.numbers(), served.ask()) == ([1], [2.0, 4.0])
    assert served.states() == {1: "serving", 2: "failed"}
    assert served.deploy(models[5])["version"] == 3  # the number is not given again


async def test_a_deploy_that_is_killed_in_the_middle_is_gone_on_with_by_its_retry(served, models, held, until):
    engine = served.engine()
    started = await engine.start(served.job(models[2]), Request(owner="try-1"))
    await until(lambda: served.numbers() == [1], deadline=DEADLINE)
    (driver,) = (await engine.inspect(started.attempt.record.number)).view.processes.values()
    os.kill(driver.pid, signal.SIGKILL)
    outcome = [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1].outcome
    assert outcome.state is State.FAILED
    assert outcome.failure.kind is Kind.RETRYABLE
    held.unlink()
    assert (await served.result(served.job(models[2]), engine, "try-2"))["version"] == 1
    assert (served.numbers(), served.states()) == ([1], {1: "serving"})


async def test_a_deploy_that_is_cancelled_leaves_what_was_there(served, models, cluster, until):
    served.deploy(models[2])
    cluster.hold.touch()
    try:
        engine = served.engine()
        started = await engine.start(served.job(models[3]), Request(owner="try-1"))
        await until(lambda: served.numbers() == [1, 2], deadline=DEADLINE)
        assert await engine.cancel(started.attempt.record.number, owner="try-1", why="cleared")
    finally:
        cluster.hold.unlink()
    assert served.numbers() == [1]
    assert served.states() == {1: "serving", 2: "failed"}
    assert served.ask() == [2.0, 4.0]


@pytest.fixture
def prefect(cluster, tmp_path, monkeypatch):
    """Flows of this process talk to a server of their own, and their jobs run where the others do."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
    from prefect_instance import PrefectInstance

    monkeypatch.setenv("RALLYPOINT_STORE", cluster.store.uri)
    monkeypatch.setenv("RALLYPOINT_LAUNCHER", cluster.launcher.uri)
    with (
        PrefectInstance(tmp_path / "prefect", fast=True) as instance,
        temporary_settings({PREFECT_API_URL: instance.api_url, PREFECT_HOME: instance.home}),
    ):
        yield instance


def test_a_flow_deploys_and_its_retry_returns_the_version_without_another_deploy(prefect, served, models):
    from prefect import flow

    from rallypoint.prefect import run_stage

    seen = []

    @flow(retries=1, retry_delay_seconds=0)
    def publishing():
        job = served.job(models[2], probe={**PROBE, "expect": {"predictions": [2.0, 4.0]}})
        seen.append(run_stage(job, name=f"deploy-{served.name}", retries=1))
        if len(seen) == 1:
            raise RuntimeError("what comes after the deploy fails once")
        return seen[-1]

    assert publishing() == seen[0]
    assert (seen[0]["version"], served.numbers(), served.states()) == (1, [1], {1: "serving"})
    assert served.ask() == [2.0, 4.0]
    (journal,) = Journal(str(served.base)).entries()
    assert journal.owner.endswith(f"/publishing/deploy-{served.name} generation 1")


# The steps, in this process ------------------------------------------------------------------------------------------


async def test_old_versions_are_pruned_and_what_a_label_names_is_kept(cluster, models):
    served = cluster.serve("pruned", "model_version_policy { all { } }")
    config = {"config_file": str(cluster.config)}
    served.deploy(models[2], labels=["stable"], **config)
    served.deploy(models[3], keep_versions=None, **config)
    served.deploy(models[5], keep_versions=None, **config)
    last = served.deploy(export(served.base.parent / "times-7", 7), keep_versions=2, **config)
    assert last["pruned"] == [2]
    assert served.numbers() == [1, 3, 4]
    assert last["labels"] == {"stable": 1}
    assert served.ask("/labels/stable") == [2.0, 4.0]


async def test_a_label_whose_version_the_server_gave_up_is_told(cluster, served, models, capsys):
    more = {"config_file": str(cluster.config)}
    served.deploy(models[2], labels=["stable"], **more)
    served.deploy(models[3], **more)  # the server serves the latest version alone
    assert "the label 'stable' names version 1, which the server does not serve" in capsys.readouterr().out
    served.deploy(models[5], labels=["stable"], **more)
    assert served.ask("/labels/stable") == [5.0, 10.0]


async def test_a_model_that_the_server_cannot_load_is_taken_back_with_what_the_server_said(served, models, tmp_path):
    import shutil

    served.deploy(models[2])
    broken = tmp_path / "broken"
    shutil.copytree(models[3], broken)
    for file in (broken / "variables").iterdir():
        file.unlink()
    with pytest.raises(
        NotAvailableError, match=r"could not load version 2: .*; version 2 was taken away; version 1 is"
    ):
        served.deploy(str(broken))
    assert served.ask() == [2.0, 4.0]


async def test_a_failure_of_the_first_version_leaves_none(served, models):
    with pytest.raises(AssertionError, match="version 1 was taken away; there was none before"):
        served.deploy(models[2], probe={**PROBE, "expect": {"predictions": []}})
    assert served.numbers() == []


async def test_a_label_that_the_server_refuses_goes_back(cluster, served, models):
    served.deploy(models[2], config_file=str(cluster.config), labels=["stable"])
    server = Server(cluster.url, served.name)
    labels = ServedLabels(str(cluster.config), server, ["stable"], owner="x", pause=0.1, say=print)
    with pytest.raises(LabelError, match="--model_config_file_poll_wait_seconds"):
        labels.set(99, within=0.5)  # of a version that is not available
    labels.restore()
    assert labels.current() == {"stable": 1}
    assert served.ask("/labels/stable") == [2.0, 4.0]


async def test_what_is_served_already_is_not_put_again(served, models):
    first = served.deploy(models[2])
    assert served.deploy(models[2], owner="another stage generation 1")["version"] == first["version"] == 1
    assert served.numbers() == [1]


async def test_a_copy_that_was_killed_half_way_is_made_again_under_its_number(served, models):
    journal = Journal(str(served.base))
    journal.claim(owner="a stage generation 1", digest=content_digest(models[2]), model=models[2], taken=0)
    draft = served.base / ".rallypoint/put-1"
    draft.mkdir()
    (draft / "half").write_text("")
    assert served.deploy(models[2])["version"] == 1
    assert served.ask() == [2.0, 4.0]
    assert not draft.exists()
    assert not (served.base / "1/half").exists()


async def test_a_retry_after_others_have_deployed_takes_a_new_number(served, models):
    journal = Journal(str(served.base))
    journal.claim(owner="a stage generation 1", digest=content_digest(models[2]), model=models[2], taken=0)
    assert served.deploy(models[3], owner="another stage generation 1")["version"] == 2
    assert served.deploy(models[2])["version"] == 3
    assert served.ask() == [2.0, 4.0]


async def test_nothing_is_put_where_no_server_answers(served, models):
    with pytest.raises(UnreachableError, match="nothing answered"):
        served.deploy(models[2], rest_url="http://127.0.0.1:9")
    assert served.numbers() == []


async def test_a_keras_model_is_exported_and_answers(served, tmp_path, monkeypatch):
    import keras
    import numpy as np

    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    model = keras.Sequential([keras.layers.Input([2], name="x"), keras.layers.Dense(1, kernel_initializer="ones")])
    model.save(tmp_path / "model.keras")
    folder = as_saved_model(str(tmp_path / "model.keras"), str(tmp_path), print)
    signatures = read_signatures(folder)
    (name,) = signatures["serving_default"]["inputs"]
    check(
        signatures,
        {"name": "serving_default", "inputs": {name: {"dtype": "float32", "shape": [None, 2]}}, "outputs": {}},
    )
    served.deploy(folder, probe={"body": {"instances": [[1.0, 2.0]]}, "expect": {"predictions": [[3.0]]}})
    assert np.isclose(model.predict(np.array([[1.0, 2.0]]), verbose=0), 3.0)


async def test_nobody_waits_for_a_server_for_ever(served, models, held):
    began = time.monotonic()
    with pytest.raises(NotAvailableError, match=r"not available within 1 s .*\(.*unknown"):
        await asyncio.to_thread(served.deploy, models[2], timeout=1, rollback_timeout=1)
    assert time.monotonic() - began < 60
    assert served.numbers() == []
