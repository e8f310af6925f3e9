"""`prefect.yaml`: it says what the code says, and Prefect's own command makes deployments of it that events start."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import urllib.request
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DEPLOYMENTS = ("flights/on-new-data", "flights-on-new-model/on-new-model", "rallypoint-reaper/reaper")


@pytest.fixture(scope="module")
def specs():
    """The deployments of the file, by their names."""
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("prefect")
    from prefect.cli.deploy._models import PrefectYamlModel

    loaded = PrefectYamlModel.model_validate(yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8")))
    return {each.name: each for each in loaded.deployments}


def trigger_of(spec):
    from prefect.events import DeploymentEventTrigger

    (only,) = spec.triggers
    return DeploymentEventTrigger.model_validate(only)


def meaning(trigger):
    """What a trigger does, whatever it is called."""
    return {
        "expect": trigger.expect,
        "match": trigger.match.model_dump(),
        "parameters": trigger.parameters,
        "posture": trigger.posture,
        "threshold": trigger.threshold,
    }


def test_new_data_start_the_same_deployment_as_the_served_flow(specs):
    served = runpy.run_path(str(ROOT / "flows" / "flights.py"))
    spec = specs["on-new-data"]
    assert meaning(trigger_of(spec)) == meaning(served["NEW_DATA"])
    assert spec.concurrency_limit.limit == 1
    assert spec.concurrency_limit.collision_strategy == "ENQUEUE"


def test_a_new_model_starts_the_flow_that_serves_it(specs):
    served = runpy.run_path(str(ROOT / "flows" / "flights.py"))
    trigger = trigger_of(specs["on-new-model"])
    assert trigger.expect == {"prefect.asset.materialization.succeeded"}
    assert trigger.match.model_dump() == {"prefect.resource.id": served["MODEL"]}


def test_the_reaper_is_triggered_as_the_ready_made_one(specs):
    from rallypoint.prefect import reaper_deployment

    (ready_made,) = reaper_deployment().triggers
    assert meaning(trigger_of(specs["reaper"])) == meaning(ready_made)


def test_every_deployment_runs_a_flow_whose_parameters_its_trigger_gives(specs, monkeypatch):
    from prefect.flows import load_flow_from_entrypoint

    monkeypatch.chdir(ROOT)
    for spec in specs.values():
        defaults = set(spec.parameters or {})
        flow = load_flow_from_entrypoint(spec.entrypoint, use_placeholder_flow=False)
        assert flow.name in {name.split("/")[0] for name in DEPLOYMENTS}
        given = set(trigger_of(spec).parameters)
        assert set(flow.parameters.required) <= given <= set(flow.parameters.properties)
        assert defaults <= set(flow.parameters.properties) - given


@pytest.fixture
def deployed(instance, api):
    """The deployments that `prefect deploy --all` made: the ids, by their names."""
    api.post("/work_pools/", name="rallypoint", type="process")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    made = subprocess.run(command, cwd=ROOT, env=instance.env, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    found = {name: api.deployment(name) for name in DEPLOYMENTS}
    yield found
    for deployment in filter(None, found.values()):  # and with them their triggers: other tests cancel runs
        api.client.delete(f"/deployments/{deployment}")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models with random weights, and a flight to ask them about."""
    torch = pytest.importorskip("torch")
    from rallypoint.examples.flights import encoding, features, model, preprocessing, serving

    frame = preprocessing.flights_frame(range(11, 12), 0.02).compute(scheduler="sync")
    encoder = encoding.Encoder.fit(frame, least=3)
    config = model.ModelConfig(tuple(encoder.cardinalities), len(features.NUMERIC))
    uris = []
    for seed in range(2):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("model")
        model.save_model(str(folder), model.build_model(config).state_dict(), config, encoder)
        uris.append(folder.as_uri())
    expected = [float(model.SavedModel.load(uri).predict(frame.head(1))[0]) for uri in uris]
    assert abs(expected[0] - expected[1]) > 1e-4
    return uris, serving.as_flights(frame.head(1))[0], expected


@pytest.fixture
def ray_head():
    """The Ray cluster on which the model is served."""
    from ray_head import RayHead

    with RayHead(num_cpus=2) as cluster:
        yield cluster


