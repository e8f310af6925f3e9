"""Deploys to Ray Serve as stages: others stay untouched, a failure restores what was there, a retry goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from rallypoint import RayServe, RayServeRollback, RayServeUndeploy, ServeProbe
from rallypoint.frameworks.deploy.rest import UnreachableError
from rallypoint.frameworks.ray.serve.client import Dashboard
from rallypoint.frameworks.ray.serve.cluster import Target
from rallypoint.launchers.local import LocalLauncher
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.failure_table import classify
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store
from rallypoint.worker import process

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

INTERVAL = timedelta(seconds=0.1)
DEADLINE = 240.0  # seconds
APPLICATIONS = "/api/serve/applications/"

# One builder whose arguments say how it behaves.
APPS = """
    import os
    from ray import serve


    class Greeter:
        def __init__(self, text, how):
            print(f"the replica of {text!r} begins", flush=True)
            if how == "breaks":
                raise ValueError(f"there is no model {text!r}")
            if how == "slow":
                import time
                time.sleep(3600)
            self.text = text

        async def __call__(self, request):
            return {"text": self.text, "pid": os.getpid(), "token": os.environ.get("MODEL_TOKEN", "")}


    def app(args):
        if args.get("how") == "does not import":
            import no_such_module
        options = {"ray_actor_options": {"num_cpus": 0}, "max_constructor_retry_count": 1}
        deployment = serve.deployment(name="Greeter", graceful_shutdown_timeout_s=1, **options)(Greeter)
        return deployment.bind(args["text"], args.get("how", ""))
