"""The jobs of Ray Serve as data: what is refused when they are made, and what they compile to."""

from __future__ import annotations

import json

import pytest

from rallypoint import RayServe, RayServeRollback, RayServeUndeploy, ServeProbe
from rallypoint.errors import InvalidJobError
from rallypoint.spec.failure import FailureRule, Kind
from rallypoint.spec.gang import Secret

URL = "http://127.0.0.1:8265"


def serve(**more):
    return RayServe(**{"name": "flights", "dashboard_url": URL, "import_path": "package.module:app", **more})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": " "}, r"name=…\): got ' ', expected a name"),
        ({"dashboard_url": "127.0.0.1:8265"}, "an address such as"),
        ({"dashboard_url": "http://user:password@host:8265"}, "without user, password"),
        ({"dashboard_url": {"address": "10.0.0.1:6379"}}, "an address such as"),
        ({"serve_url": "ftp://host"}, "serve_url"),
        ({"import_path": "package.module"}, None),
        ({"import_path": "no path"}, r'expected "package\.module:app"'),
        ({"route_prefix": "flights"}, "a path such as"),
        ({"route_prefix": "/flights/"}, "without a"),
        ({"args": {"model": object()}}, "expected JSON"),
        ({"deployments": {"name": "Model"}}, "a list of dicts"),
        ({"deployments": [{"num_replicas": 2}]}, "a list of dicts"),
        ({"deployments": [{"name": "Model"}, {"name": "Model"}]}, "a list of dicts"),
        ({"deployments": [{"name": "M", "num_replicas": 2, "autoscaling_config": {}}]}, "not both"),
        ({"runtime_env": {"working_dir": "code"}}, "absolute folders"),
        ({"runtime_env": {"py_modules": "code"}}, "a list of folders and URIs"),
        ({"runtime_env": {"env_vars": {"HF_TOKEN": "x"}}}, r"replica_secrets=\['HF_TOKEN'\]"),
        ({"runtime_env": {"env_vars": {"AWS_SECRET_ACCESS_KEY": "x"}}}, "without secrets"),
        ({"runtime_env": {"env_vars": {"THREADS": 1}}}, "text as values"),
        ({"replica_secrets": ["HF_TOKEN"]}, "a list of names among secrets="),
        ({"options": {"import_path": "x:y"}}, "no parameter of their own"),
        ({"headers": {"Authorization": "Bearer x"}}, "RAY_AUTH_TOKEN"),
        ({"headers": {"X-A": "a\nb"}}, "one line"),
        ({"timeout": 0}, "seconds above 0"),
        ({"http_port": 70_000}, "from 1 to 65535"),
        ({"keep_versions": 0}, "1 or more, a whole number, or None"),
        ({"keep_versions": True}, "1 or more, a whole number, or None"),
        ({"probe": {"url": "/"}}, "the fields of ServeProbe"),
        ({"probe": {"path": "health"}}, "starts with"),
        ({"probe": {"path": "/"}, "route_prefix": None}, "no route to ask"),
    ],
)
def test_what_is_wrong_is_told_when_the_job_is_made(wrong, message):
    if message is None:
        serve(**wrong)  # Serve takes a dot before the application's name, too
        return
    with pytest.raises(InvalidJobError, match=message):
        serve(**wrong)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "OMP_NUM_THREADS", "KEYWORDS"])
def test_a_variable_that_only_sounds_like_a_secret_is_taken(name):
    assert serve(runtime_env={"env_vars": {name: "1"}}).settings()["config"]["runtime_env"]["env_vars"] == {name: "1"}


def test_the_gang_is_one_process_of_any_python_and_its_settings_are_a_file():
    gang = serve(args={"model": "file:///m"}, secrets={"RAY_AUTH_TOKEN": Secret("t0p")}).plan()
    (role,) = gang.roles
    assert role.argv[1:3] == ("-m", "rallypoint.frameworks.ray.serve.driver")
    assert (gang.requires, role.replicas) == ((), 1)
    settings = json.loads(gang.files["serve.json"])
    assert settings["config"] == {
        "name": "flights",
        "route_prefix": "/",
        "import_path": "package.module:app",
        "args": {"model": "file:///m"},
    }
    assert "t0p" not in json.dumps([gang.to_json(), settings, list(role.argv)])


def test_a_clusters_result_is_its_address_and_its_lease_is_renewed():
    service = {"store": "file:///s", "stage": ["d", "r", "t"], "attempt": 1, "lease": 60}
    address = {"dashboard_url": URL, "address": "127.0.0.1:6379", "service": service, "uses": []}
    job = serve(dashboard_url=address)
    assert job.dashboard_url == URL
    assert [ref.stage for ref in job.services()] == [("d", "r", "t")]
    assert job.settings()["temporary"] is True
    assert serve(uses=[{**address, "dashboard_url": "http://127.0.0.1:9"}]).settings()["temporary"] is False


def test_another_config_is_other_work_and_another_timeout_is_not():
    one = serve(args={"model": "a"}).fingerprint()
    assert serve(args={"model": "b"}).fingerprint() != one
    assert serve(args={"model": "a"}, keep_versions=None).fingerprint() == one
    assert serve(args={"model": "a"}, timeout=1, probe=ServeProbe(), secrets={"X": "y"}).fingerprint() == one
    assert RayServeUndeploy(name="flights", dashboard_url=URL).fingerprint()["entry"] == "ray serve undeploy flights"


def test_a_jobs_own_failure_rules_come_first():
    mine = FailureRule("mine", Kind.RETRYABLE, "wait", exception="ProbeMismatchError")
    rules = serve(failure_rules=[mine]).rules
    assert rules[0] is mine
    assert "Ray Serve refused the config" in [rule.name for rule in rules]


def test_a_version_may_come_from_a_template():
    assert RayServeRollback(name="flights", dashboard_url=URL, version="3").version == 3
    for wrong in (0, "three", True):
        with pytest.raises(InvalidJobError, match="a version's number from 1"):
            RayServeRollback(name="flights", dashboard_url=URL, version=wrong)
