"""No green lies: a success needs the good word of every process, and silence is a failure."""

from __future__ import annotations

import json

import pytest

from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.spec.failure import Kind
from rallypoint.stages.events import Event
from rallypoint.stages.outcome import Outcome, judge, with_last_lines
from rallypoint.stages.rule import State
from rallypoint.stages.view import AttemptView


def opened(process, *, kind="process", **fields):
    return Event("opened", process, 1.0, {"kind": kind, "host": "node-1", "pid": 7, "log": process, **fields})


def rank(number, *, of=2, restart=0):
    return opened(f"rank-{number}.r{restart}", kind="rank", rank=number, world_size=of, restart=restart)


def closed(process, exit_code=0):
    return Event("closed", process, 9.0, {"exit_code": exit_code})


def end(name="agent-0", exit_code=0, signal=None, *, first=False):
    return ProcessEnd(name, exit_code, signal, "node-1", first)


def view_of(*events):
    view = AttemptView()
    view.apply(events)
    return view


AGENT = [opened("agent-0"), closed("agent-0")]
RANKS = [rank(0), closed("rank-0.r0"), rank(1), closed("rank-1.r0")]
DONE = Status(Phase.ENDED, "completed", (end(),))


def _judge(status, events):
    return judge(status, view_of(*events), attempt="rp-1", logs="rallypoint logs rp-1")


@pytest.mark.parametrize(
    ("status", "events"),
    [
        pytest.param(DONE, AGENT, id="one process that opened and closed"),
        pytest.param(DONE, AGENT + RANKS, id="an agent and all its ranks"),
        pytest.param(
            Status(Phase.ENDED, "completed", (end("a-0"), end("a-1"))),
            [opened("a-0"), closed("a-0"), opened("a-1"), closed("a-1")],
            id="two processes",
        ),
        pytest.param(
            DONE,
            [
                *AGENT,
                rank(0),
                closed("rank-0.r0", 1),
                rank(1),
                rank(0, restart=1),
                rank(1, restart=1),
                closed("rank-0.r1"),
                closed("rank-1.r1"),
            ],
            id="a later round of restarts did it",
        ),
        pytest.param(
            DONE,
            [*AGENT, rank(0, of=2), rank(1, of=2), rank(0, of=1, restart=1), closed("rank-0.r1")],
            id="an elastic world went on smaller",
        ),
        pytest.param(DONE, [*AGENT, Event("applause", "agent-0", 2.0)], id="an unknown event beside it"),
    ],
)
def test_a_success_is_one(status, events):
    assert _judge(status, events).state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("status", "events"),
    [
        pytest.param(DONE, [], id="nobody said anything"),
        pytest.param(DONE, [opened("agent-0")], id="it opened and never closed"),
        pytest.param(
            DONE, [opened("agent-0"), closed("agent-0", 1)], id="it closed with another code than it ended with"
        ),
        pytest.param(DONE, [opened("agent-0"), Event("closed", "agent-0", 9.0)], id="it closed without a code"),
        pytest.param(
            DONE, [opened("agent-0"), Event("closed", "agent-0", 9.0, {"exit_code": "0"})], id="its code is no number"
        ),
        pytest.param(DONE, [opened("b-0"), closed("b-0")], id="another process closed in its place"),
        pytest.param(DONE, [*AGENT, *RANKS[:3]], id="a rank never closed"),
        pytest.param(DONE, [*AGENT, *RANKS[:2]], id="a rank never opened"),
        pytest.param(DONE, [*AGENT, *RANKS[:3], closed("rank-1.r0", 1)], id="a rank closed with 1"),
        pytest.param(
            DONE,
            [*AGENT, *RANKS, rank(0, restart=1), closed("rank-0.r1")],
            id="a rank of the last round is missing, although the round before was whole",
        ),
        pytest.param(Status(Phase.ENDED, "completed", ()), AGENT, id="no process was seen to end"),
        pytest.param(Status(Phase.ENDED, "completed", (end(exit_code=3),)), AGENT, id="exit code 3 after a good word"),
        pytest.param(
            Status(Phase.ENDED, "completed", (end(exit_code=None, signal="SIGKILL"),)),
            AGENT,
            id="killed after it closed",
        ),
        pytest.param(Status(Phase.ENDED, "completed", (end(exit_code=None),)), AGENT, id="an end that nobody saw"),
        pytest.param(
            Status(Phase.ENDED, "completed", (end(), end("agent-1"))), AGENT, id="one of two processes silent"
        ),
        pytest.param(Status(Phase.ENDED, "failed", (end(),)), AGENT, id="the launcher says it failed"),
        pytest.param(Status(Phase.ENDED, "cancelled", (end(),)), AGENT, id="it was cancelled on its last line"),
        pytest.param(Status(Phase.ENDED, "", (end(),)), AGENT, id="the launcher gives no reason"),
        pytest.param(Status(Phase.LOST), AGENT + RANKS, id="the supervisor is gone"),
        pytest.param(Status(Phase.LOST, "completed", (end(),)), AGENT, id="lost, whatever else is said"),
    ],
)
def test_a_green_lie_is_none(status, events):
    outcome = _judge(status, events)
    assert outcome.state is not State.SUCCEEDED
    assert outcome.failure is not None
    assert outcome.result is None


