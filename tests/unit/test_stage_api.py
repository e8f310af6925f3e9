"""What user code sees of its stage: checkpoints, artifacts, progress and the result; a no-op outside of one."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from rallypoint.worker import process
from rallypoint.worker.context import Placement, StageContext
from rallypoint.worker.events import EventWriter
from rallypoint.worker.process import NotJSONError, to_json_value
from rallypoint.worker.stage import Stage


@pytest.fixture
def uri(tmp_path):
    return f"file://{tmp_path}/store/generation-1"


@pytest.fixture
def make(uri):
    """Makes a stage of the same generation, as another process or attempt would see it."""

    def stage(*, rank=0, world_size=2, keep=3, number=1, resumed=False, params=None):
        context = StageContext(
            stage=("flights", "r1", "train"),
            attempt=f"rp-train-a{number}",
            number=number,
            generation=1,
            resumed=resumed,
            data_uri=uri,
            params=params or {},
            keep_checkpoints=keep,
        )
        return Stage(context, Placement(rank=rank, local_rank=rank, world_size=world_size, restart=0), uri)

    return stage


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Reads the events that this process wrote."""
    monkeypatch.setattr(process, "_writer", EventWriter(f"file://{tmp_path}/events", "rank-0"))

    def read(kind):
        lines = (tmp_path / "events/rank-0.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == kind]

    return read


def _writes(text):
    return lambda folder: Path(folder, "state").write_text(text)


def _state(checkpoint):
    return Path(checkpoint, "state").read_text()


def _path(uri):
    return Path(unquote(urlsplit(uri).path))


def _kept(stage):
    return sorted(int(path.name.removeprefix("step-")) for path in Path(stage.checkpoint_dir).glob("[!.]*"))


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_a_new_generation_has_no_checkpoint(make):
    assert make().latest_checkpoint() is None


def test_the_next_attempt_finds_what_the_last_one_saved(make):
    make().save_checkpoint(_writes("epoch 1"))
    assert _state(make(number=2, resumed=True).latest_checkpoint()) == "epoch 1"


def test_every_rank_finds_it(make):
    make().save_checkpoint(_writes("epoch 1"))
    assert _state(make(rank=1).latest_checkpoint()) == "epoch 1"


def test_only_rank_0_saves(make):
    def write(folder):
        pytest.fail("another rank wrote")

    assert make(rank=1).save_checkpoint(write) is None
    assert make().latest_checkpoint() is None


def test_without_a_step_checkpoints_are_counted(make):
    stage = make()
    for text in ("a", "b"):
        stage.save_checkpoint(_writes(text))
    assert _kept(stage) == [1, 2]
    make(number=2).save_checkpoint(_writes("c"))
    assert _kept(stage) == [1, 2, 3]


def test_the_largest_step_is_the_latest_not_the_last_saved(make):
    stage = make()
    for step in (9, 100, 20):
        stage.save_checkpoint(_writes(f"step {step}"), step=step)
    assert _state(stage.latest_checkpoint()) == "step 100"


@pytest.mark.parametrize(
    ("keep_of_the_job", "keep", "kept"),
    [(3, None, [3, 4, 5]), (2, None, [4, 5]), (3, 1, [5]), (1, 4, [2, 3, 4, 5]), (3, 0, [5])],
)
def test_the_last_few_are_kept(make, keep_of_the_job, keep, kept):
    stage = make(keep=keep_of_the_job)
    for step in range(1, 6):
        stage.save_checkpoint(_writes("x"), step=step, keep=keep)
    assert _kept(stage) == kept


def test_saving_a_step_again_replaces_it(make):
    stage = make()
    for text in ("old", "new"):
        stage.save_checkpoint(_writes(text), step=1)
    assert _kept(stage) == [1]
    assert _state(stage.latest_checkpoint()) == "new"


@pytest.mark.parametrize("save", ["checkpoint", "artifact", "file"])
def test_what_could_not_be_written_whole_takes_no_room(make, uri, tmp_path, monkeypatch, save):
    stage = make()

    def fill(*paths):
        Path(paths[-1], "model" if Path(paths[-1]).is_dir() else "").write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "whole").touch()
    monkeypatch.setattr(shutil, "copyfile", fill)
    ways = {
        "checkpoint": lambda: stage.save_checkpoint(fill),
        "artifact": lambda: stage.save_artifact(fill, name="model"),
        "file": lambda: stage.save_artifact(tmp_path / "whole"),
    }
    with pytest.raises(OSError, match="No space left on device"):
        ways[save]()
    assert [path for path in _path(uri).rglob("*") if path.is_file()] == []


