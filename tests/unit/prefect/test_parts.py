"""The small parts: keys, states, retries, secrets, blocks, the picture, and errors that travel."""

from __future__ import annotations

import pickle
import uuid
from types import SimpleNamespace

import httpx
import pytest
from prefect.blocks.system import Secret as SecretBlock
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running
from pydantic import ValidationError

from rallypoint.errors import (
    DuplicateStageError,
    InvalidJobError,
    LaunchError,
    PreflightError,
    StageCancelledError,
    StageFailedError,
    StageUserError,
    StoreError,
)
from rallypoint.prefect import (
    RallypointLauncher,
    RallypointRayCluster,
    RallypointSSHHosts,
    RallypointStore,
    retry_condition,
)
from rallypoint.prefect.blocks import credentials_options
from rallypoint.prefect.picture import draw
from rallypoint.prefect.runs import Run, Verdict, look, owner_flow_run
from rallypoint.prefect.secrets import check_references, resolve_secrets
from rallypoint.prefect.showing import _plain, _slug
from rallypoint.spec.failure import Kind
from rallypoint.stages.claims import announced, claim_key, is_announced
from rallypoint.stages.curves import Curve
from rallypoint.stages.failures import FailureReport
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store

ROOT, CHILD, TASK = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()


def _run(**more):
    fields = {"flow_run": CHILD, "flow": "flights", "task_run": TASK, "tries": 1, "root": ROOT, "execution": "e1"}
    return Run(**{**fields, **more})


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_has_nothing_that_a_retry_changes():
    key = _run().key("train")
    assert key.parts == (str(ROOT), "flights", "train")
    retried = _run(flow_run=uuid.uuid4(), task_run=uuid.uuid4(), tries=3, execution="e2")
    assert retried.key("train") == key
    assert _run().key("train", "0a1b").parts == (str(ROOT), "flights", "train", "0a1b")


def test_a_key_outside_of_a_flow_is_local():
    assert Run().key("train").parts == ("local", "train")


def test_no_two_tries_have_one_owner():
    run = _run()
    assert run.owner() != run.owner()
    assert owner_flow_run(run.owner()) == str(CHILD)
    assert owner_flow_run("somebody else") == ""


async def test_one_run_has_one_stage_of_a_name(tmp_path):
    store, key = Store.open(tmp_path), _run().key("train")
    await claim_key(store, key, run="e1", step="a", advice="name it")
    await claim_key(store, key, run="e1", step="a", advice="name it")  # the same task's own retry
    await claim_key(store, key, run="e2", step="b", advice="name it")  # a retry of the flow run
    with pytest.raises(DuplicateStageError, match="name it"):
        await claim_key(store, key, run="e1", step="b", advice="name it")


async def test_one_try_of_a_task_has_one_stage_of_a_name(tmp_path):
    store, key = Store.open(tmp_path), _run().key("train")

    async def claim(run):
        for execution, step in run.claims():
            await claim_key(store, key, run=execution, step=step, advice="name it")

    await claim(_run())
    await claim(_run(tries=2))
    with pytest.raises(DuplicateStageError):
        await claim(_run(tries=2))
    await claim(_run(execution="e2"))
    assert Run().claims() == []


async def test_what_was_announced_is_known(tmp_path):
    store, key = Store.open(tmp_path), StageKey(("r", "train"))
    assert not await is_announced(store, key, 1, "s3://models/churn")
    await announced(store, key, 1, "s3://models/churn")
    assert await is_announced(store, key, 1, "s3://models/churn")
    assert not await is_announced(store, key, 2, "s3://models/churn")


# States --------------------------------------------------------------------------------------------------------------


class Client:
    """Answers with states, as Prefect's client does."""

    def __init__(self, child=None, root=None, task=None):
        self._flow_runs = {CHILD: child or Running(), ROOT: root or Running()}
        self._task = task

    async def read_flow_run(self, flow_run_id):
        return SimpleNamespace(state=self._flow_runs[flow_run_id])

    async def read_task_run(self, task_run_id):
        if self._task is None:
            raise ObjectNotFound(httpx.HTTPError("404"))
        return SimpleNamespace(state=self._task)


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ({}, Verdict.GO_ON),
        ({"child": Cancelling()}, Verdict.STOP),
        ({"child": Cancelled()}, Verdict.STOP),
        ({"root": Cancelling()}, Verdict.STOP),
        ({"task": Cancelled()}, Verdict.STOP),
        ({"child": Crashed()}, Verdict.LEAVE),
        ({"child": Failed(name="TimedOut")}, Verdict.TIMED_OUT),
        ({"child": Failed()}, Verdict.GO_ON),
        ({"child": Completed()}, Verdict.GO_ON),
        ({"child": Pending()}, Verdict.GO_ON),
        ({"task": Running()}, Verdict.GO_ON),
    ],
)
async def test_states_say_what_becomes_of_the_job(states, verdict):
    assert await look(Client(**states), _run()) is verdict


# Retries -------------------------------------------------------------------------------------------------------------


def _report(kind):
    return FailureReport(kind=kind, title="failed", message="it is broken", attempt="rp-train-a1")


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (StageFailedError(_report(Kind.RETRYABLE)), True),
        (StageFailedError(_report(Kind.UNKNOWN)), True),
        (LaunchError("no answer"), True),
        (TimeoutError("too long"), True),
        (StageUserError(_report(Kind.USER)), False),
        (StageCancelledError(_report(Kind.CANCELLED)), False),
        (InvalidJobError("TorchElastic", "nnodes", got=0, expected="1"), False),
        (PreflightError("no torch"), False),
        (DuplicateStageError("twice"), False),
    ],
)
def test_only_what_a_retry_can_help_is_retried(error, retried):
    assert retry_condition(None, None, Failed(data=error)) is retried


