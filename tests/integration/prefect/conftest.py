"""One private Prefect server for all of these tests, and one process that serves the pipelines of `pipelines.py`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rallypoint.worker import context

HERE = Path(__file__).parent
DEADLINE = 120.0  # seconds that any condition may take on a busy machine


def wait_for(condition, what="it", *, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline:g} s: {what}"
        time.sleep(0.2)  # most conditions ask the server, which the processes of the flows need too
    return value


@pytest.fixture(scope="session")
def until():
    return wait_for


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("prefect") / "store"


@pytest.fixture(scope="package")
def instance(tmp_path_factory, store):
    from prefect_instance import PrefectInstance

    folders = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"RALLYPOINT_STORE": str(store), "PYTHONPATH": os.pathsep.join(folders), "TOKEN_OF_THE_HOST": "from-the-host"}
    instance = PrefectInstance(tmp_path_factory.mktemp("prefect") / "home", fast=True, env=env)
    with instance, instance.client() as client:
        instance.types_at_start = {each["slug"] for each in client.post("/block_types/filter", json={}).json()}
        yield instance


@pytest.fixture(scope="package")
def api(instance):
    """Calls the REST API as the UI does."""
    with Api(instance) as api:
        yield api


class Api:
    def __init__(self, instance):
        self.client = instance.client()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def post(self, path, /, **body):
        return self.send("POST", path, body).json()

    def send(self, method, path, body=None):
        """Send a request, again while SQLite is busy."""
        end = time.monotonic() + DEADLINE
        while (answer := self.client.request(method, path, json=body)).status_code == 503 and time.monotonic() < end:
            time.sleep(0.2)
        return answer.raise_for_status()

    def deployment(self, name):
        answer = self.client.get(f"/deployments/name/{name}")
        return answer.json()["id"] if answer.status_code == 200 else None

    def start(self, deployment, **parameters):
        return self.post(f"/deployments/{deployment}/create_flow_run", parameters=parameters)["id"]

    def state(self, flow_run):
        return self.client.get(f"/flow_runs/{flow_run}").raise_for_status().json()["state"]

    def set_state(self, flow_run, kind, name=None):
        state = {"type": kind, "name": name or kind.title()}
        return self.post(f"/flow_runs/{flow_run}/set_state", state=state, force=True)

    def retry(self, flow_run, witness):
        """Do what the button Retry does, and wait until the flow runs again.

        The runner reports the end of the last process a moment after it. A server that has been told to retry meanwhile
        takes the report for the retry's, and the run is *Crashed* before it began: then the button is pressed again.
        """
        before = len(witness.lines("flow"))
        wait_for(lambda: witness.flow_ended, "the flow's process has ended")
        self.set_state(flow_run, "SCHEDULED", "AwaitingRetry")

        def runs():
            if self.state(flow_run)["type"] in {"CRASHED", "FAILED"}:
                self.set_state(flow_run, "SCHEDULED", "AwaitingRetry")
            return len(witness.lines("flow")) > before

        wait_for(runs, "the flow runs again")

    def cancel(self, flow_run):
        """Do what the button Cancel does."""
        self.set_state(flow_run, "CANCELLING")

    def suspend(self, flow_run):
        """Do what the button Pause does."""
        state = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
        self.post(f"/flow_runs/{flow_run}/set_state", state=state, force=False)

    def resume(self, flow_run):
        """Do what the button Resume does."""
        answer = self.post(f"/flow_runs/{flow_run}/resume")
        assert answer["status"] == "ACCEPT", answer

    def run_count(self, flow_run):
        return self.client.get(f"/flow_runs/{flow_run}").raise_for_status().json()["run_count"]

    def ends(self, flow_run, kind, *, deadline=DEADLINE):
        """Wait until a flow run is in a state of a type, and return the state."""
        return wait_for(lambda: (state := self.state(flow_run))["type"] == kind and state, f"{kind}", deadline=deadline)

    def events(self, name, **filters):
        wanted = {"event": {"prefix": [name]}, **filters}
        return self.post("/events/filter", filter=wanted)["events"]

    def artifacts(self, flow_run):
        wanted = {"flow_run_id": {"any_": [str(flow_run)]}}
        found = self.post("/artifacts/filter", artifacts=wanted)
        # A retry makes new ones under the old keys.
        return {artifact["key"]: artifact for artifact in sorted(found, key=lambda each: each["created"])}

    def logs(self, flow_run):
        wanted = {"flow_run_id": {"any_": [str(flow_run)]}}
        return "\n".join(log["message"] for log in self.post("/logs/filter", logs=wanted))

    def task_runs(self, flow_run):
        return self.post("/task_runs/filter", flow_runs={"id": {"any_": [str(flow_run)]}})


@pytest.fixture(scope="package")
def served(instance, api):
    """Deployments that processes serve: the ids, by the flow's name."""
    names = ["pipeline", "async-pipeline", "pool-pipeline", "hooked-pipeline", "nested-pipeline", "service-pipeline"]
    instance.serve(HERE / "pipelines.py")
    if all(importlib.util.find_spec(package) for package in ("prefect_dask", "prefect_ray")):
        instance.serve(HERE / "runners.py", name="serve-runners")
        names += ["dask-pipeline", "ray-pipeline"]
    return {name: wait_for(lambda name=name: api.deployment(f"{name}/test"), f"{name} served") for name in names}


