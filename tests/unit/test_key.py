"""A stage's key gives ids and paths that every cluster and store takes, and that differ for different stages."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rallypoint.stages.key import StageKey

parts = st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=4).map(tuple)
numbers = st.integers(min_value=1, max_value=999_999)


@given(parts, numbers)
def test_an_attempt_id_is_a_good_name_on_every_cluster(key, number):
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]", StageKey(key).attempt_id(number))


@given(parts, numbers)
def test_an_attempt_id_is_the_same_every_time(key, number):
    assert StageKey(key).attempt_id(number) == StageKey(tuple(key)).attempt_id(number)


@given(parts, parts, numbers, numbers)
def test_different_stages_and_numbers_have_different_ids(first, second, one, other):
    assume((first, one) != (second, other))
    assert StageKey(first).attempt_id(one) != StageKey(second).attempt_id(other)


@given(parts, parts)
def test_different_stages_have_different_paths(first, second):
    assume(first != second)
    assert StageKey(first).path != StageKey(second).path


def test_where_a_part_ends_makes_a_difference():
    assert StageKey(("a/b", "c")).path != StageKey(("a", "b/c")).path
    assert StageKey(("a/b", "c")).attempt_id(1) != StageKey(("a", "b/c")).attempt_id(1)


@given(parts)
def test_a_path_is_safe_in_every_store(key):
    components = StageKey(key).path.split("/")
    assert len(components) == len(key) + 1  # a slash in a part makes no folder
    for component in components:
        assert re.fullmatch(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]{0,99}", component)  # so neither "." nor ".." nor hidden


@given(parts)
def test_no_path_lies_in_another_stages(key):
    longer = StageKey((*key, "x"))
    assert longer.path.startswith(StageKey(key).path + "/")
    assert not StageKey(key).path.startswith(longer.path)


@pytest.mark.parametrize(
    ("run_id", "readable"),
    [
        ("scheduled__2026-11-23T00:00:00+00:00", "scheduled__2026-11-23T00-00-00-00-00="),
        ("manual__2026-11-23T07:15:00.123456+02:00", "manual__2026-11-23T07-15-00.123456-02-00="),
        ("asset_triggered", "asset_triggered"),
    ],
)
def test_a_run_id_of_airflow_stays_readable(run_id, readable):
    assert StageKey(("flights", run_id, "train")).path.startswith(f"stages/flights/{readable}")


def test_an_attempt_id_starts_with_the_stages_name():
    assert re.fullmatch(r"rp-train-model-[0-9a-f]{10}-a7", StageKey(("flights", "r1", "train_model")).attempt_id(7))


def test_the_text_is_the_parts_as_they_are():
    assert StageKey(("flights", "manual__2026-11-23T00:00:00+00:00", "train")).text == (
        "flights/manual__2026-11-23T00:00:00+00:00/train"
    )


@pytest.mark.parametrize("bad", [(), ("",), ("a", "")])
def test_an_empty_part_is_refused(bad):
    with pytest.raises(ValueError, match="expected one or more parts, none of them empty"):
        StageKey(bad)
