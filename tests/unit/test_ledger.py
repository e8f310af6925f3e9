"""The ledger: each word is written once, the first one counts, and a stage is found by its name."""

from __future__ import annotations

import asyncio

import pytest

from rallypoint.errors import StageNotFoundError
from rallypoint.launchers.base import Handle
from rallypoint.spec.failure import Kind
from rallypoint.stages.failures import FailureReport
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger, Record, list_stages
from rallypoint.stages.outcome import Outcome
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

KEY = StageKey(("flights", "manual__2026-11-23T00:00:00+00:00", "train"))


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def ledger(store):
    return Ledger(store, KEY)


def _record(number=1, *, key=KEY, owner="try-1", **more):
    return Record(
        number=number,
        id=key.attempt_id(number),
        generation=1,
        resumed=False,
        kind="torch",
        fingerprint={"entry": "script train.py"},
        launcher="local:///runs",
        owner=owner,
        **more,
    )


def _failed(title="killed"):
    report = FailureReport(kind=Kind.RETRYABLE, title=title, process="rank 3", last_lines=("a", "b"))
    return Outcome(state=State.FAILED, failure=report)


async def test_a_new_stage_has_no_attempt(ledger):
    assert await ledger.last() is None
    assert await ledger.numbers() == []
    assert await ledger.read(1) is None


async def test_what_was_claimed_is_read_back(ledger, store):
    record = _record(marker=3, why="first attempt")
    assert await ledger.claim(record)
    entry = await Ledger(store, KEY).last()
    assert entry.record == record
    assert (entry.owner, entry.handle, entry.outcome) == ("try-1", None, None)
    assert (entry.cancel_asked, entry.rerun_asked) == (None, False)


async def test_of_many_who_claim_a_number_at_once_one_wins(store):
    owners = [f"try-{n}" for n in range(8)]
    won = await asyncio.gather(*(Ledger(store, KEY).claim(_record(owner=owner)) for owner in owners))
    assert sum(won) == 1
    entry = await Ledger(store, KEY).last()
    assert entry.owner == owners[won.index(True)]


async def test_the_last_attempt_is_the_one_with_the_largest_number(ledger):
    for number in (1, 2, 10):
        await ledger.claim(_record(number))
    assert await ledger.numbers() == [1, 2, 10]
    assert (await ledger.last()).record.number == 10


async def test_the_first_outcome_counts(ledger):
    await ledger.claim(_record())
    first = Outcome(state=State.SUCCEEDED, result={"loss": 0.5}, artifacts=[{"name": "m", "uri": "u", "bytes": 1}])
    assert await ledger.conclude(1, first) == first
    assert (await ledger.conclude(1, _failed())).state is State.SUCCEEDED
    assert (await ledger.last()).outcome == first


async def test_a_failure_report_is_read_back(ledger):
    await ledger.claim(_record())
    await ledger.conclude(1, _failed())
    outcome = (await ledger.last()).outcome
    assert (outcome.state, outcome.failure) == (State.FAILED, _failed().failure)


async def test_the_first_handle_counts(ledger):
    await ledger.claim(_record())
    first = Handle("local:///runs", KEY.attempt_id(1), {"run_dir": "/runs/1"})
    await ledger.launched(1, first)
    await ledger.launched(1, Handle("local:///elsewhere", KEY.attempt_id(1)))
    assert (await ledger.last()).handle == first


async def test_the_newest_owner_counts(ledger):
    await ledger.claim(_record())
    await ledger.own(1, "try-2")
    await ledger.own(1, "try-3")
    assert (await ledger.last()).owner == "try-3"
    assert (await ledger.last()).record.owner == "try-1"


async def test_the_first_who_asked_for_the_end_is_remembered(ledger):
    await ledger.claim(_record())
    assert await ledger.ask_cancel(1, "on_kill")
    assert await ledger.ask_cancel(1, "a person")
    assert (await ledger.last()).cancel_asked == "on_kill"


