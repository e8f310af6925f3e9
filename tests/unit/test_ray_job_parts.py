"""The parts of Ray's jobs that need no Ray: torn records, tables of trials, what failures mean."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from rallypoint.frameworks.ray.failures import causes
from rallypoint.frameworks.ray.train import snapshot
from rallypoint.frameworks.ray.train.driver import _known
from rallypoint.frameworks.ray.train.worker import Rounds, entry_words, read_function
from rallypoint.frameworks.ray.tune.table import FAILED, FINISHED, STOPPED, TrialRow, draw, write_csv
from rallypoint.frameworks.ray.tune.trial import read_record, write_record
from rallypoint.frameworks.ray.tune.trials import best_of
from rallypoint.spec.failure import Kind
from rallypoint.stages.failure_table import classify
from rallypoint.worker.storage import open_storage

# Ray Train's record of its checkpoints --------------------------------------------------------------------------------


def _record(folder, text):
    (folder / snapshot.RECORD).write_text(text)


def test_a_torn_record_is_replaced_by_its_last_whole_copy(tmp_path):
    _record(tmp_path, '{"latest": 1}')
    snapshot.keep(tmp_path)
    _record(tmp_path, '{"latest": ')
    snapshot.keep(tmp_path)  # a torn one is not kept
    snapshot.mend(tmp_path)
    assert json.loads((tmp_path / snapshot.RECORD).read_text()) == {"latest": 1}


def test_a_whole_record_is_left_alone(tmp_path):
    _record(tmp_path, '{"latest": 1}')
    snapshot.keep(tmp_path)
    _record(tmp_path, '{"latest": 2}')
    snapshot.mend(tmp_path)
    assert json.loads((tmp_path / snapshot.RECORD).read_text()) == {"latest": 2}


def test_a_torn_record_without_a_copy_is_taken_away(tmp_path):
    _record(tmp_path, "")
    snapshot.mend(tmp_path)
    assert not (tmp_path / snapshot.RECORD).exists()
    snapshot.mend(tmp_path)


# Workers --------------------------------------------------------------------------------------------------------------


def test_worker_groups_are_numbered_in_the_order_of_their_start():
    rounds = Rounds()
    assert [rounds.number(group) for group in ("a", "a", "b", "a", "b", "c")] == [0, 0, 1, 0, 1, 2]


def test_an_entrys_function_travels_by_value(tmp_path):
    file = tmp_path / "function.pkl"
    file.write_bytes(b"pickled")
    kind, path = entry_words(("function", "elsewhere"), read_function(["function", str(file)]))
    assert kind == "function"
    assert Path(path).read_bytes() == b"pickled"
    Path(path).unlink()
    assert entry_words(("script", "a.py", "--x"), read_function(["script", "a.py"])) == ["script", "a.py", "--x"]


# The table of trials --------------------------------------------------------------------------------------------------

ROWS = [
    TrialRow(trial="a", status=FINISHED, config={"rate": 0.1, "kind": "=1+1"}, metrics={"loss": 0.5}, objective=0.5),
    TrialRow(trial="b", status=STOPPED, config={"rate": 10.0, "kind": "x"}, metrics={"loss": 0.2}, objective=0.2),
    TrialRow(trial="c", status=FAILED, config={"rate": 1.0, "kind": "x"}, metrics={"loss": 0.1}, objective=0.1,
             failure={"exception": "ValueError", "message": "no\nmore"}),
    TrialRow(trial="d", status=FINISHED, config={"rate": 2.0, "kind": "x"}),
]  # fmt: skip


def test_the_table_has_a_line_for_each_trial_and_no_formula(tmp_path):
    write_csv(ROWS, tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[0]["kind"] == "'=1+1"
    assert (rows[2]["error"], rows[1]["loss"], rows[3]["loss"]) == ("ValueError: no", "0.2", "")


@pytest.mark.parametrize(("mode", "best"), [("min", "b"), ("max", "a")])
def test_the_best_trial_is_one_that_has_not_failed(mode, best):
    assert best_of(ROWS, mode).trial == best
    assert best_of(ROWS[2:], mode) is None


def test_the_picture_is_drawn_without_a_display(tmp_path):
    pytest.importorskip("matplotlib")
    draw(ROWS, metric="loss", mode="min", path=tmp_path / "trials.png")
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_trial_returned_is_read_back_whole(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    assert read_record(storage, "returned") is None
    write_record(storage, "returned", {"value": 1})
    write_record(storage, "returned", {"value": 2})
    assert read_record(storage, "returned") == {"value": 2}


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exception", "message", "title", "kind"),
    [
        ("ray.exceptions.ActorDiedError", "Worker exit type: SYSTEM_ERROR", "a Ray worker was lost", Kind.RETRYABLE),
        ("ray.exceptions.WorkerCrashedError", "", "a Ray worker was lost", Kind.RETRYABLE),
        ("ray.exceptions.NodeDiedError", "", "a Ray node was lost", Kind.RETRYABLE),
        ("ray.exceptions.OutOfMemoryError", "", "out of memory", Kind.RETRYABLE),
        (
            "ray.exceptions.ActorDiedError",
            "Task was killed due to the node running low on memory.",
            "out of memory",
            Kind.RETRYABLE,
        ),
        ("ray.exceptions.OutOfDiskError", "", "disk full", Kind.RETRYABLE),
        ("RuntimeError", "Version mismatch: The cluster was started with: Ray: 2.50", "Ray is of another version there",
         Kind.USER),
        ("ray.exceptions.RuntimeEnvSetupError", "", "a Ray worker's environment could not be made", Kind.USER),
        ("ValueError", "Trial returned a result which did not include the specified metric(s) `auc`",
         "no trial has a result", Kind.USER),
        ("rallypoint.frameworks.ray.tune.driver.SweepFailedError", "", "too many trials failed", Kind.UNKNOWN),
        ("ray.exceptions.GetTimeoutError", "", "failed", Kind.UNKNOWN),
    ],
)  # fmt: skip
def test_what_ray_says_is_classified(exception, message, title, kind):
    rule = classify((), exception=exception, message=message, signal=None, exit_code=None)
    assert (rule.name, rule.kind) == (title, kind)


def test_other_errors_stand_for_themselves():
    assert causes(ValueError("x")) == []


def test_what_an_older_ray_train_does_not_know_is_left_out_only_at_its_default():
    config = dataclasses.make_dataclass("FailureConfig", [("max_failures", int, 0)])
    assert _known(config, {"max_failures": 2, "max_preemption_failures": -1}).max_failures == 2
    pytest.importorskip("ray")
    with pytest.raises(TypeError, match="does not know: install a newer Ray"):
        _known(config, {"max_failures": 2, "max_preemption_failures": 3})