@pytest.mark.parametrize(
    ("status", "state", "kind"),
    [
        (Status(Phase.ENDED, "failed", (end(exit_code=1, first=True),)), State.FAILED, Kind.UNKNOWN),
        (Status(Phase.ENDED, "stalled", (end(exit_code=None, signal="SIGKILL"),)), State.FAILED, Kind.RETRYABLE),
        (Status(Phase.ENDED, "terminated", ()), State.FAILED, Kind.RETRYABLE),
        (Status(Phase.ENDED, "cancelled", (end(exit_code=None, signal="SIGTERM"),)), State.CANCELLED, Kind.CANCELLED),
        (Status(Phase.LOST), State.LOST, Kind.RETRYABLE),
    ],
)
def test_how_it_ended_is_told_apart(status, state, kind):
    outcome = _judge(status, [opened("agent-0")])
    assert (outcome.state, outcome.failure.kind) == (state, kind)


def test_silence_is_explained():
    failure = _judge(DONE, [opened("agent-0")]).failure
    assert failure.title == "ended without a word"
    assert "agent-0 ended with exit code 0 but never reported its end" in failure.message


def test_a_success_has_the_result_and_the_last_of_every_metric():
    told = [
        Event("progress", "agent-0", 2.0, {"step": 1, "total": 2, "metrics": {"loss": 0.5, "lr": 0.1}}),
        Event("metrics", "agent-0", 3.0, {"metrics": {"loss": 0.4}}),
        Event("artifact", "agent-0", 4.0, {"kind": "artifact", "name": "m", "uri": "file:///m", "bytes": 3, "x": 1}),
        Event("result", "agent-0", 5.0, {"value": {"loss": 0.4}}),
    ]
    outcome = _judge(DONE, [*AGENT, *told])
    assert outcome.result == {"loss": 0.4}
    assert outcome.metrics == {"loss": 0.4, "lr": 0.1}
    assert outcome.artifacts == [{"name": "m", "uri": "file:///m", "bytes": 3}]


def test_a_failure_keeps_what_was_measured_until_then():
    told = Event("metrics", "agent-0", 3.0, {"metrics": {"loss": 0.4}})
    assert _judge(Status(Phase.LOST), [opened("agent-0"), told]).metrics == {"loss": 0.4}


@pytest.mark.parametrize("status", [DONE, Status(Phase.LOST, message="gone"), Status(Phase.ENDED, "failed", (end(),))])
def test_an_outcome_is_the_same_after_json(status):
    outcome = with_last_lines(_judge(status, AGENT), ["last", "words"])
    back = Outcome.from_json(json.loads(json.dumps(outcome.to_json())))
    assert back.to_json() == outcome.to_json()
    assert back.failure == outcome.failure


def test_last_lines_belong_to_a_failure():
    assert with_last_lines(_judge(DONE, AGENT), ["words"]).failure is None
    assert with_last_lines(_judge(Status(Phase.LOST), []), ["words"]).failure.last_lines == ("words",)


# Services ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "events", "state", "title"),
    [
        pytest.param(DONE, AGENT, State.FAILED, "the service ended by itself", id="it ended well, and was to stay"),
        pytest.param(DONE, [opened("agent-0")], State.FAILED, "ended without a word", id="it ended without a word"),
        pytest.param(
            Status(Phase.ENDED, "failed", (end(exit_code=None, signal="SIGSEGV", first=True),)),
            [opened("agent-0")],
            State.FAILED,
            "crashed in native code",
            id="it crashed",
        ),
        pytest.param(
            Status(Phase.ENDED, "cancelled", (end(),), "its teardown ran"), AGENT, State.CANCELLED, "stopped", id="stop"
        ),
        pytest.param(
            Status(Phase.ENDED, "lease expired", (end(),), "for 5 s"), AGENT, State.FAILED, "lease expired", id="lease"
        ),
        pytest.param(Status(Phase.LOST), AGENT, State.LOST, "lost", id="lost"),
    ],
)
def test_a_service_never_succeeds_and_its_end_has_a_cause(status, events, state, title):
    ready = Event("ready", "agent-0", 2.0, {"address": {"address": "here:1"}})
    outcome = judge(status, view_of(*events, ready), attempt="rp-1", logs="", service=True)
    assert (outcome.state, outcome.failure.title) == (state, title)
    assert status.message in outcome.failure.message
