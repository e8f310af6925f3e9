"""The operator of TensorFlow Serving: what a DAG file is told, and the job that its fields become."""

from __future__ import annotations

import pytest

from rallypoint import TFServingDeploy, TFServingProbe, TFServingSignature
from rallypoint.airflow.operators import TFServingDeployOperator
from rallypoint.errors import InvalidJobError

WHERE = {
    "task_id": "t",
    "model": "/models/new",
    "name": "flights",
    "base_path": "/srv/flights",
    "rest_url": "http://127.0.0.1:8501",
}


def test_a_deploy_becomes_its_job():
    signature = TFServingSignature(inputs={"x": ("float32", [None, 3])})
    probe = TFServingProbe(body={"instances": [[1, 2, 3]]}, expect={"predictions": [[6]]})
    job = TFServingDeployOperator(**WHERE, signature=signature, probe=probe, keep_versions=2, env={"A": "1"}).job()
    assert isinstance(job, TFServingDeploy)
    assert job.settings()["signature"] == signature.to_json()
    assert (job.probe, job.keep_versions, job.env) == (probe, 2, {"A": "1"})


def test_a_service_that_the_deploy_needs_is_kept_alive_meanwhile():
    service = {"store": "file:///s", "stage": ["d", "r", "server"], "attempt": 1, "lease": 60}
    job = TFServingDeployOperator(**WHERE, uses=[{"service": service, "uses": []}]).job()
    assert [reference.stage for reference in job.services()] == [("d", "r", "server")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rest_url": "host:8501"}, "an address such as"),
        ({"labels": ["stable"]}, "config_file= as well"),
        ({"secrets": {"TF_SERVING_HEADERS": '{"Authorization": "x"}'}}, "variable:NAME"),
    ],
)
def test_what_is_wrong_is_told_while_the_dag_file_is_read(wrong, message):
    with pytest.raises(InvalidJobError, match=message):
        TFServingDeployOperator(**{**WHERE, **wrong})


def test_what_is_rendered_later_is_checked_later():
    operator = TFServingDeployOperator(
        **{**WHERE, "model": "{{ ti.xcom_pull('train')['model'] }}", "rest_url": "{{ params.rest_url }}"}
    )
    with pytest.raises(InvalidJobError, match="a full path"):
        operator.job()
