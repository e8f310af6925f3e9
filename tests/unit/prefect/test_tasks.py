"""Tasks as they are written: whose option is whose, what callers see, and what job a call becomes."""

from __future__ import annotations

import inspect
from datetime import timedelta

import cloudpickle
import pytest
from prefect import Task
from prefect.assets import Asset
from prefect.cache_policies import INPUTS, NO_CACHE

from rallypoint.errors import InvalidEntryError, InvalidJobError
from rallypoint.frameworks.dask.job import DaskJob
from rallypoint.frameworks.ray.tune.job import RayTune
from rallypoint.frameworks.ray.tune.space import choice, uniform
from rallypoint.frameworks.torch.job import TorchElastic
from rallypoint.prefect import (
    dask_task,
    python_task,
    ray_task,
    ray_train_task,
    ray_tune_task,
    retry_condition,
    spark_task,
    stage_task,
    tensorflow_task,
    torch_task,
)
from rallypoint.prefect.options import task_options
from rallypoint.spec.entry import Script
from rallypoint.stages.rule import Resume


@torch_task
def bare(features: str, epochs: int = 10) -> dict:
    return {"features": features, "epochs": epochs}


@torch_task(
    name="train-it", nnodes="1:4", nproc_per_node=2, max_restarts=3, retries=3, retry_delay_seconds=7, tags=["gpu"],
    timeout_seconds=60, resume="never", secrets={"TOKEN": "block:secret/my-token"}, assets="s3://models/churn",
)  # fmt: skip
def train(features: str, *, epochs: int = 10) -> dict:
    """Train it."""
    return {"features": features, "epochs": epochs}


def test_a_task_needs_no_options():
    assert isinstance(bare, Task)
    assert (bare.name, bare.retries, bare.isasync) == ("bare", 0, False)
    assert bare.cache_policy == NO_CACHE
    assert bare.retry_condition_fn is retry_condition


def test_options_go_to_whom_they_belong():
    assert (train.name, train.retries, train.retry_delay_seconds, train.timeout_seconds) == ("train-it", 3, 7, 60)
    assert train.tags == {"gpu"}
    assert train.description == "Train it."
    job = train.job("a")
    assert isinstance(job, TorchElastic)
    assert (job.nnodes, job.nproc_per_node, job.max_restarts) == ("1:4", 2, 3)
    assert train.recipe.stage.resume is Resume.NEVER
    assert train.recipe.assets == ("s3://models/churn",)
    assert dict(job.secrets) == {}


def note(*_):
    """Stand in for a hook, a key or a condition of the user."""


# A value for each option of Prefect's task, none of them the default.
EVERY_OPTION = {
    "name": "x", "description": "x", "tags": {"x"}, "version": "1", "cache_policy": INPUTS, "cache_key_fn": note,
    "cache_expiration": timedelta(hours=1), "task_run_name": "x", "retries": 2, "retry_delay_seconds": 3.0,
    "retry_jitter_factor": 0.5, "persist_result": True, "result_storage": "local-file-system/x",
    "result_serializer": "json", "result_storage_key": "x", "cache_result_in_memory": False, "timeout_seconds": 4.0,
    "log_prints": True, "refresh_cache": True, "on_completion": [note], "on_failure": [note], "on_running": [note],
    "on_rollback": [note], "on_commit": [note], "retry_condition_fn": note, "viz_return_value": 5,
    "asset_deps": [Asset(key="s3://x/y")],
}  # fmt: skip
DECORATORS = {
    "python": python_task, "torch": torch_task, "dask": dask_task, "ray": ray_task, "ray-train": ray_train_task,
    "ray-tune": ray_tune_task(space={"rate": uniform(0, 1)}, metric="loss"), "spark": spark_task,
    "tensorflow": tensorflow_task,
}  # fmt: skip


def test_every_option_of_prefects_task_is_known():
    assert EVERY_OPTION.keys() == set(task_options())


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_each_task_takes_every_option_of_prefects(name):
    option = {name: EVERY_OPTION[name]}

    def function(features, rate=0.1):
        return features

    plain, known = vars(Task(function, **option)), vars(Task(function))
    told = {each for each in plain if plain[each] != known[each]} - {"fn", "_user_cache_policy"}
    assert told
    for kind, decorator in DECORATORS.items():
        for task in (decorator(**option)(function), decorator(function).with_options(**option)):
            assert {each: vars(task)[each] for each in told} == {each: plain[each] for each in told}
            assert task.job("a").kind == kind


