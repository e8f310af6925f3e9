"""What a job with a Ray driver compiles to, and what it refuses, without Ray."""

from __future__ import annotations

import json

import pytest

from rallypoint import Function, RayJob, RayTrain, RayTune, Resources, Script, search
from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.ray import environment
from rallypoint.frameworks.ray.storage import open_ray_storage
from rallypoint.spec.service import ServiceRef
from rallypoint.worker import context

REF = ServiceRef(store="file:///store", stage=("d", "r", "cluster"), attempt=1, lease=900.0)
CLUSTER = {"address": "10.0.0.5:6379", "dashboard_url": "http://10.0.0.5:8265", "service": REF.to_json(), "uses": []}


def settings(job):
    (role,) = job.plan().roles
    assert role.argv[:3] == ("${rallypoint:python}", "-m", "rallypoint.frameworks.ray.driver")
    return json.loads(role.argv[3])


def test_a_job_is_one_driver_process():
    job = RayJob(Script("/job.py", ["--a", "1"]), env={"A": "1"}, resources=Resources(cpus=3, memory="1GiB"))
    gang = job.plan()
    (role,) = gang.roles
    assert (role.name, role.replicas, role.resources.cpus, gang.requires) == ("driver", 1, 3, ("ray",))
    assert role.argv[4:] == ("script", "/job.py", "--a", "1")
    assert settings(job)["local"] == {
        "cpus": 3, "gpus": 0, "memory": 1 << 30, "dashboard": True, "least_cpus": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("auto", "auto"),
        ("10.0.0.5:6379", "10.0.0.5:6379"),
        ("ray-head.svc:6379", "ray-head.svc:6379"),
        ("[::1]:6379", "[::1]:6379"),
        (CLUSTER, "10.0.0.5:6379"),
        (str(CLUSTER), "10.0.0.5:6379"),  # as a template renders it
        (json.dumps(CLUSTER), "10.0.0.5:6379"),
    ],
)
def test_an_address_is_a_clusters_or_a_clusters_stages_result(given, address):
    found = settings(RayJob("job.py", address=given))
    assert found["address"] == address
    assert "local" not in found


@pytest.mark.parametrize("given", [None, ""])
def test_without_an_address_a_ray_is_made_for_the_attempt(given):
    assert "local" in settings(RayJob("job.py", address=given))


@pytest.mark.parametrize("given", [CLUSTER, str(CLUSTER)])
def test_the_lease_of_a_clusters_stage_is_renewed_while_the_job_runs(given):
    assert RayJob("job.py", address=given).services() == (REF,)


@pytest.mark.parametrize("given", ["somewhere", "host:99999", "http://host:8265", "${rallypoint:host}:1", 7, {"x": 1}])
def test_a_wrong_address_is_answered_when_the_job_is_made(given):
    with pytest.raises(InvalidJobError, match=r"RayJob.*address.*expected"):
        RayJob("job.py", address=given)


def test_ray_client_is_refused_with_a_reason():
    with pytest.raises(InvalidJobError, match=r"over Ray Client .* launcher ray_jobs"):
        RayJob("job.py", address="ray://head:10001")


@pytest.mark.parametrize("wrong", [{"connect_timeout": 0}, {"connect_timeout": "5"}, {"dashboard": "yes"}])
def test_wrong_values_are_answered(wrong):
    with pytest.raises(InvalidJobError, match="expected"):
        RayJob("job.py", **wrong)


def test_no_secret_is_in_the_plan():
    job = RayJob("job.py", secrets={"TOKEN": "hunter2"}, env={"A": "1"}, address="auto")
    assert settings(job)["env"] == ["A", "TOKEN"]
    assert "hunter2" not in json.dumps(job.plan().to_json())


def test_where_it_runs_is_no_part_of_the_work():
    jobs = [RayJob("job.py"), RayJob("job.py", address="auto"), RayJob("job.py", resources=Resources(cpus=2))]
    assert len({json.dumps(job.fingerprint()) for job in jobs}) == 1


# Train ---------------------------------------------------------------------------------------------------------------


