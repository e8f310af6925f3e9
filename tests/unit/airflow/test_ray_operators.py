"""What a DAG file is told of Ray's jobs, and what their operators make of it, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG, task

from rallypoint import search
from rallypoint.airflow.operators import RayJobOperator, RayTrainOperator, RayTuneOperator
from rallypoint.errors import InvalidJobError
from rallypoint.stages.place import Place

EXAMPLES = Path(__file__).resolve().parents[3] / "dags/examples"


def test_the_options_of_a_search_survive_the_operator():
    space = {"rate": search.loguniform(1e-4, 1e-1)}
    with DAG("d"):
        operator = RayTuneOperator(
            task_id="t", script="/a.py", space=space, scheduler=search.Asha(max_t=3), num_samples="{{ 4 }}"
        )
    operator.render_template_fields({})
    job = operator.job()
    assert (job.space, job.scheduler, job.num_samples) == (space, search.Asha(max_t=3), 4)


def test_the_options_of_training_survive_the_operator():
    with DAG("d"):
        operator = RayTrainOperator(task_id="t", script="/a.py", num_workers=(1, 2), address="{{ 'auto' }}")
    operator.render_template_fields({})
    job = operator.job()
    assert (job.workers, job.address) == ((1, 2), "auto")


@pytest.mark.parametrize(
    ("operator", "wrong", "words"),
    [
        (RayJobOperator, {"address": "ray://head:10001"}, "Ray Client"),
        (RayTrainOperator, {"num_workers": 0}, "num_workers"),
        (RayTuneOperator, {"space": {}}, "at least one domain"),
        (RayTuneOperator, {"space": {"a": search.uniform(0, 1)}, "search": "grid"}, "grid"),
    ],
)
def test_a_wrong_option_of_ray_is_answered_while_the_dag_file_is_read(operator, wrong, words):
    with DAG("d"), pytest.raises(InvalidJobError, match="expected") as raised:
        operator(task_id="t", script="a.py", **wrong)
    assert words in str(raised.value)


def test_sampled_parameters_are_no_arguments_for_the_caller():
    @task.ray_tune(space={"rate": search.uniform(0, 1), "width": search.choice([1, 2])})
    def train(features: str, rate: float, *, epochs: int = 1, width: int): ...

    with DAG("d"):
        result = train("uri", epochs=2)
    job = result.operator.job()
    assert job.code.kwargs == {"features": "uri", "epochs": 2}
    assert set(job.space) == {"rate", "width"}


@pytest.mark.parametrize("name", ["ray", "ray_train"])
def test_the_decorators_of_ray_take_options(name):
    decorate = getattr(task, name)

    @decorate(address="auto", retries=1)
    def work(number: int): ...

    with DAG("d"):
        result = work(1)
    assert (result.operator.job().address, result.operator.job().code.kwargs) == ("auto", {"number": 1})


@pytest.mark.parametrize(
    ("launcher", "page"),
    [
        ("ray-jobs://head:8265", "/rallypoint/stages/d/r/t/-1/links/Ray%20job?on=cluster"),
        ("ray-jobs+https://ray.example.com:443", "/rallypoint/stages/d/r/t/-1/links/Ray%20job?on=cluster"),
        ("local:///runs", ""),
    ],
)
def test_a_task_links_to_the_page_of_its_ray_job_where_it_is_one(monkeypatch, launcher, page):
    place = Place(store="file:///store", launcher=launcher)
    hook = SimpleNamespace(get_conn=lambda: place)
    monkeypatch.setattr("rallypoint.airflow.operators.base.RallypointHook", lambda *_: hook)
    with DAG("d"):
        operator = RayJobOperator(task_id="t", script="/a.py", launcher_conn_id="cluster")
    assert operator._place() is place
    (link,) = (link for link in operator.operator_extra_links if link.name == "Ray job")
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)
    assert link.get_link(operator, ti_key=ti) == page


@pytest.mark.parametrize("name", ["ray_job_operator", "ray_train_decorator", "ray_tune_decorator"])
def test_reading_an_example_imports_no_framework(name):
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print([m for m in ('ray', 'torch') if m in sys.modules])"
    path = str(EXAMPLES / f"{name}.py")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
