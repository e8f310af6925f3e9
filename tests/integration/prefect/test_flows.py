"""Flows of this process on a real server: tasks, keys, retries, errors, secrets, assets."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def runs_of(api, flow_run_id, name):
    return [run for run in api.task_runs(flow_run_id) if run["name"].startswith(name)]


# Ways to call --------------------------------------------------------------------------------------------------------


def test_a_task_is_called_submitted_and_mapped(tasks, api, tmp_path):
    from prefect import flow

    @tasks.python_task
    def add(left: int, right: int = 1) -> int:
        return left + right

    @flow
    def adds():
        futures = [add.with_options(name="submitted").submit(2), *add.map([3, 4], right=10)]
        return [add(1), *(future.result() for future in futures)]

    assert adds() == [2, 3, 13, 14]


async def test_a_task_is_awaited_and_submitted_in_an_async_flow(tasks, tmp_path):
    from prefect import flow

    from rallypoint import PythonJob, Script
    from rallypoint.prefect import arun_stage

    script = tmp_path / "job.py"
    script.write_text("import rallypoint; rallypoint.stage().result({'script': True})")

    @tasks.python_task
    def double(value: int) -> int:
        return 2 * value

    @flow
    async def doubles():
        future = double.with_options(name="submitted").submit(3)
        return [await double.aio(2), future.result(), await arun_stage(PythonJob(Script(str(script))), name="script")]

    assert await doubles() == [4, 6, {"script": True}]


def test_a_job_is_a_node_of_the_flow_and_its_own_in_a_task(tasks, api, tmp_path):
    from prefect import flow, task
    from prefect.runtime import flow_run

    from rallypoint import PythonJob, Script
    from rallypoint.prefect import run_stage

    script = tmp_path / "job.py"
    script.write_text("import rallypoint, sys; rallypoint.stage().result(sys.argv[1:])")

    @task
    def inner():
        return run_stage(PythonJob(Script(str(script), ["b"])), name="inside")

    @flow
    def both():
        return flow_run.id, run_stage(PythonJob(Script(str(script), ["a"])), name="node", retries=1), inner()

    run, *results = both()
    assert results == [["a"], ["b"]]
    names = sorted(each["name"].rpartition("-")[0] for each in api.task_runs(run))
    assert names in (["inner", "node"], [])  # the server learns of task runs a little later
    assert {"both-node-stage", "both-inside-stage"} <= set(api.artifacts(run))


def test_outside_of_a_flow_the_key_is_local(tasks, tmp_path, store):
    import uuid

    from rallypoint import Function, PythonJob
    from rallypoint.prefect import run_stage

    name = f"alone-{uuid.uuid4().hex[:8]}"

    def count(folder, by):
        with Path(folder, "calls").open("a") as file:
            file.write(f"{by}\n")
        return by

    job = PythonJob(Function(count, (), {"folder": str(tmp_path), "by": 1}, by_value=True))
    assert run_stage(job, name=name) == 1
    assert run_stage(job, name=name) == 1  # it has succeeded
    other = PythonJob(Function(count, (), {"folder": str(tmp_path), "by": 2}, by_value=True))
    assert run_stage(other, name=name) == 2  # other work
    assert run_stage(other, name=name, rerun=True) == 2
    assert (tmp_path / "calls").read_text().split() == ["1", "2", "2"]
    assert (store / "stages" / "local" / name).is_dir()


async def test_outside_of_a_flow_a_job_is_awaited_and_a_task_called(prefect, tasks, witness):
    import uuid

    from rallypoint import Function, PythonJob
    from rallypoint.prefect import arun_stage

    def count(folder):
        with Path(folder, "calls").open("a") as file:
            file.write("call\n")
        return "counted"

    name = f"alone-{uuid.uuid4().hex[:8]}"
    job = PythonJob(Function(count, (), {"folder": str(witness)}, by_value=True))
    assert await arun_stage(job, name=name) == "counted"
    assert await arun_stage(job, name=name) == "counted"  # it has succeeded
    assert witness.lines("calls") == ["call"]
    alone = tasks.prepare.with_options(name=f"task-{name}")
    for _ in range(2):
        assert await asyncio.to_thread(alone, str(witness)) == f"{witness}/data"
    assert await alone.aio(str(witness)) == f"{witness}/data"
    assert witness.lines("prepared") == ["prepared"]


# Names ---------------------------------------------------------------------------------------------------------------


def test_two_stages_of_one_name_are_an_error_that_says_what_to_do(tasks, tmp_path):
    from prefect import flow

    from rallypoint.errors import DuplicateStageError

    @tasks.python_task(retries=2)
    def same(value: int) -> int:
        return value

    @flow
    def one_after_the_other():
        same(1)
        same(2)

    @flow
    def at_once():
        for future in [same.submit(1), same.submit(2)]:
            future.result()

    @flow
    def equal_inputs():
        same.map([1, 1]).result()

    @flow
    def inner(value):
        return same(value)

    @flow
    def in_subflows():
        inner(1)
        inner(2)

    for pipeline in (one_after_the_other, at_once, equal_inputs, in_subflows):
        began = time.monotonic()
        with pytest.raises(DuplicateStageError, match=r"with_options\(name="):
            pipeline()
        assert time.monotonic() - began < 60

    @flow
    def named():
        by_name = same.with_options(stage_name="same-{value}")
        return by_name(1), by_name(2), same.with_options(name="third")(3)

    assert named() == (1, 2, 3)


# What is shown and kept ----------------------------------------------------------------------------------------------


def test_a_stage_shows_progress_processes_curves_links_and_its_log(tasks, api, until, tmp_path):
    from prefect import flow
    from prefect.runtime import flow_run

    @tasks.python_task
    def talk(lines: int) -> None:
        import rallypoint

        stage = rallypoint.stage()
        stage.link("dashboard", "http://127.0.0.1:8265/#/jobs")
        for number in range(lines):
            print(f"line {number}.", flush=True)  # noqa: T201 - what a job prints is its log
        for step in (1, 2, 3):
            stage.report(step=step, total=3, unit="epoch", loss=1 / step)

    @flow
    def talks():
        talk(400)
        return flow_run.id

    run = talks()
    shown = api.artifacts(run)
    kinds = {key.removeprefix("talks-talk-"): artifact["type"] for key, artifact in shown.items()}
    assert kinds == {
        "stage": "markdown", "progress": "progress", "ranks": "table", "metrics": "image",
        "link-dashboard": "markdown", "link-logs": "markdown",
    }  # fmt: skip
    data = {key.removeprefix("talks-talk-"): artifact["data"] for key, artifact in shown.items()}
    assert "rallypoint logs rp-talk-" in data["stage"]
    assert data["progress"] == 100
    (process,) = json.loads(data["ranks"])
    assert (process["process"], process["exit code"]) == ("main-0", 0)
    assert data["metrics"].startswith("data:image/svg+xml;base64,")
    assert re.fullmatch(r"\[logs\]\(http://.*/runs/task-run/[0-9a-f-]{36}\?tab=Logs\)", data["link-logs"])
    assert data["link-dashboard"] == "[dashboard](http://127.0.0.1:8265/#/jobs)"

    # The lines of the job come in few records: Prefect keeps a row for each.
    def records():
        wanted = {"flow_run_id": {"any_": [str(run)]}}
        return [log["message"] for log in api.post("/logs/filter", logs=wanted, sort="TIMESTAMP_ASC")]

    until(lambda: any("line 399." in record for record in records()), "the last line is in the run's log")
    said = "\n".join(records())
    assert all(f"line {number}." in said for number in range(400))
    assert len(records()) < 30
    assert max(map(len, records())) < 25_000  # what Prefect Cloud takes


def test_the_ranks_of_a_training_are_a_table(tasks, api):
    from prefect import flow
    from prefect.runtime import flow_run

    from rallypoint.prefect import torch_task

    @torch_task(nproc_per_node=2)
    def ranked() -> int:
        import rallypoint

        return rallypoint.stage().world_size

    @flow
    def trains():
        return flow_run.id, ranked()

    run, world_size = trains()
    assert world_size == 2
    rows = json.loads(api.artifacts(run)["trains-ranked-ranks"]["data"])
    assert [(row["rank"], row["exit code"]) for row in rows if row["rank"]] == [("0 of 2", 0), ("1 of 2", 0)]


def test_secrets_reach_the_job_and_nothing_else(tasks, api, tmp_path, store, instance):
    from prefect import flow
    from prefect.blocks.system import Secret
    from prefect.runtime import flow_run

    Secret(value="s3cret-of-a-block").save("rallypoint-test", overwrite=True)

    @tasks.python_task(
        secrets={"BLOCK": "block:secret/rallypoint-test", "HOST": "env:TOKEN_OF_THE_HOST", "FIELD": Secret(value="xyz")}
    )
    def tell() -> list[int]:
        import os

        return [len(os.environ[name]) for name in ("BLOCK", "HOST", "FIELD")]

    @flow
    def secretive():
        return flow_run.id, tell()

    run, lengths = secretive()
    assert lengths == [17, 13, 3]
    shown = str(api.artifacts(run)) + api.logs(run) + str(api.task_runs(run))
    kept = b"".join(path.read_bytes() for path in store.rglob("*.json"))
    for secret in ("s3cret-of-a-block", "from-the-host"):
        assert secret not in shown
        assert secret.encode() not in kept


def test_blocks_say_where_a_stage_is(tasks, api, tmp_path):
    from prefect import flow

    from rallypoint.prefect import RallypointLauncher, RallypointStore

    RallypointStore(uri=f"file://{tmp_path}/kept").save("rallypoint-test", overwrite=True)
    bucket = RallypointStore(uri="s3://bucket/x", options={"secret_access_key": "hunter2"}, credentials="secret/none")
    bucket.save("rallypoint-bucket", overwrite=True)
    assert "hunter2" not in str(api.post("/block_documents/filter", include_secrets=False))
    assert RallypointStore.load("rallypoint-bucket") == bucket
    RallypointLauncher(uri=f"local://{tmp_path}/elsewhere").save("rallypoint-test", overwrite=True)

    @tasks.python_task(store="rallypoint-test", launcher="rallypoint-launcher/rallypoint-test")
    def where() -> str:
        import rallypoint

        return rallypoint.stage().data_uri

    @flow
    def placed():
        return where()

    assert placed().startswith(f"file://{tmp_path}/kept/")
    assert list((tmp_path / "elsewhere").iterdir())


def test_the_server_knows_the_blocks_when_it_has_started(instance):
    assert {"rallypoint-store", "rallypoint-launcher", "rallypoint-ray-cluster"} <= instance.types_at_start


def test_credentials_of_prefect_aws_open_the_bucket_of_a_store(tasks, s3_store_uri):
    from prefect import flow
    from prefect_aws import AwsCredentials, MinIOCredentials
    from prefect_aws.client_parameters import AwsClientParameters

    from rallypoint.prefect import RallypointStore

    uri, keys = s3_store_uri
    more = {
        "region_name": keys["region"],
        "aws_client_parameters": AwsClientParameters(endpoint_url=keys["endpoint_url"]),
    }
    names = keys["aws_access_key_id"], keys["aws_secret_access_key"]
    aws = AwsCredentials(aws_access_key_id=names[0], aws_secret_access_key=names[1], **more)
    minio = MinIOCredentials(minio_root_user=names[0], minio_root_password=names[1], **more)
    for block in (aws, minio):
        block.save("rallypoint-test", overwrite=True)

    @tasks.python_task
    def where() -> str:
        import rallypoint

        return rallypoint.stage().data_uri

    @flow
    def placed(credentials):
        store = RallypointStore(uri=uri, credentials=f"{credentials}/rallypoint-test")
        return where.with_options(name=f"where-{credentials}", store=store)()

    for block in (aws, minio):
        assert placed(block.get_block_type_slug()).startswith(uri)


def test_a_block_that_is_not_there_is_named(tasks):
    from prefect import flow

    from rallypoint.errors import StoreError
    from rallypoint.prefect import RallypointStore

    @flow
    def nowhere():
        return tasks.prepare.with_options(store="no-such-block")("x")

    with pytest.raises(StoreError, match="no-such-block"):
        nowhere()

    bucket = RallypointStore(uri="s3://bucket/x", credentials="secret/no-such-credentials")

    @flow
    def without_credentials():
        return tasks.prepare.with_options(store=bucket)("x")

    with pytest.raises(StoreError, match="no-such-credentials"):
        without_credentials()


def test_an_asset_knows_what_it_was_made_from(tasks, api, until, tmp_path):
    from prefect import flow

    key = f"test://lineage/{tmp_path.name}"

    @tasks.python_task(assets=[f"{key}/features"])
    def features() -> str:
        import rallypoint

        rallypoint.stage().report(rows=3)
        return "features"

    @tasks.python_task(assets=[f"{key}/model"])
    def model(data: str) -> str:
        return data

    @flow
    def chain():
        return model(features())

    assert chain() == "features"
    wanted = {"any_resource": {"id": [f"{key}/model"]}}
    (event,) = until(lambda: api.events("prefect.asset.materialization.succeeded", **wanted), "the event")
    related = {each["prefect.resource.id"] for each in event["related"]}
    assert {f"{key}/features", "python"} <= related
    wanted = {"any_resource": {"id": [f"{key}/features"]}}
    payloads = [e["payload"] for e in api.events("prefect.asset.materialization.succeeded", **wanted)]
    assert {"rows": 3} in [payload["metrics"] for payload in payloads]


# Services ------------------------------------------------------------------------------------------------------------


def test_a_service_lasts_as_long_as_its_block(tasks, witness, until):
    from prefect import flow

    from rallypoint.errors import InvalidJobError
    from rallypoint.prefect import aservice, service

    @flow
    def uses():
        with service(tasks.Service(env={"WITNESS": str(witness)}), name="service") as address:
            assert witness.service_lives
            return address["answer"], tasks.prepare.with_options(uses=[address])(str(witness))

    assert uses() == (42, f"{witness}/data")
    until(lambda: not witness.service_lives, "the service has ended")

    @flow
    async def fails():
        async with aservice(tasks.Service(env={"WITNESS": str(witness)}), name="service"):
            msg = "the flow is wrong"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="the flow is wrong"):
        asyncio.run(fails())
    until(lambda: not witness.service_lives, "the service has ended")
    with pytest.raises(InvalidJobError, match="a service"), service(tasks.prepare.job("x"), name="no"):
        pass