class Starts:
    """Sends events until a run of a deployment has started: the server's triggers learn of a new one a moment later."""

    def __init__(self, api, deployed, until):
        self._api, self._deployed, self._until = api, deployed, until

    def runs(self, name):
        wanted = {"id": {"any_": [self._deployed[name]]}}
        return self._api.post("/flow_runs/filter", deployments=wanted, sort="EXPECTED_START_TIME_ASC")

    def __call__(self, name, emit):
        before = {run["id"] for run in self.runs(name)}

        def new():
            return [run for run in self.runs(name) if run["id"] not in before]

        for _ in range(10):
            emit()
            with suppress(AssertionError):
                return self._until(new, f"a run of {name}", deadline=8)[0]
        return pytest.fail(f"no event has started {name}")


def emit(api, event, resource, payload):
    body = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": resource},
        "payload": payload,
    }
    api.send("POST", "/events", [body])


def model_is_made(api, uri, auc):
    """Say what a stage's success says: see rallypoint/prefect/assets.py."""
    payload = {"uri": uri, "metrics": {"val_auc": auc}}
    emit(api, "prefect.asset.materialization.succeeded", "rallypoint://flights/model", payload)


@pytest.mark.e2e
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_events_start_what_the_command_line_has_deployed(
    instance, api, deployed, until, models, ray_head, tasks, witness
):
    from prefect import flow

    from rallypoint.worker.ports import free_ports

    assert all(deployed.values())
    limited = api.client.get(f"/deployments/{deployed['flights/on-new-data']}").json()
    assert limited["global_concurrency_limit"]["limit"] == 1
    assert limited["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    starts, redeploys = Starts(api, deployed, until), "flights-on-new-model/on-new-model"

    # Data have arrived: the pipeline. It is not run here, so it is asked for before there is a worker.
    starts("flights/on-new-data", lambda: emit(api, "flights.data.arrived", "flights.data", {"fraction": 0.5}))
    for run in starts.runs("flights/on-new-data"):
        defaults = {"epochs": 6, "processes": 2, "trials": 12, "serve_port": 8000}
        assert run["parameters"] == {"fraction": 0.5, **defaults}
    api.send("DELETE", f"/deployments/{deployed['flights/on-new-data']}")

    uris, flight, expected = models
    where = {"dashboard_url": ray_head.dashboard_url, "serve_port": free_ports(1)[0]}
    api.send("PATCH", f"/deployments/{deployed[redeploys]}", {"parameters": where})

    def started(uri):
        return [run for run in starts.runs(redeploys) if run["parameters"]["uri"] == uri]

    starts(redeploys, lambda: model_is_made(api, "file:///bad", 0.5))
    (*_, refused) = started("file:///bad")
    instance.worker("rallypoint", name="worker-of-prefect-yaml")
    try:
        # A new model: it answers instead of the one before, unless it is bad.
        api.ends(refused["id"], "COMPLETED")
        said = "file:///bad is not served: its AUC is 0.5000, expected 0.65 or more"
        until(lambda: said in api.logs(refused["id"]), "the run's log says so")
        for uri, probability in zip(uris, expected, strict=True):
            model_is_made(api, uri, 0.75)
            (redeployed,) = until(lambda uri=uri: started(uri), f"a run for {uri}")
            assert redeployed["parameters"] == {"uri": uri, "metrics": {"val_auc": 0.75}, **where}
            api.ends(redeployed["id"], "COMPLETED", deadline=240)
            assert ask(f"http://127.0.0.1:{where['serve_port']}/", flight) == pytest.approx(probability, abs=1e-6)

        # One that a stage makes whose flow is retried afterwards: what waits for it starts once.
        made = tasks.prepare.with_options(assets=["rallypoint://flights/model"])
        tried = []

        @flow(retries=1)
        def trains(folder: str) -> None:
            tried.append(made(folder))
            if len(tried) == 1:
                msg = "a later stage has failed"
                raise OSError(msg)

        trains(str(witness))
        assert (len(tried), witness.lines("prepared")) == (2, ["prepared"])
        model_is_made(api, "file:///later", 0.5)
        for uri in ("", "file:///later"):  # the stage has no artifacts; no other event comes after the later one
            until(lambda uri=uri: started(uri), f"the event of the model {uri!r} has started a run")
        assert len(started("")) == 1

        reaped = starts("rallypoint-reaper/reaper", lambda: api.set_state(refused["id"], "CANCELLED"))
        assert reaped["parameters"]["flow_run_id"] == f"prefect.flow-run.{refused['id']}"
        api.ends(reaped["id"], "COMPLETED")
    finally:
        instance.end("worker-of-prefect-yaml")


def ask(url, flight):
    request = urllib.request.Request(url, json.dumps(flight).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["probability"]