@pytest.mark.parametrize(
    "error",
    [
        StageUserError(_report(Kind.USER)),
        StageFailedError(_report(Kind.UNKNOWN)),
        InvalidJobError("TorchElastic", "nnodes", got=0, expected="1", fix="write 1"),
    ],
)
def test_errors_travel_between_processes(error):
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


# Secrets -------------------------------------------------------------------------------------------------------------


async def test_secrets_are_read_by_reference(monkeypatch):
    monkeypatch.setenv("HOST_TOKEN", "s3cret")
    found = await resolve_secrets({"A": "env:HOST_TOKEN", "B": SecretBlock(value="t0ken")})
    assert {name: secret.reveal() for name, secret in found.items()} == {"A": "s3cret", "B": "t0ken"}
    assert "s3cret" not in repr(found)


async def test_a_secret_that_is_not_there_is_named_without_its_value():
    with pytest.raises(InvalidJobError, match="env:NOT_SET_ANYWHERE"):
        await resolve_secrets({"A": "env:NOT_SET_ANYWHERE"})
    for value in ("hunter2", "env:", "block:x", "block:a/b/c/d"):
        with pytest.raises(InvalidJobError) as caught:
            check_references({"A": value})
        assert "hunter2" not in str(caught.value)


# Blocks --------------------------------------------------------------------------------------------------------------


async def test_a_store_block_gives_options_and_hides_them():
    block = RallypointStore(uri="s3://bucket/x", options={"region": "eu", "secret_access_key": "hunter2"})
    assert await block.store_options() == {"region": "eu", "secret_access_key": "hunter2"}
    assert "hunter2" not in repr(block)
    with pytest.raises(ValidationError, match="expected file:///folder"):
        RallypointStore(uri="bucket/x")


def test_credentials_of_prefect_aws_open_a_bucket():
    from prefect_aws import AwsCredentials, MinIOCredentials
    from prefect_aws.client_parameters import AwsClientParameters

    keys = AwsCredentials(aws_access_key_id="id", aws_secret_access_key="hunter2", region_name="eu-1")
    expected = {"access_key_id": "id", "secret_access_key": "hunter2", "region": "eu-1"}
    assert credentials_options(keys) == expected
    where = AwsClientParameters(endpoint_url="http://minio:9000")
    minio = MinIOCredentials(minio_root_user="id", minio_root_password="hunter2", aws_client_parameters=where)
    expected = {"access_key_id": "id", "secret_access_key": "hunter2", "endpoint_url": "http://minio:9000"}
    assert credentials_options(minio) == expected
    with pytest.raises(StoreError, match="boto3's chain"):
        credentials_options(AwsCredentials(profile_name="me"))
    with pytest.raises(StoreError, match="expected AwsCredentials"):
        credentials_options(SecretBlock(value="x"))


def test_a_ray_cluster_block_is_a_launcher():
    block = RallypointRayCluster(
        url="https://ray.example.com", token="hunter2", headers={"X-Team": "ml"}, options={"entrypoint_num_cpus": 1}
    )
    assert block.uri == "ray-jobs+https://ray.example.com"
    options = {"token": "hunter2", "headers": {"X-Team": "ml"}, "verify": True, "entrypoint_num_cpus": 1}
    assert block.launcher_options() == options
    assert "hunter2" not in repr(block)
    from rallypoint.launchers.registry import open_launcher

    assert open_launcher(block.uri, block.launcher_options()).uri.startswith("ray-jobs+https://")
    for url in ("ray-head:8265", "http://user:word@ray-head"):
        with pytest.raises(ValidationError):
            RallypointRayCluster(url=url)


def test_a_block_of_ssh_hosts_is_a_launcher_and_shows_no_secret():
    uri = "ssh://ml@h1,h2?root=/runs"
    block = RallypointSSHHosts(uri=uri, password="hunter2", host_keys="h1 ssh-ed25519 AAAA", options={"port": 23})
    assert block.launcher_options() == {"password": "hunter2", "host_keys": "h1 ssh-ed25519 AAAA", "port": 23}
    assert "hunter2" not in repr(block) + block.uri
    from rallypoint.launchers.registry import open_launcher

    assert open_launcher(block.uri, block.launcher_options()).uri == uri
    for wrong in ("ssh://h1", "ssh://me:hunter2@h1?root=/runs", "local:///runs"):
        with pytest.raises(ValidationError):
            RallypointSSHHosts(uri=wrong)


def test_a_launcher_block_names_a_launcher():
    assert RallypointLauncher(uri="local:///x/runs").uri == "local:///x/runs"
    with pytest.raises(ValidationError, match="launcher's URI"):
        RallypointLauncher(uri="/x/runs")


# What is shown -------------------------------------------------------------------------------------------------------


def test_keys_of_artifacts_are_what_prefect_takes():
    assert _slug("My Flow-train_model/Oslo") == "my-flow-train-model-oslo"
    assert _slug("…") == "stage"


def test_what_a_job_says_is_no_markup():
    assert _plain("<b>*x*</b>\n# y") == r"\<b\>\*x\*\</b\> \# y"
    curve = Curve("<script>")
    for step in range(3):
        curve.add(step, step * 0.5)
    picture = draw([curve], "train & <test>")
    assert "<script>" not in picture
    assert "train &amp; &lt;test&gt;" in picture
    assert picture.count("<polyline") == 1


def test_a_long_curve_makes_no_long_picture():
    curve = Curve("loss")
    for step in range(10_000):
        curve.add(step, 1 / (1 + step))
    picture = draw([curve], "train")
    assert len(picture) < 4_000
    assert ">9999<" in picture