@pytest.fixture(scope="package")
def deploy(instance, api):
    """Deploys the pipeline to a new pool of processes, and returns the deployment's id."""

    def deploy(pool):
        api.post("/work_pools/", name=pool, type="process")
        flow = api.post("/flows/", name="pipeline")["id"]
        where = {"work_pool_name": pool, "entrypoint": "pipelines.py:pipeline", "path": str(HERE)}
        schema = {"type": "object", "properties": {"folder": {"type": "string"}, "how": {"type": "string"}}}
        pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(HERE)}}]
        made = {"name": pool, "flow_id": flow, "parameter_openapi_schema": schema, "pull_steps": pull, **where}
        return api.post("/deployments/", **made)["id"]

    return deploy


@pytest.fixture
def prefect(instance, store, monkeypatch):
    """Flows of this process talk to the server."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    monkeypatch.setenv("RALLYPOINT_STORE", str(store))
    monkeypatch.setenv("TOKEN_OF_THE_HOST", "from-the-host")
    home = {PREFECT_HOME: instance.home, PREFECT_LOCAL_STORAGE_PATH: instance.home / "storage"}
    with temporary_settings({PREFECT_API_URL: instance.api_url, **home}):
        yield instance


@pytest.fixture
def tasks(prefect, instance, monkeypatch):
    """The tasks of `pipelines.py`, imported as a user's module."""
    monkeypatch.syspath_prepend(str(HERE))
    import pipelines

    yield pipelines
    sys.modules.pop("pipelines", None)


class Witness:
    """A folder in which jobs write what they did, and read what they are to do."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.do("finish")

    def __str__(self):
        return str(self.folder)

    def do(self, what):
        draft = self.folder / "draft"
        draft.write_text(what)
        draft.replace(self.folder / "do")

    def lines(self, name):
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def starts(self):
        """The epochs from which trainings started, one line for each job that ever ran."""
        return [int(line.split()[0]) for line in self.lines("started")]

    @property
    def waits(self):
        return (self.folder / "waits").exists()

    @property
    def job(self):
        return int(self.lines("started")[-1].split()[1])

    @property
    def flow_process(self):
        return int(self.lines("flow")[-1])

    @property
    def job_lives(self):
        return _lives(self.job)

    @property
    def service_lives(self):
        return _lives(int((self.folder / "service").read_text()))

    @property
    def flow_ended(self):
        return not psutil.pid_exists(self.flow_process)

    def end_flow(self):
        """End the flow's process, if its worker had to be killed and has left it: as an init system does."""
        with suppress(ProcessLookupError):
            os.kill(self.flow_process, signal.SIGTERM)

    def clean(self):
        """End what a failed test has left: by its id, as the job itself wrote it."""
        self.do("finish")
        for line in self.lines("started"):
            with suppress(ProcessLookupError):
                if _is_job(int(line.split()[1])):
                    os.kill(int(line.split()[1]), signal.SIGKILL)


@pytest.fixture
def witness(tmp_path):
    witness = Witness(tmp_path / "witness")
    yield witness
    witness.clean()


@pytest.fixture(scope="session")
def witnesses(tmp_path_factory):
    """Makes witnesses for tests that share what they start."""
    made = []

    def make():
        made.append(Witness(tmp_path_factory.mktemp("prefect") / "witness"))
        return made[-1]

    yield make
    for witness in made:
        witness.clean()


def _lives(pid):
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _is_job(pid):
    with suppress(psutil.Error):
        return context.ATTEMPT_ID in psutil.Process(pid).environ()
    return False