def test_what_was_just_saved_is_never_removed(make):
    stage = make(keep=1)
    stage.save_checkpoint(_writes("later"), step=5)
    stage.save_checkpoint(_writes("earlier"), step=1)
    assert 1 in _kept(stage)


def test_a_checkpoint_that_fails_leaves_the_one_before(make):
    stage = make()
    stage.save_checkpoint(_writes("whole"))

    def half(folder):
        Path(folder, "state").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        stage.save_checkpoint(half)
    assert _state(stage.latest_checkpoint()) == "whole"
    assert _kept(stage) == [1]


def test_a_negative_step_is_refused(make):
    with pytest.raises(ValueError, match="got -1, expected 0 or more"):
        make().save_checkpoint(_writes("x"), step=-1)


def test_a_checkpoint_is_reported_with_its_step_and_size(make, events):
    uri = make().save_checkpoint(_writes("12345"), step=7)
    (event,) = events("artifact")
    assert (event["kind"], event["step"], event["bytes"], event["uri"]) == ("checkpoint", 7, 5, uri)
    assert event["seconds"] >= 0


def test_code_that_manages_its_own_checkpoints_has_a_folder_for_them(make):
    Path(make().checkpoint_dir, "own").write_text("x")
    assert Path(make(number=2).checkpoint_dir, "own").read_text() == "x"


# Artifacts -----------------------------------------------------------------------------------------------------------


def test_a_file_is_kept_under_its_name(make, tmp_path, events):
    (tmp_path / "model.pt").write_text("weights")
    uri = make().save_artifact(tmp_path / "model.pt")
    assert uri.endswith("/artifacts/model.pt")
    assert _path(uri).read_text() == "weights"
    assert (tmp_path / "model.pt").exists()
    (event,) = events("artifact")
    assert (event["kind"], event["name"], event["bytes"], event["uri"]) == ("artifact", "model.pt", 7, uri)


def test_a_folder_is_kept_and_stays_where_it_was(make, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a").write_text("1")
    assert (_path(make().save_artifact(str(tmp_path / "model") + "/")) / "a").read_text() == "1"
    assert (tmp_path / "model/a").exists()


def test_a_function_writes_into_a_folder(make, events):
    uri = make().save_artifact(_writes("12345"), name="report")
    assert (_path(uri) / "state").read_text() == "12345"
    assert events("artifact")[0]["bytes"] == 5


def test_a_function_needs_a_name(make):
    with pytest.raises(ValueError, match="expected save_artifact"):
        make().save_artifact(_writes("x"))


def test_an_artifact_may_have_another_name_than_its_file(make, tmp_path):
    (tmp_path / "tmp123").write_text("x")
    assert make().save_artifact(tmp_path / "tmp123", name="model.pt").endswith("/artifacts/model.pt")


def test_on_other_ranks_nothing_is_kept_and_the_uri_is_the_same(make, uri):
    assert make(rank=1).save_artifact(_writes("x"), name="m") == make().save_artifact(_writes("x"), name="m")
    assert make(rank=1).save_artifact(_writes("x"), name="n") == f"{uri}/artifacts/n"
    assert not _path(f"{uri}/artifacts/n").exists()


# Progress, links, the result -----------------------------------------------------------------------------------------


def test_progress_is_reported_with_metrics(make, events):
    make().report(step=3, total=10, loss=0.5)
    (event,) = events("progress")
    assert (event["step"], event["total"], event["metrics"]) == (3, 10, {"loss": 0.5})


def test_metrics_alone_are_no_progress(make, events):
    make().report(loss=0.5)
    assert events("metrics")[0]["metrics"] == {"loss": 0.5}
    assert events("progress") == []


def test_other_ranks_report_nothing(make, events):
    make(rank=1).report(step=1, loss=0.5)
    make(rank=1).result({"a": 1})
    make().link("dashboard", "http://127.0.0.1:8787")
    assert events("progress") == events("result") == []
    assert len(events("link")) == 1


class Scalar:
    """Looks as a one-element tensor or a numpy scalar does."""

    def __init__(self, value, elements=1):
        self.value, self.elements = value, elements

    def item(self):
        return self.value

    def numel(self):
        return self.elements


class NumpyLike(Scalar):
    numel = None

    @property
    def size(self):
        return self.elements


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        ({"a": [1, 2.5, "x", True, None]}, {"a": [1, 2.5, "x", True, None]}),
        ((1, 2), [1, 2]),
        (math.nan, None),
        ({"loss": math.inf}, {"loss": None}),
        (Scalar(0.5), 0.5),
        ({"loss": Scalar(math.nan)}, {"loss": None}),
        (NumpyLike(3), 3),
    ],
)
def test_a_result_becomes_plain_json(value, plain):
    assert to_json_value(value) == plain
    json.dumps(to_json_value(value), allow_nan=False)