def test_the_function_runs_in_the_job_with_its_arguments_by_name():
    code = train.job("a", epochs=2).code
    assert code.arguments() == {"features": "a", "epochs": 2}
    assert bare.job("a").code.arguments() == {"features": "a", "epochs": 10}
    assert code.identity.endswith("train")


def test_variadic_arguments_reach_the_function():
    @python_task
    def positional(first, *rest, **named):
        return None

    code = positional.job(1, 2, 3, four=4).code
    assert (code.args, dict(code.kwargs)) == ((1, 2, 3), {"four": 4})

    @python_task
    def keywords(first, **named):
        return None

    assert keywords.job(1, two=2).code.kwargs == {"first": 1, "two": 2}


def test_what_the_driver_fills_in_is_no_parameter_of_the_task():
    @dask_task
    def count(path, client, *, blocks=2):
        return None

    assert list(inspect.signature(count.fn).parameters) == ["path", "blocks"]
    job = count.job("data")
    assert isinstance(job, DaskJob)
    assert job.code.kwargs == {"path": "data", "blocks": 2}


def test_the_space_of_a_search_is_no_parameter_of_the_task():
    @ray_tune_task(space={"lr": uniform(0, 1)}, num_samples=2)
    def search(data, lr, epochs=3):
        return None

    assert list(inspect.signature(search.fn).parameters) == ["data", "epochs"]
    job = search.job("data")
    assert isinstance(job, RayTune)
    assert job.code.kwargs == {"data": "data", "epochs": 3}
    wider = search.with_options(space={"epochs": choice([1, 2]), "lr": uniform(0, 1)})
    assert list(inspect.signature(wider.fn).parameters) == ["data"]


def test_other_options_make_another_task():
    other = train.with_options(name="again", nnodes=2, retries=0, resume="always", cache_policy=INPUTS)
    assert (other.name, other.retries, other.job("a").nnodes, other.recipe.stage.resume) == ("again", 0, 2, "always")
    assert other.cache_policy == INPUTS
    assert (train.name, train.retries, train.job("a").nnodes) == ("train-it", 3, "1:4")
    assert other.timeout_seconds == 60
    assert other.retry_condition_fn is retry_condition


def test_an_asynchronous_twin_is_awaited():
    assert train.asynchronous().isasync
    assert inspect.iscoroutinefunction(train.asynchronous().fn)
    assert train.asynchronous().name == "train-it"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nnode": 2}, "nnodes"),
        ({"retry": 3}, "retries"),
        ({"nnodes": "many"}, "nnodes"),
        ({"secrets": {"TOKEN": "hunter2"}}, "reference"),
        ({"secrets": {"TOKEN": "block:my-token"}}, "reference"),
        ({"resume": "sometimes"}, "if_same_work"),
        ({"poll_interval": 0}, "seconds above 0"),
    ],
)
def test_a_wrong_option_is_refused_where_the_task_is_written(options, said):
    with pytest.raises(InvalidJobError, match=said) as caught:
        torch_task(**options)(lambda: None)
    assert "hunter2" not in str(caught.value)


def test_an_asynchronous_function_is_refused():
    async def train():
        return None

    with pytest.raises(InvalidEntryError, match=r"await task\.aio"):
        torch_task(train)


def test_a_task_travels_to_other_processes():
    other = cloudpickle.loads(cloudpickle.dumps(train))
    assert (other.name, other.job("a").nnodes) == ("train-it", "1:4")


def test_a_job_is_a_task_too():
    job = TorchElastic(Script("train.py"), nproc_per_node=1)
    task = stage_task(job, name="train", retries=2)
    assert (task.name, task.retries) == ("train", 2)
    assert task.job() is job
    with pytest.raises(InvalidJobError, match="given whole"):
        stage_task(job, name="train", nnodes=2)


def test_the_job_imports_no_prefect():
    """The function's module has a decorator of Prefect's face, so what it uses of it travels by value."""
    assert bare.job("a").code.by_value
    code = bare.job("a").code
    call, args, kwargs = cloudpickle.loads(code.files()["function.pkl"].split(b"}", 1)[1])
    assert call(*args, **kwargs) == {"features": "a", "epochs": 10}
    assert b"rallypoint.prefect" not in code.files()["function.pkl"]