def test_training_passes_ray_trains_own_options():
    found = settings(
        RayTrain("t.py", trainer="xgboost", num_workers=(1, 4), resources_per_worker={"cpu": 2}, max_failures="3",
                 elastic_resize_monitor_interval_s=5, keep_checkpoints=2, checkpoint_score_attribute="auc")
    )  # fmt: skip
    assert found["trainer"] == "xgboost"
    assert found["scaling"] == {
        "num_workers": [1, 4],
        "use_gpu": False,
        "resources_per_worker": {"CPU": 2.0},
        "accelerator_type": None,
        "placement_strategy": "PACK",
        "elastic_resize_monitor_interval_s": 5.0,
    }
    assert found["failure"] == {"max_failures": 3, "max_preemption_failures": -1}
    assert found["checkpoint"]["num_to_keep"] == 2
    assert found["local"]["least_cpus"] == 2


@pytest.mark.parametrize(
    ("given", "workers", "sent"),
    [(2, (2, 2), 2), ("2", (2, 2), 2), ((1, 3), (1, 3), [1, 3]), ("1:3", (1, 3), [1, 3]), ("(1, 3)", (1, 3), [1, 3])],
)
def test_workers_are_a_number_or_a_range(given, workers, sent):
    job = RayTrain("t.py", num_workers=given)
    assert job.workers == workers
    assert settings(job)["scaling"]["num_workers"] == sent


@pytest.mark.parametrize(
    "wrong",
    [
        {"trainer": "jax"},
        {"num_workers": 0},
        {"num_workers": (3, 1)},
        {"num_workers": "many"},
        {"num_workers": True},
        {"placement_strategy": "pack"},
        {"max_failures": -2},
        {"max_failures": "often"},
        {"resources_per_worker": {"CPU": -1}},
        {"resources_per_worker": 2},
        {"checkpoint_score_order": "up"},
        {"elastic_resize_monitor_interval_s": 0},
        {"use_gpu": 1},
        {"num_workers": 4, "resources": Resources(cpus=2)},
    ],
)
def test_a_wrong_option_of_training_is_answered(wrong):
    with pytest.raises(InvalidJobError, match="expected"):
        RayTrain("t.py", **wrong)


@pytest.mark.parametrize("trainer", ["torch", "tensorflow", "xgboost"])
def test_the_trainers_framework_must_be_in_the_jobs_python(trainer):
    assert RayTrain("t.py", trainer=trainer).plan().requires == ("ray", trainer)


# Tune ----------------------------------------------------------------------------------------------------------------


def trains(features, epochs=6, *, rate, width=1): ...


SPACE = {"rate": search.loguniform(1e-4, 1e-1), "width": search.choice([1, 2])}


def tune(**more):
    return RayTune(Function(trains, ("uri",)), **{"space": SPACE, **more})


def test_a_search_travels_as_data():
    found = settings(tune(scheduler=search.Asha(max_t=6), search="optuna", num_samples="12", seed=1))
    assert found["space"] == {
        "rate": {"kind": "uniform", "lower": 1e-4, "upper": 1e-1, "log": True},
        "width": {"kind": "choice", "values": [1, 2]},
    }
    assert found["scheduler"] == {
        "kind": "asha", "max_t": 6, "grace_period": 1, "reduction_factor": 4, "brackets": 1,
    }  # fmt: skip
    assert (found["num_samples"], found["search"], found["seed"]) == (12, "optuna", 1)


