"""Where a stage's code writes for TensorBoard, in a folder and in a bucket."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rallypoint.stages.store import Store
from rallypoint.worker.context import Placement, StageContext
from rallypoint.worker.mirror import Mirror
from rallypoint.worker.stage import Stage

FILE = "events.out.tfevents.1.host"


@pytest.fixture
def bucket(s3_store_uri, monkeypatch):
    uri, options = s3_store_uri
    store = Store.open(uri, options=options)
    for name, value in store.job_env().items():
        monkeypatch.setenv(name, value)
    return store


def stage(data_uri):
    context = StageContext(
        stage=("d", "r", "t"), attempt="a1", number=1, generation=1, resumed=False, data_uri=data_uri
    )
    return Stage(context, Placement(rank=0, local_rank=0, world_size=1, restart=0), data_uri)


def test_in_a_folder_it_is_the_generations_own(tmp_path):
    folder = stage(f"file://{tmp_path}/generation").tensorboard_dir
    assert folder == f"{tmp_path}/generation/tensorboard"
    assert Path(folder).is_dir()


def test_outside_of_a_stage_it_is_a_folder_too(tmp_path):
    assert Path(Stage(None, Placement(0, 0, 1, 0), f"file://{tmp_path}").tensorboard_dir).is_dir()


async def test_for_a_bucket_what_grows_is_uploaded_again_and_again(bucket):
    mirror = Mirror(f"{bucket.uri}/data/tensorboard", interval=0.05)
    folder = Path(mirror.folder) / "train"
    folder.mkdir()
    for content in (b"one", b"onetwo"):
        (folder / FILE).write_bytes(content)
        deadline = time.monotonic() + 30
        while await bucket.get(f"data/tensorboard/train/{FILE}") != content:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


def test_for_a_bucket_the_end_of_the_process_uploads_the_rest_and_leaves_no_folder(bucket, tmp_path):
    code = f"""
        import atexit, sys
        from rallypoint.worker.context import Placement
        from rallypoint.worker.stage import Stage

        here = Stage(None, Placement(0, 0, 1, 0), "{bucket.uri}/data")
        folder = here.tensorboard_dir
        assert here.tensorboard_dir == folder
        file = open(f"{{folder}}/{FILE}", "w")
        file.write("scalars")
        atexit.register(file.close)  # as frameworks' writers do
        print(folder)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert asyncio.run(bucket.get(f"data/tensorboard/{FILE}")) == b"scalars"
    assert not Path(done.stdout.strip()).exists()
