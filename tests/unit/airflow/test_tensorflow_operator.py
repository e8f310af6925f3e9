"""``TensorFlowOperator`` and ``@task.tensorflow``: what they make of a DAG file, without a running Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.sdk import DAG, task

from rallypoint import Function, Resources, TensorFlowJob
from rallypoint.airflow.operators import TensorFlowOperator
from rallypoint.errors import InvalidJobError

DAGS = Path(__file__).resolve().parents[3] / "dags"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strategy": "horovod"}, "one of default, mirrored"),
        ({"strategy": "multi_worker_mirrored", "workers": "none"}, "1 or more"),
        ({"strategy": "parameter_server", "chief": False}, "the chief runs the code"),
        ({"join_timeout": -1}, "seconds above 0"),
    ],
)
def test_a_wrong_parameter_is_answered_while_the_dag_file_is_read(wrong, words):
    with DAG("d"), pytest.raises(InvalidJobError, match=words):
        TensorFlowOperator(task_id="t", script="a.py", **wrong)


def test_templates_are_left_for_the_run_and_every_option_reaches_the_job():
    options = {
        "strategy": "parameter_server", "workers": "{{ params.workers }}", "parameter_servers": 2, "evaluator": True,
        "gpus": [0, 1], "keras": "legacy", "join_timeout": 60, "xla_flags": ["--a"], "jit_compile": True,
    }  # fmt: skip
    with DAG("d"):
        operator = TensorFlowOperator(task_id="t", python_callable=len, op_args=["x"], **options)
    operator.job_options = {**operator.job_options, "workers": "3"}  # what rendering does
    job = operator.job()
    assert isinstance(job, TensorFlowJob)
    assert {role.name: role.replicas for role in job.roles()} == {"chief": 1, "worker": 3, "ps": 2, "evaluator": 1}
    told = job.settings()
    assert (told["gpus"], told["keras"], told["join_timeout"], told["jit_compile"]) == ([0, 1], "legacy", 60, True)


def test_options_that_depend_on_a_strategy_which_is_a_template_are_checked_when_it_is_known():
    of_servers = {"parameter_servers": 2, "workers": 3, "task_resources": {"ps": Resources(cpus=4)}}
    with DAG("d"):
        operator = TensorFlowOperator(task_id="t", script="/a.py", strategy="{{ params.strategy }}", **of_servers)
        other = TensorFlowOperator(task_id="u", script="/a.py", strategy="{{ params.strategy }}", **of_servers)
    operator.render_template_fields({"params": {"strategy": "parameter_server"}})
    asked = {role.name: role.resources for role in operator.job().roles()}
    assert asked == {"chief": Resources(), "worker": Resources(), "ps": Resources(cpus=4)}
    other.render_template_fields({"params": {"strategy": "mirrored"}})
    with pytest.raises(InvalidJobError, match="expected one process for 'mirrored'"):
        other.job()


def test_in_a_dag_with_native_types_only_templates_become_numbers():
    with DAG("d", render_template_as_native_obj=True):
        operator = TensorFlowOperator(
            task_id="t",
            script="/a.py",
            strategy="multi_worker_mirrored",
            workers="{{ params.workers }}",
            args=["1_000", "{{ params.workers }}"],
            env={"OMP_NUM_THREADS": "1"},
        )
    operator.render_template_fields({"params": {"workers": 3}})
    job = operator.job()
    assert (job.keras, job.workers, job.env) == ("3", 3, {"OMP_NUM_THREADS": "1"})
    assert list(job.code.args) == ["1_000", "3"]
    assert TensorFlowJob(job.code, keras=3).keras == "3"  # what `keras="{{ params.keras }}"` may become


def test_the_strategy_is_the_drivers_to_give_and_not_the_callers():
    with DAG("d"):

        @task.tensorflow(strategy="mirrored", logical_devices=2)
        def train(features, strategy, epochs=1):
            return features, strategy, epochs

        operator = train("file:///data", epochs=3).operator
    assert isinstance(operator, TensorFlowOperator)
    entry = operator.job().code
    assert isinstance(entry, Function)
    assert dict(entry.kwargs) == {"features": "file:///data", "epochs": 3}
    assert json.loads(operator.job().roles()[0].argv[3])["strategy"] == "mirrored"


@pytest.mark.parametrize(
    "file",
    [
        "examples/tensorflow_decorator",
        "examples/tensorflow_keras",
        "examples/tensorflow_operator",
        "examples/tf_serving_operator",
        "flights_tensorflow",
    ],
)
def test_reading_an_example_dag_imports_no_framework(file):
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "print(sorted({'tensorflow', 'keras', 'tf_keras', 'torch', 'dask', 'numpy'} & set(sys.modules)))"
    )
    path = str(DAGS / f"{file}.py")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