def test_grids_multiply():
    assert tune(space={"rate": search.grid([1, 2]), "width": search.grid([1, 2, 3])}, num_samples=2).total == 12


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"space": {**SPACE, "width": search.choice([1, 2, 3])}}, "space width"),
        ({"metric": "auc"}, "metric"),
        ({"mode": "max"}, "mode"),
        ({"search": "optuna"}, "search"),
        ({"scheduler": search.Asha(max_t=5)}, "scheduler"),
        ({"seed": 2}, "seed"),
        ({"points_to_evaluate": [{"rate": 0.01}]}, "points_to_evaluate"),
    ],
)
def test_what_defines_the_search_is_the_work(change, part):
    before, now = tune().fingerprint(), tune(**change).fingerprint()
    assert {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)} == {part}


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 50},
        {"max_concurrent_trials": 4},
        {"resources_per_trial": {"CPU": 2}},
        {"time_budget": 60},
        {"max_failures": 3},
        {"max_failed_trials": 2},
        {"reuse_actors": True},
        {"address": "auto"},
    ],
)
def test_how_much_and_where_is_searched_is_not(change):
    assert tune(**change).fingerprint() == tune().fingerprint()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"space": {}}, "at least one domain"),
        ({"space": {"rate": 1}}, "at least one domain"),
        ({"space": {"rate": search.uniform(0, 1), "width": object()}}, "domains of rallypoint.search"),
        ({"space": {"speed": search.uniform(0, 1), "rate": 1}}, "unexpected keyword argument 'speed'"),
        ({"space": {"width": search.grid([1])}}, "missing a required"),
        ({"space": {"features": search.grid([1]), "rate": 1}}, "multiple values"),
        ({"search": "grid"}, "grid([…]) for every parameter"),
        ({"search": "optuna", "space": {"rate": search.grid([1])}}, 'with search="optuna"'),
        ({"search": "optuna", "space": {"rate": search.normal()}}, 'with search="optuna"'),
        ({"search": "bayes"}, "one of random, grid, optuna"),
        ({"mode": "best"}, '"min" or "max"'),
        ({"metric": ""}, "reported metric"),
        ({"num_samples": 0}, "1 or more"),
        ({"num_samples": "many"}, "1 or more"),
        ({"time_budget": -1}, "seconds above 0"),
        ({"max_failed_trials": -1}, "0 or more"),
        ({"scheduler": "asha"}, "Asha(…)"),
        ({"scheduler": search.PopulationBased(mutations={"speed": search.uniform(0, 1)})}, "parameters of the space"),
        ({"points_to_evaluate": [{"speed": 1}]}, "values by parameter of the space"),
        ({"resources_per_trial": {"CPU": "1"}}, "amounts by resource"),
        ({"reuse_actors": None}, "True or False"),
    ],
)  # fmt: skip
def test_a_wrong_search_is_answered_when_the_job_is_made(wrong, words):
    with pytest.raises(InvalidJobError) as raised:
        tune(**wrong)
    assert words in str(raised.value)


def test_a_parameter_that_the_arguments_set_is_not_sampled():
    with pytest.raises(InvalidJobError, match="that the entry's arguments do not set"):
        RayTune(Function(trains, ("uri",), {"rate": 0.1}), space=SPACE)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: search.uniform(1, 1),
        lambda: search.uniform(0, float("inf")),
        lambda: search.loguniform(0, 1),
        lambda: search.randint(1.5, 2),
        lambda: search.randint(3, 2),
        lambda: search.uniform(0, 1, q=2),
        lambda: search.choice([]),
        lambda: search.choice("abc"),
        lambda: search.choice([object()]),
        lambda: search.normal(0, 0),
        lambda: search.Asha(max_t=1, grace_period=2),
        lambda: search.Asha(reduction_factor=1),
        lambda: search.HyperBand(max_t=0),
        lambda: search.MedianStopping(grace_period=0),
        search.PopulationBased,
        lambda: search.PopulationBased(mutations={"a": search.grid([1])}),
        lambda: search.PopulationBased(mutations={"a": search.uniform(0, 1)}, quantile_fraction=0.7),
    ],
)
def test_a_wrong_domain_or_scheduler_is_answered_where_it_is_written(wrong):
    with pytest.raises(InvalidJobError, match=r"got .* expected"):
        wrong()


# What workers of a cluster get ---------------------------------------------------------------------------------------


def test_a_worker_gets_the_stage_by_value_and_the_jobs_variables(tmp_path, monkeypatch):
    stage = context.StageContext(
        stage=("d", "r", "t"), attempt="rp-t-a1", number=1, generation=1, resumed=False, data_uri="s3://b/data"
    )
    (tmp_path / "stage.json").write_text(stage.to_json())
    monkeypatch.setenv(context.STAGE_FILE, str(tmp_path / "stage.json"))
    environ = {
        "TOKEN": "hunter2", "HOME": "/root", "PYTHONPATH": "/x", context.EVENTS_URI: "s3://b/events",
        "AWS_SECRET_ACCESS_KEY": "key", context.LOGS_DIR: "/runs/logs", context.RUN_DIR: "/runs",
    }  # fmt: skip
    found = environment.variables(["TOKEN", "PYTHONPATH"], environ)
    assert set(found) == {"TOKEN", context.EVENTS_URI, context.STAGE, "AWS_SECRET_ACCESS_KEY"}
    monkeypatch.delenv(context.STAGE_FILE)
    monkeypatch.setenv(context.STAGE, found[context.STAGE])
    assert context.StageContext.from_environment() == stage


def test_rays_state_lies_beside_the_stages_own_checkpoints(tmp_path):
    storage = open_ray_storage(f"file://{tmp_path}/a%20b")
    assert storage.path == f"{tmp_path}/a b/ray"
    assert storage.child_uri(f"{tmp_path}/a b/ray/x") == f"file://{tmp_path}/a%20b/ray/x"
    assert storage.names() == []