"""


class Cluster:
    """Serve on the session's head, one store, and stages with keys of their own."""

    def __init__(self, head, folder):
        self.head = head
        self.store = Store.open(folder / "store")
        self.launcher = LocalLauncher(folder / "runs")
        self.code = folder / "code"
        self.code.mkdir()
        (self.code / "greeting_apps.py").write_text(textwrap.dedent(APPS))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._numbers = count(1)

    def job(self, text="hello", name="greeter", **more):
        args = {"text": text, "how": more.pop("how", "")}
        settings = {
            "import_path": "greeting_apps:app",
            "route_prefix": f"/{name}",
            "runtime_env": {"working_dir": str(self.code)},
            "http_host": "127.0.0.1",
            "http_port": self.port,
            "timeout": DEADLINE,
        }
        return RayServe(name=name, dashboard_url=self.head.dashboard_url, args=args, **{**settings, **more})

    def engine(self, name=""):
        """Return the engine of a stage, a new one by default."""
        return Engine(self.store, StageKey(("serving", "r1", name or f"stage-{next(self._numbers)}")), self.launcher)

    async def run(self, job, engine=None, owner="try-1"):
        engine = engine or self.engine()
        started = await engine.start(job, Request(owner=owner))
        return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]

    async def result(self, job, engine=None, owner="try-1"):
        update = await self.run(job, engine, owner)
        assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
        return update.outcome.result

    async def failure(self, job, engine=None):
        outcome = (await self.run(job, engine)).outcome
        assert outcome.state is State.FAILED, outcome
        return outcome.failure

    def live(self):
        return self.head.get(APPLICATIONS)["applications"]

    def put(self, config):
        url = f"{self.head.dashboard_url}{APPLICATIONS}"
        body = json.dumps(config).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
        urllib.request.urlopen(request, timeout=120).close()

    def ask(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{name}/", timeout=30) as answer:
            return json.load(answer)

    def version(self, number, name="greeter"):
        (folder,) = (self.store.local_path / "serve").glob(f"*/{name}")
        return json.loads((folder / f"{number}.json").read_text())

    def configs(self):
        return [each["deployed_app_config"] for each in self.live().values() if each["deployed_app_config"]]


@pytest.fixture(scope="module")
def cluster(ray_head, tmp_path_factory):
    cluster = Cluster(ray_head, tmp_path_factory.mktemp("serve"))
    yield cluster
    request = urllib.request.Request(f"{ray_head.dashboard_url}{APPLICATIONS}", method="DELETE")
    urllib.request.urlopen(request, timeout=120).close()  # Serve stays for no other module


@pytest.fixture(scope="module")
def other(cluster):
    """Another tool's application, which no deploy may touch: it is there when each test ends as when it began."""

    asyncio.run(cluster.result(cluster.job("the other one", name="other")))
    return cluster.live()["other"]


@pytest.fixture(autouse=True)
def _the_other_application_is_untouched(cluster, other):
    before = cluster.ask("other")
    yield
    assert cluster.ask("other") == before  # the same process
    assert cluster.live()["other"]["deployed_app_config"] == other["deployed_app_config"]


async def deployed(cluster, text="hello", **more):
    return await cluster.result(cluster.job(text, **more))


# Deploy --------------------------------------------------------------------------------------------------------------


async def test_an_application_is_deployed_probed_and_described(cluster):
    probe = ServeProbe(expect={"text": "hello"})
    update = await cluster.run(cluster.job("hello", probe=probe))
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    result = update.outcome.result
    number = result.pop("version")
    assert result == {
        "name": "greeter",
        "route_prefix": "/greeter",
        "url": f"http://127.0.0.1:{cluster.port}/greeter/",
        "replicas": 1,
    }
    assert cluster.ask("greeter")["text"] == "hello"
    assert (update.view.step, update.view.total, update.view.unit) == (1, 1, "replica")
    assert update.view.metrics == {"status": "RUNNING", "replicas of Greeter": 1}
    url = f"{cluster.head.dashboard_url}/#/serve/applications/greeter"
    assert update.view.links == {"Ray Serve application": url}
    version = cluster.version(number)
    assert (version["state"], version["config"]["args"]) == ("running", {"text": "hello", "how": ""})


async def test_what_is_applied_already_is_not_applied_again(cluster):
    first = await deployed(cluster, "hello")
    before = cluster.live()["greeter"]
    second = await deployed(cluster, "hello")
    assert second == first
    assert cluster.live()["greeter"]["last_deployed_time_s"] == before["last_deployed_time_s"]


async def test_autoscaling_and_replica_options_pass_through(cluster):
    scaling = {"min_replicas": 2, "max_replicas": 3, "target_ongoing_requests": 5}
    options = [{"name": "Greeter", "autoscaling_config": scaling, "max_ongoing_requests": 7}]
    result = await deployed(cluster, "hello", deployments=options)
    config = cluster.live()["greeter"]["deployments"]["Greeter"]["deployment_config"]
    assert result["replicas"] == 2
    assert config["max_ongoing_requests"] == 7
    assert config["autoscaling_config"]["max_replicas"] == 3
    again = await deployed(cluster, "hello", deployments=options)
    assert again == result


async def test_secrets_reach_the_replicas_and_no_file(cluster):
    job = cluster.job("secretive", secrets={"MODEL_TOKEN": "t0p-s3cret"}, replica_secrets=["MODEL_TOKEN"])
    result = await cluster.result(job)
    answer = cluster.ask("greeter")
    assert (answer["text"], answer["token"]) == ("secretive", "t0p-s3cret")
    assert cluster.version(result["version"])["config"]["runtime_env"]["env_vars"] == {"MODEL_TOKEN": "<secret>"}
    files = [path for root in (cluster.store.local_path, cluster.launcher.root) for path in root.rglob("*")]
    assert not [path for path in files if path.is_file() and b"t0p-s3cret" in path.read_bytes()]


# A failure restores --------------------------------------------------------------------------------------------------


async def test_a_replica_that_does_not_start_is_blamed_and_the_previous_config_restored(cluster):
    await deployed(cluster, "good")
    failure = await cluster.failure(cluster.job("bad", how="breaks"))
    assert cluster.ask("greeter")["text"] == "good"
    assert cluster.live()["greeter"]["status"] == "RUNNING"
    assert failure.title == "the application did not start"
    assert "of 'Greeter' failed: ValueError: there is no model 'bad'" in failure.message
    assert "the previous config is restored and healthy" in failure.message
    assert 'raise ValueError(f"there is no model {text!r}")' in failure.traceback
    assert "the replica of 'bad' begins" in failure.traceback  # a line of its log
    newest = cluster.version(max(_numbers(cluster)))
    assert newest["state"] == "failed"
    assert "no model 'bad'" in newest["reason"]


async def test_an_application_that_cannot_be_built_is_a_user_error(cluster):
    before = await deployed(cluster, "good")
    failure = await cluster.failure(cluster.job("bad", how="does not import"))
    assert (failure.kind, failure.title) == (Kind.USER, "the application cannot be built")
    assert "No module named 'no_such_module'" in failure.message
    assert cluster.ask("greeter")["text"] == "good"
    assert cluster.live()["greeter"]["status"] == "RUNNING"
    assert (await deployed(cluster, "good"))["version"] == before["version"]


async def test_a_wrong_answer_to_the_probe_restores(cluster):
    await deployed(cluster, "good")
    failure = await cluster.failure(cluster.job("worse", probe={"expect": {"text": "better"}}))
    assert (failure.kind, failure.title) == (Kind.USER, "the application did not answer as expected")
    assert 'the answer[\'text\'] is "worse", expected "better"' in failure.message
    assert cluster.ask("greeter")["text"] == "good"


async def test_a_first_deploy_that_fails_leaves_nothing(cluster):
    failure = await cluster.failure(cluster.job("bad", name="newcomer", how="breaks"))
    assert "was removed again, since it was not there before" in failure.message
    assert "newcomer" not in cluster.live()


async def test_a_route_that_another_application_has_is_refused(cluster):
    failure = await cluster.failure(cluster.job("x", name="thief", route_prefix="/other"))
    assert failure.kind is Kind.USER
    assert "the application 'other' has already" in failure.message
    assert "thief" not in cluster.live()


async def test_a_config_that_ray_refuses_is_a_user_error(cluster):
    job = cluster.job("x", name="refused", deployments=[{"name": "Greeter", "num_replicas": -1}])
    failure = await cluster.failure(job)
    assert (failure.kind, failure.title) == (Kind.USER, "Ray Serve refused the config")
    assert "num_replicas" in failure.message
    assert "refused" not in cluster.live()


# Dying, cancelling, retrying -----------------------------------------------------------------------------------------


async def _applied(cluster, engine, job, until):
    """Start a deploy whose replica never comes up, and return it once the config is applied."""
    started = await engine.start(job, Request(owner="try-1"))
    await until(
        lambda: cluster.live()["greeter"]["deployed_app_config"]["args"]["text"] == job.args["text"], deadline=DEADLINE
    )
    return started


async def _end(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1].outcome


async def test_a_cancelled_deploy_restores_before_it_ends(cluster, until):
    await deployed(cluster, "good")
    engine = cluster.engine()
    started = await _applied(cluster, engine, cluster.job("never", how="slow"), until)
    await engine.cancel(1, owner=None, why="somebody changed their mind")
    assert (await _end(engine, started)).state is State.CANCELLED
    assert cluster.live()["greeter"]["deployed_app_config"]["args"]["text"] == "good"
    assert cluster.ask("greeter")["text"] == "good"


async def test_a_retry_of_a_killed_deploy_knows_what_to_restore(cluster, until):
    await deployed(cluster, "good")
    engine, job = cluster.engine(), cluster.job("never", how="slow", timeout=8)
    started = await _applied(cluster, engine, job, until)
    number = max(_numbers(cluster))
    os.kill(_driver(started), signal.SIGKILL)
    assert (await _end(engine, started)).failure.signal == "SIGKILL"
    assert cluster.live()["greeter"]["deployed_app_config"]["args"]["text"] == "never"
    failure = await cluster.failure(job, engine)
    assert max(_numbers(cluster)) == number  # it went on with the same version
    assert "was not running within 8 s" in failure.message
    assert cluster.ask("greeter")["text"] == "good"
    assert cluster.version(number)["state"] == "failed"


async def test_a_retry_goes_on_with_what_a_killed_deploy_applied_and_a_finished_one_returns(cluster, until):
    await deployed(cluster, "good")
    engine, job = cluster.engine(), cluster.job("next", probe={"expect": {"text": "next"}})
    started = await _applied(cluster, engine, job, until)
    os.kill(_driver(started), signal.SIGKILL)
    await _end(engine, started)
    applied = cluster.live()["greeter"]["last_deployed_time_s"]
    result = await cluster.result(job, engine, "try-2")
    assert (await cluster.result(job, engine, "try-3")) == result
    assert cluster.ask("greeter")["text"] == "next"
    assert cluster.live()["greeter"]["last_deployed_time_s"] == applied  # nobody wrote again


async def test_a_config_that_another_writer_takes_away_is_applied_again(cluster, until):
    await deployed(cluster, "good")
    before = cluster.configs()
    engine = cluster.engine()
    started = await _applied(cluster, engine, cluster.job("mine", how="slow"), until)
    cluster.put({"applications": before})  # they had read it before this deploy wrote
    await until(lambda: cluster.live()["greeter"]["deployed_app_config"]["args"]["text"] == "mine", deadline=DEADLINE)
    await engine.cancel(1, owner=None, why="enough was seen")
    await _end(engine, started)
    assert cluster.ask("greeter")["text"] == "good"


async def test_what_somebody_else_deployed_meanwhile_is_left_as_it_is(cluster, until):
    await deployed(cluster, "good")
    engine = cluster.engine()
    started = await _applied(cluster, engine, cluster.job("mine", how="slow"), until)
    theirs = [
        {**config, "args": {"text": "theirs", "how": ""}} if config["name"] == "greeter" else config
        for config in cluster.configs()
    ]
    cluster.put({"applications": theirs})
    failure = (await _end(engine, started)).failure
    assert failure.title == "another deploy came in between"
    assert "is left as somebody else deployed it meanwhile" in failure.message
    await until(lambda: _answers(cluster, "theirs"), deadline=DEADLINE)


# Rollback and undeploy -----------------------------------------------------------------------------------------------


async def test_a_rollback_goes_to_the_previous_version_or_to_a_number(cluster):
    first = (await deployed(cluster, "one"))["version"]
    second = (await deployed(cluster, "two"))["version"]
    third = (await deployed(cluster, "three"))["version"]
    assert first < second < third
    url = cluster.head.dashboard_url
    back = await cluster.result(RayServeRollback(name="greeter", dashboard_url=url))
    assert cluster.ask("greeter")["text"] == "two"
    assert back["version"] == third + 1
    version = cluster.version(back["version"])
    assert (version["action"], version["source"], version["state"]) == ("rollback", second, "running")
    done = await asyncio.to_thread(_cli, cluster, "rollback", "greeter", "--to", str(first), "--yes")
    assert json.loads(done)["version"] == back["version"] + 1
    assert cluster.ask("greeter")["text"] == "one"
    shown = json.loads(await asyncio.to_thread(_cli, cluster, "history", "greeter", "--json"))
    assert [(each["number"], each["source"]) for each in shown[:3]] == [
        (third + 2, first),
        (third + 1, second),
        (third, None),
    ]


async def test_a_rollback_to_a_version_that_is_not_there_lists_those_that_are(cluster):
    await deployed(cluster, "one")
    job = RayServeRollback(name="greeter", dashboard_url=cluster.head.dashboard_url, version=999)
    failure = await cluster.failure(job)
    assert failure.kind is Kind.USER
    assert "got version 999" in failure.message
    assert cluster.ask("greeter")["text"] == "one"


async def test_an_undeployed_application_is_gone_and_comes_back_by_a_rollback(cluster):
    await deployed(cluster, "one")
    url = cluster.head.dashboard_url
    gone = await cluster.result(RayServeUndeploy(name="greeter", dashboard_url=url))
    assert gone["removed"]
    assert list(cluster.live()) == ["other"]
    again = await cluster.result(RayServeUndeploy(name="greeter", dashboard_url=url))
    assert not again["removed"]
    await cluster.result(RayServeRollback(name="greeter", dashboard_url=url))
    assert cluster.ask("greeter")["text"] == "one"


async def test_the_flights_model_is_served_from_the_shipped_package_and_answers_as_evaluated(cluster, tmp_path):
    import torch

    from rallypoint.examples.flights import encoding, features, model, preprocessing, serving

    frame = preprocessing.flights_frame(range(11, 12), 0.02).compute(scheduler="sync")
    for name in ("test", "model"):
        (tmp_path / name).mkdir()
    frame.to_parquet(tmp_path / "test" / "part-00000.parquet", index=False)
    encoder = encoding.Encoder.fit(frame, least=3)
    config = model.ModelConfig(tuple(encoder.cardinalities), len(features.NUMERIC))
    torch.manual_seed(0)
    model.save_model(str(tmp_path / "model"), model.build_model(config).state_dict(), config, encoder)
    uri = (tmp_path / "model").as_uri()
    job = RayServe(
        name="flights",
        dashboard_url=cluster.head.dashboard_url,
        import_path="rallypoint.examples.flights.serving:app",
        route_prefix="/flights",
        args={"model": uri},
        ship_rallypoint=True,
        timeout=DEADLINE,
    )
    url = (await cluster.result(job))["url"]
    found = await asyncio.to_thread(serving.smoke, url, uri, (tmp_path / "test").as_uri())
    assert found["rows"] == 100
    assert found["max_difference"] <= 1e-6
    await cluster.result(RayServeUndeploy(name="flights", dashboard_url=cluster.head.dashboard_url))
    assert "flights" not in cluster.live()


def test_a_dashboard_that_does_not_answer_is_retryable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens: every connection is refused
        job = RayServeUndeploy(name="x", dashboard_url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        dashboard = Dashboard.connect(job.dashboard_url, {}, None, verify=True)
        with pytest.raises(UnreachableError, match=r"nothing answered at http://127\.0\.0\.1") as raised:
            Target("x", dashboard, lease=None, termination=None).look(patience=0.5)
    told = process.describe(raised.value)  # as the driver reports it
    rule = classify(job.rules, exception=told["exception"], message=told["message"], signal=None, exit_code=1)
    assert (rule.kind, rule.name) == (Kind.RETRYABLE, "the cluster does not answer")


def _cli(cluster, *words):
    rallypoint = str(Path(sys.executable).with_name("rallypoint"))
    done = subprocess.run(
        [rallypoint, "serve", *words, "--store", str(cluster.store.local_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _numbers(cluster, name="greeter"):
    (folder,) = (cluster.store.local_path / "serve").glob(f"*/{name}")
    return [int(path.stem) for path in folder.glob("*.json")]


def _driver(started):
    supervisor = json.loads(Path(started.attempt.handle.details["run_dir"], "started.json").read_text())["pid"]
    (pid,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return int(pid)


def _answers(cluster, text):
    try:
        return cluster.ask("greeter")["text"] == text
    except urllib.error.URLError:
        return False