def test_numpys_and_torchs_scalars_become_numbers():
    import numpy as np
    import torch

    values = [
        np.float32(0.5),
        np.float64(0.5),
        np.int64(3),
        np.bool_(True),
        np.array(2),
        torch.tensor(0.5),
        torch.tensor([4]),
    ]
    assert to_json_value(values) == [0.5, 0.5, 3, True, 2, 0.5, 4]
    assert [type(value) for value in to_json_value(values)] == [float, np.float64, int, bool, int, float, int]


@pytest.mark.parametrize(
    "value", [object(), {1: "a"}, {"model": object()}, [b"bytes"], Scalar([1, 2], elements=2), {1, 2}, print]
)
def test_what_json_cannot_hold_is_refused_with_what_to_do(make, value):
    with pytest.raises(NotJSONError, match="expected"):
        make().result(value)


def test_the_last_result_of_rank_0_is_the_result(make, events):
    make().result({"loss": 0.5})
    make().result({"loss": 0.4})
    assert [event["value"] for event in events("result")] == [{"loss": 0.5}, {"loss": 0.4}]


# What is known -------------------------------------------------------------------------------------------------------


def test_a_stage_knows_its_name_attempt_rank_and_params(make, uri):
    stage = make(rank=1, world_size=4, number=3, resumed=True, params={"lr": 0.1})
    assert (stage.active, stage.name, stage.attempt, stage.resumed) == (True, "flights/r1/train", 3, True)
    assert (stage.rank, stage.local_rank, stage.world_size) == (1, 1, 4)
    assert (stage.params, stage.data_uri) == ({"lr": 0.1}, uri)


def test_a_context_is_the_same_in_the_job(make, tmp_path, monkeypatch):
    context = make(params={"lr": 0.1})._context
    (tmp_path / "stage.json").write_text(context.to_json())
    monkeypatch.setenv("RALLYPOINT_STAGE_FILE", str(tmp_path / "stage.json"))
    assert StageContext.from_environment() == context


# Outside of a stage --------------------------------------------------------------------------------------------------


def test_outside_of_a_stage_every_call_works_and_keeps_nothing(tmp_path):
    code = """
        from pathlib import Path
        import rallypoint
        stage = rallypoint.stage()
        assert stage is rallypoint.stage()
        assert not stage.active and not stage.resumed
        assert (stage.name, stage.attempt, stage.rank, stage.world_size, stage.params) == ("local", 1, 0, 1, {})
        assert stage.latest_checkpoint() is None
        written = []
        assert stage.save_checkpoint(lambda folder: written.append(Path(folder).is_dir())) is None
        assert written == [True]
        assert stage.latest_checkpoint() is None
        stage.report(step=1, total=2, loss=0.5)
        stage.link("x", "http://x")
        stage.result({"a": 1})
        Path("model").write_text("weights")
        print(stage.save_artifact("model"))
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("RALLYPOINT_")}
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env | {"TMPDIR": str(tmp_path / "tmp")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _path(done.stdout.strip()).read_text() == "weights"
