"""What a retry does: DESIGN's table (promise 2), for every combination there is, and the rules behind it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.stages.rule import Action, Decision, Intent, Resume, State, changed_parts, decide, wanted

CONTINUE, RERUN = Intent.CONTINUE, Intent.RERUN
SAME, CHANGED = (), ("argument epochs changed",)

RETURN = (Action.RETURN, "keep running nothing")
REATTACH = (Action.REATTACH, "keep running it")
FINISH = (Action.FINISH_LAUNCH, "finish under the same id")
RESUME = (Action.LAUNCH, "from the last checkpoint")
SCRATCH = (Action.LAUNCH, "from scratch")
STOP_RESUME = (Action.LAUNCH, "stop it, then from the last checkpoint")
STOP_SCRATCH = (Action.LAUNCH, "stop it, then from scratch")

# One row per state and intent; the columns say what happens to the same work, to changed work with the default
# resume="if_same_work", and with resume="never". resume="always" takes changed work for the same.
TABLE = {
    (State.NONE, CONTINUE): (SCRATCH, SCRATCH, SCRATCH),
    (State.NONE, RERUN): (SCRATCH, SCRATCH, SCRATCH),
    (State.LIVE, CONTINUE): (REATTACH, REATTACH, REATTACH),
    (State.LIVE, RERUN): (STOP_RESUME, STOP_SCRATCH, STOP_SCRATCH),
    (State.PENDING, CONTINUE): (FINISH, STOP_SCRATCH, STOP_SCRATCH),
    (State.PENDING, RERUN): (STOP_RESUME, STOP_SCRATCH, STOP_SCRATCH),
    (State.SUCCEEDED, CONTINUE): (RETURN, RETURN, RETURN),
    (State.SUCCEEDED, RERUN): (SCRATCH, SCRATCH, SCRATCH),
    (State.FAILED, CONTINUE): (RESUME, SCRATCH, SCRATCH),
    (State.FAILED, RERUN): (RESUME, SCRATCH, SCRATCH),
    (State.CANCELLED, CONTINUE): (RESUME, SCRATCH, SCRATCH),
    (State.CANCELLED, RERUN): (RESUME, SCRATCH, SCRATCH),
    (State.LOST, CONTINUE): (RESUME, SCRATCH, SCRATCH),
    (State.LOST, RERUN): (RESUME, SCRATCH, SCRATCH),
}


def _expected(last, intent, changed, resume):
    same, other, never = TABLE[last, intent]
    if resume is Resume.NEVER:
        return never
    return other if changed and resume is Resume.IF_SAME_WORK else same


CASES = list(itertools.product(State, Intent, (SAME, CHANGED), Resume))


@pytest.mark.parametrize(
    ("last", "intent", "changed", "resume"),
    CASES,
    ids=[f"{last}-{intent}-{'changed' if changed else 'same'}-{resume}" for last, intent, changed, resume in CASES],
)
def test_the_table(last, intent, changed, resume):
    action, how = _expected(last, intent, changed, resume)
    decision = decide(last, intent, changed=changed, resume=resume)
    assert decision.action is action
    assert decision.stop_first is how.startswith("stop it")
    assert decision.from_checkpoint is how.endswith("from the last checkpoint")


def test_the_table_names_every_state_and_intent():
    assert set(TABLE) == set(itertools.product(State, Intent))


def test_by_default_work_that_changed_starts_over():
    assert decide(State.FAILED, CONTINUE, changed=CHANGED) == decide(
        State.FAILED, CONTINUE, changed=CHANGED, resume=Resume.IF_SAME_WORK
    )


# Services: they have no checkpoints, never succeed, and live they are ready or about to be.

START = (Action.LAUNCH, "start one")
STOP_START = (Action.LAUNCH, "stop it, then start one")

# The columns: the same service, and one whose parameters changed.
SERVICES = {
    (State.NONE, CONTINUE): (START, START),
    (State.NONE, RERUN): (START, START),
    (State.LIVE, CONTINUE): (REATTACH, REATTACH),
    (State.LIVE, RERUN): (STOP_START, STOP_START),
    (State.PENDING, CONTINUE): (FINISH, STOP_START),
    (State.PENDING, RERUN): (STOP_START, STOP_START),
    (State.SUCCEEDED, CONTINUE): (START, START),
    (State.SUCCEEDED, RERUN): (START, START),
    (State.FAILED, CONTINUE): (START, START),
    (State.FAILED, RERUN): (START, START),
    (State.CANCELLED, CONTINUE): (START, START),
    (State.CANCELLED, RERUN): (START, START),
    (State.LOST, CONTINUE): (START, START),
    (State.LOST, RERUN): (START, START),
}


@pytest.mark.parametrize("resume", Resume)
@pytest.mark.parametrize("changed", [SAME, CHANGED], ids=["same", "changed"])
@pytest.mark.parametrize(("last", "intent"), list(itertools.product(State, Intent)))
def test_the_table_of_services(last, intent, changed, resume):
    action, how = SERVICES[last, intent][bool(changed)]
    decision = decide(last, intent, changed=changed, resume=resume, service=True)
    assert decision.action is action
    assert decision.stop_first is how.startswith("stop it")
    assert not decision.from_checkpoint
    assert decision.why


@pytest.mark.parametrize("asked", Intent)
@pytest.mark.parametrize(
    ("of", "intent"),
    [
        ({}, None),
        ({"cleared": True}, RERUN),
        ({"forgotten": True}, RERUN),
        ({"service": True}, None),
        # The clear of a task between set-up and teardown: other tasks may be using the service.
        ({"service": True, "cleared": True}, None),
        ({"service": True, "cleared": True, "changed": True}, RERUN),
        ({"service": True, "changed": True}, None),
        ({"service": True, "forgotten": True}, RERUN),
    ],
    ids=str,
)
def test_what_a_clear_asks_for(asked, of, intent):
    assert wanted(asked, **of) is (intent or asked)


# Rules over all of it ------------------------------------------------------------------------------------------------

inputs = st.tuples(
    st.sampled_from(State), st.sampled_from(Intent), st.lists(st.text(), max_size=3).map(tuple), st.sampled_from(Resume)
)


def _decide(case) -> Decision:
    last, intent, changed, resume = case
    return decide(last, intent, changed=changed, resume=resume)


@given(inputs)
def test_a_live_job_is_reattached_or_stopped_but_never_joined_by_a_second_one(case):
    decision = _decide(case)
    if case[0] is State.LIVE:
        assert decision.action is Action.REATTACH or decision.stop_first


@given(inputs)
def test_continue_never_stops_a_live_job(case):
    if case[0] is State.LIVE and case[1] is CONTINUE:
        assert not _decide(case).stop_first


@given(inputs)
def test_only_what_may_be_running_is_stopped(case):
    if _decide(case).stop_first:
        assert case[0] in (State.LIVE, State.PENDING)


@given(inputs)
def test_nothing_is_ever_continued_from_a_success(case):
    if case[0] is State.SUCCEEDED:
        assert not _decide(case).from_checkpoint


@given(inputs)
def test_resume_never_uses_no_checkpoint(case):
    if case[3] is Resume.NEVER:
        assert not _decide(case).from_checkpoint


@given(inputs)
def test_rerun_always_runs(case):
    if case[1] is RERUN:
        assert _decide(case).action is Action.LAUNCH


@given(inputs)
def test_it_says_why_and_names_the_parts_that_cost_the_checkpoint(case):
    last, _, changed, resume = case
    decision = _decide(case)
    assert decision.why
    lost = decision.action is Action.LAUNCH and last not in (State.NONE, State.SUCCEEDED)
    if lost and changed and resume is Resume.IF_SAME_WORK:
        assert all(part in decision.why for part in changed)


# What changed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"entry": "a"}, {"entry": "a"}, ()),
        ({"entry": "function m.f"}, {"entry": "function m.g"}, ("entry changed (function m.f → function m.g)",)),
        ({"argument epochs": "1"}, {"argument epochs": "2"}, ("argument epochs changed",)),
        ({}, {"param lr": "1"}, ("param lr was added",)),
        ({"param lr": "1"}, {}, ("param lr was removed",)),
        ({"b": "1", "a": "1"}, {"b": "2", "a": "2"}, ("a changed", "b changed")),
    ],
)
def test_changed_parts_are_named(before, now, words):
    assert changed_parts(before, now) == words


fingerprints = st.dictionaries(st.sampled_from(["entry", "argument #1", "argument x", "param y"]), st.text(max_size=2))


@given(fingerprints, fingerprints)
def test_there_are_changed_parts_if_and_only_if_fingerprints_differ(before, now):
    assert bool(changed_parts(before, now)) is (before != now)
