"""What a DAG file is told, and what an operator makes of it, without a running Airflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from rallypoint import DaskClusterClass, Resources
from rallypoint.airflow.operators import DaskOperator, TorchElasticOperator
from rallypoint.airflow.operators.base import stage_key
from rallypoint.errors import InvalidJobError, RallypointError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"script": "a.py", "nnodes": "4:1"}, "got '4:1', expected \"min:max\""),
        ({"script": "a.py", "nnodes": "many"}, 'expected a number or a range "min:max"'),
        ({"script": "a.py", "nproc_per_node": "all"}, "nproc_per_node"),
        ({"script": "a.py", "max_restarts": -1}, "max_restarts"),
        ({"script": "a.py", "stall_timeout": 0}, "stall_timeout"),
        ({"script": "a.py", "keep_checkpoints": 0}, "keep_checkpoints"),
        ({"script": "a.py", "resume": "maybe"}, "'if_same_work'"),
        ({"script": "a.py", "poll_interval": 0}, "poll_interval"),
        ({"script": "a.py", "secrets": {"TOKEN": "hunter2"}}, "variable:NAME"),
        ({"script": "a.py", "env": {"RALLYPOINT_X": "1"}}, "RALLYPOINT_"),
        ({}, "exactly one of script="),
        ({"script": "a.py", "module": "b"}, "exactly one of script="),
    ],
)
def test_a_wrong_parameter_is_answered_while_the_dag_file_is_read(wrong, words):
    with DAG("d"), pytest.raises(InvalidJobError, match="expected") as raised:
        TorchElasticOperator(task_id="t", **wrong)
    assert words in str(raised.value)


def test_a_secret_that_is_no_reference_is_not_repeated_in_the_error():
    with DAG("d"), pytest.raises(InvalidJobError) as raised:
        TorchElasticOperator(task_id="t", script="a.py", secrets={"TOKEN": "hunter2"})
    assert "hunter2" not in str(raised.value)


def test_a_wrong_dask_address_is_answered_while_the_dag_file_is_read():
    with DAG("d"), pytest.raises(InvalidJobError, match="scheduler's address"):
        DaskOperator(task_id="t", script="a.py", cluster="somewhere")


def test_templates_are_left_for_the_run():
    with DAG("d"):
        operator = TorchElasticOperator(
            task_id="t", script="a.py", nnodes="{{ params.nodes }}", max_restarts="{{ 1 }}", env={"A": "{{ ds }}"}
        )
    assert operator.job_options["nnodes"] == "{{ params.nodes }}"


def test_rendered_text_becomes_numbers():
    with DAG("d"):
        operator = TorchElasticOperator(task_id="t", script="/a.py", nnodes="1:2", nproc_per_node="2", max_restarts="3")
    job = operator.job()
    assert job.max_restarts == 3
    assert job.nodes == (1, 2)


def test_a_relative_script_lies_beside_the_dag_file():
    with DAG("d"):
        operator = TorchElasticOperator(task_id="t", script="scripts/train.py", args=["--epochs", 3])
    code = operator.job().code
    assert code.path == str(Path(__file__).parent / "scripts/train.py")
    assert code.args == ("--epochs", "3")


def test_every_job_option_reaches_the_job():
    with DAG("d"):
        operator = DaskOperator(
            task_id="t",
            module="package.module",
            cluster=DaskClusterClass(workers=2),
            job_params={"a": 1},
            job_resources=Resources(cpus=2, memory="1GiB"),
            python="/usr/bin/python3",
        )
    job = operator.job()
    assert (job.cluster.workers, job.params, job.resources.memory_bytes, job.python) == (
        2,
        {"a": 1},
        1 << 30,
        "/usr/bin/python3",
    )


def test_the_connected_client_is_no_argument_for_the_caller():
    @task.dask
    def prepare(client, fraction: float, *, seed: int = 1): ...

    with DAG("d"):
        result = prepare(0.5, seed=2)
    code = result.operator.job().code
    assert code.args == ()
    assert code.kwargs == {"fraction": 0.5, "seed": 2}


def test_a_missing_argument_of_a_decorated_function_is_answered_while_the_dag_file_is_read():
    @task.torch(nproc_per_node=2)
    def train(features: str): ...

    with DAG("d"), pytest.raises(TypeError, match="features"):
        train()


def test_mapped_operators_take_every_option():
    with DAG("d"):
        mapped = TorchElasticOperator.partial(task_id="t", script="a.py", nproc_per_node=2).expand(args=[["1"], ["2"]])
    assert mapped.task_id == "t"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"store": "ftp://somewhere/else"}, "got a store with the scheme 'ftp', expected file:///folder"),
        ({"store": "relative/folder"}, "give the full path"),
        ({"launcher": "teleport://x"}, "got the launcher 'teleport://x', expected one of"),
        ({"launcher": "local://relative"}, "expected local:/// and an absolute folder"),
    ],
)
def test_a_connection_that_can_never_work_ends_the_task_without_a_retry(monkeypatch, extra, words):
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps({"conn_type": "rallypoint", "extra": extra}))
    with DAG("d"):
        operator = TorchElasticOperator(task_id="t", script="/a.py", rallypoint_conn_id="wrong", retries=3)
    ti = SimpleNamespace(id="try-1", dag_id="d", run_id="r", task_id="t", map_index=-1, max_tries=3)
    with pytest.raises(AirflowFailException) as raised:
        operator.execute({"ti": ti})
    assert words in str(raised.value)


@pytest.mark.parametrize(("map_index", "parts"), [(-1, ("d", "r", "t")), (3, ("d", "r", "t", "3"))])
def test_the_key_of_a_task_instance(map_index, parts):
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=map_index)
    assert stage_key(ti).parts == parts


def test_secrets_are_given_by_reference(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    with DAG("d"):
        operator = TorchElasticOperator(task_id="t", script="/a.py", secrets={"TOKEN": "env:MY_TOKEN"})
    gang = operator.job().plan()
    assert gang.secrets["TOKEN"].reveal() == "hunter2"
    assert "hunter2" not in json.dumps(gang.to_json()) + repr(gang) + repr(operator.job())


def test_a_reference_to_nothing_is_an_error(monkeypatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    with DAG("d"):
        operator = TorchElasticOperator(task_id="t", script="/a.py", secrets={"TOKEN": "env:NOT_THERE"})
    with pytest.raises(RallypointError, match="NOT_THERE"):
        operator.job()


def test_waiting_without_a_worker_is_airflows_own_setting():
    code = (
        "from airflow.sdk import DAG, task; from rallypoint.airflow.operators import DaskOperator\n"
        "with DAG('d'):\n"
        "    made = task.torch(task_id='t')(lambda: None)().operator\n"
        "    print(made.deferrable, DaskOperator(task_id='u', script='a.py').deferrable)"
    )
    environment = {**os.environ, "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split()[-2:] == ["True", "True"]


def test_reading_the_example_dags_imports_no_framework():
    code = (
        "import sys, runpy; runpy.run_path(sys.argv[1]); "
        "print([m for m in ('torch', 'dask', 'distributed', 'pandas', 'sklearn') if m in sys.modules])"
    )
    for dag_file in (ROOT / "dags").glob("*.py"):
        done = subprocess.run([sys.executable, "-c", code, str(dag_file)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", dag_file
