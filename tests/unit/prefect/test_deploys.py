"""Deploys in a flow: they hold no code of the user's, so they are jobs that `run_stage` and `stage_task` take whole."""

from __future__ import annotations

import pytest

from rallypoint import RayServe, TFServingDeploy
from rallypoint.errors import InvalidJobError
from rallypoint.prefect import retry_condition, stage_task

TF = TFServingDeploy(model="/m", name="line", base_path="/srv/line", rest_url="http://127.0.0.1:8501")
RAY = RayServe(name="echo", dashboard_url="http://127.0.0.1:8265", import_path="m:app")
HEADERS = "block:secret/serving"


@pytest.mark.parametrize(("job", "secret"), [(TF, "TF_SERVING_HEADERS"), (RAY, "RAY_AUTH_TOKEN")])
def test_a_deploy_is_a_task_with_prefects_options_and_secrets_by_reference(job, secret):
    task = stage_task(job, name="deploy", retries=2, retry_delay_seconds=30, tags=["prod"], secrets={secret: HEADERS})
    assert (task.name, task.retries, task.retry_delay_seconds, task.tags) == ("deploy", 2, 30, {"prod"})
    assert task.retry_condition_fn is retry_condition
    assert task.job() is job
    assert dict(job.secrets) == {}
    assert task.recipe.secrets == {secret: HEADERS}


@pytest.mark.parametrize("job", [TF, RAY])
def test_what_the_deploy_is_stands_in_the_job_alone(job):
    with pytest.raises(InvalidJobError, match=r"timeout=…\): got 5, expected it in the job itself"):
        stage_task(job, name="deploy", timeout=5)
    with pytest.raises(InvalidJobError, match="secrets"):
        stage_task(job, name="deploy", secrets={"TF_SERVING_HEADERS": '{"Authorization": "Bearer x"}'})