async def test_only_the_owner_of_an_attempt_may_ask_for_its_end(ledger):
    await ledger.claim(_record())
    assert await ledger.own(1, "try-2")
    assert not await ledger.ask_cancel(1, "on_kill", owner="try-1")
    assert (await ledger.last()).cancel_asked is None
    assert await ledger.ask_cancel(1, "on_kill", owner="try-2")


async def test_what_is_to_end_cannot_be_taken_over(ledger):
    await ledger.claim(_record())
    await ledger.ask_cancel(1, "on_kill", owner="try-1")
    assert not await ledger.own(1, "try-2")
    assert (await ledger.last()).owner == "try-1"


async def test_of_an_old_owner_that_cancels_and_many_that_take_over_at_once_the_first_word_counts(store, ledger):
    await ledger.claim(_record())
    cancel = Ledger(store, KEY).ask_cancel(1, "on_kill", owner="try-1")
    cancelled, *owned = await asyncio.gather(cancel, *(Ledger(store, KEY).own(1, f"try-{n}") for n in range(2, 8)))
    entry = await ledger.last()
    assert (entry.cancel_asked is not None) == cancelled
    assert cancelled != all(owned)


async def test_an_attempt_that_is_not_there_has_no_owner(ledger):
    assert not await ledger.own(1, "try-2")
    assert not await ledger.ask_cancel(1, "on_kill")


async def test_a_claim_that_a_crash_cut_short_is_none(ledger, store):
    """The folder was made and the intent was not: the next try claims the same number."""
    await ledger.claim(_record())
    (store.local_path / KEY.path / "attempts/000002").mkdir()
    assert (await ledger.last()).record.number == 1
    assert await ledger.claim(_record(2))
    assert (await ledger.last()).record.number == 2


async def test_a_rerun_is_asked_for_one_attempt(ledger):
    await ledger.claim(_record())
    await ledger.ask_rerun(1)
    assert (await ledger.last()).rerun_asked
    await ledger.claim(_record(2))
    assert not (await ledger.last()).rerun_asked


async def test_events_and_data_have_a_place_each(ledger):
    assert ledger.events_prefix(2) == f"{KEY.path}/attempts/000002/events"
    assert ledger.data_prefix(3) == f"{KEY.path}/generations/000003"


# Finding -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def three(store):
    keys = [
        StageKey(("flights", "r1", "train")),
        StageKey(("flights", "r2", "train")),
        StageKey(("flights", "r2", "tune")),
    ]
    for key in keys:
        await Ledger(store, key).claim(_record(key=key))
    return keys


async def test_all_stages_are_listed_by_name(store, three):
    assert await list_stages(store) == three


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flights/r1/train", 0),
        ("/flights/r2/train/", 1),
        ("r2/train", 1),
        ("tune", 2),
    ],
)
async def test_a_stage_is_found_by_its_key_or_the_keys_end(store, three, text, found):
    assert (await Ledger.find(store, text)).key == three[found]


@pytest.mark.parametrize("number", [1, 2, 12])
async def test_a_stage_is_found_by_any_of_its_attempt_ids(store, three, number):
    for key in three:
        assert (await Ledger.find(store, key.attempt_id(number))).key == key


async def test_a_name_of_two_stages_lists_them_and_no_other(store, three):
    with pytest.raises(StageNotFoundError, match="names 2 stages") as raised:
        await Ledger.find(store, "train")
    assert "flights/r1/train" in str(raised.value)
    assert "flights/r2/train" in str(raised.value)
    assert "tune" not in str(raised.value)


async def test_a_wrong_name_lists_the_stages_there_are(store, three):
    with pytest.raises(StageNotFoundError, match="names no stage") as raised:
        await Ledger.find(store, "trian")
    assert all(key.text in str(raised.value) for key in three)


async def test_part_of_a_word_is_no_name(store, three):
    with pytest.raises(StageNotFoundError):
        await Ledger.find(store, "une")
