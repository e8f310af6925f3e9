"""`prefect.yaml`: it says what the code says, and Prefect's own command makes deployments of it that events start."""

from __future__ import annotations

import runpy
import subprocess
import sys
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


def test_a_new_model_starts_the_flow_that_announces_it(specs):
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
        flow = load_flow_from_entrypoint(spec.entrypoint, use_placeholder_flow=False)
        assert flow.name in {name.split("/")[0] for name in DEPLOYMENTS}
        given = set(trigger_of(spec).parameters)
        assert set(flow.parameters.required) <= given <= set(flow.parameters.properties)


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


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_events_start_what_the_command_line_has_deployed(instance, api, deployed, until):
    assert all(deployed.values())
    limited = api.client.get(f"/deployments/{deployed['flights/on-new-data']}").json()
    assert limited["global_concurrency_limit"]["limit"] == 1
    assert limited["concurrency_options"]["collision_strategy"] == "ENQUEUE"

    def runs(name):
        return api.post("/flow_runs/filter", deployments={"id": {"any_": [deployed[name]]}})

    def starts(name, emit):
        for _ in range(10):  # the server's triggers learn of a new one a moment later
            emit()
            with suppress(AssertionError):
                return until(lambda: runs(name), f"a run of {name}", deadline=8)[-1]
        pytest.fail(f"no event has started {name}")

    def model_is_made():
        # As a stage's success says it: see rallypoint/prefect/assets.py.
        event = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "prefect.asset.materialization.succeeded",
            "resource": {"prefect.resource.id": "rallypoint://flights/model"},
            "payload": {"uri": "file:///models/7", "metrics": {"auc": 0.75}},
        }
        api.client.post("/events", json=[event]).raise_for_status()

    instance.worker("rallypoint", name="worker-of-prefect-yaml")
    try:
        announced = starts("flights-on-new-model/on-new-model", model_is_made)
        assert announced["parameters"] == {"uri": "file:///models/7", "metrics": {"auc": 0.75}}
        api.ends(announced["id"], "COMPLETED")
        said = "a new model: file:///models/7 with {'auc': 0.75}"
        until(lambda: said in api.logs(announced["id"]), "the run's log says so")

        reaped = starts("rallypoint-reaper/reaper", lambda: api.set_state(announced["id"], "CANCELLED"))
        assert reaped["parameters"]["flow_run_id"] == f"prefect.flow-run.{announced['id']}"
        api.ends(reaped["id"], "COMPLETED")
    finally:
        instance.end("worker-of-prefect-yaml")
