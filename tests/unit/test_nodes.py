"""What several nodes say becomes one status: they live and die together, but for those that a role can do without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.launchers.nodes import FOLLOWED, HOST_LOST, NodeState, Shape, merge
from rallypoint.spec.gang import Gang, Role

FIXED = Gang(name="g", roles=(Role(name="agent", argv=(), replicas=2, ports=("rdzv",)),))
ELASTIC = Gang(name="g", roles=(Role(name="agent", argv=(), replicas=4, min_replicas=1, ports=("rdzv",)),))
FARM = Gang(name="g", roles=(Role(name="head", argv=()), Role(name="worker", argv=(), replicas=2, may_lose=1)))

RUNNING = Status(Phase.RUNNING)
LOST = Status(Phase.LOST, message="no answer for 60 s")


def ended(reason, name, code=0, *, at=1.0, first=False, tolerated=False, signal=None):
    end = ProcessEnd(name, None if signal else code, signal, "h", first, tolerated, at)
    return Status(Phase.ENDED, reason, (end,))


def done(name):
    return ended("completed", name)


def failed(name, at=1.0):
    return ended("failed", name, 1, at=at, first=True)


def judged(gang, *statuses):
    shape = Shape.of(gang, len(statuses))
    assert Shape.from_json(shape.to_json()) == shape
    return merge(shape, [NodeState(host=f"h{number}", status=status) for number, status in enumerate(statuses)])


A, B, C = "agent-0", "agent-1", "agent-2"


@pytest.mark.parametrize(
    ("gang", "statuses", "phase", "reason", "stops", "missed"),
    [
        # Nodes that belong together.
        (FIXED, (RUNNING, RUNNING), Phase.RUNNING, "", False, ()),
        (FIXED, (done(A), RUNNING), Phase.RUNNING, "", False, ()),
        (FIXED, (done(A), done(B)), Phase.ENDED, "completed", False, ()),
        (FIXED, (RUNNING, failed(B)), Phase.RUNNING, "", True, ()),
        (FIXED, (RUNNING, LOST), Phase.RUNNING, "", True, ()),
        (FIXED, (ended(FOLLOWED, A, 1), failed(B)), Phase.ENDED, "failed", False, ()),
        (FIXED, (ended(FOLLOWED, A, 1), LOST), Phase.LOST, HOST_LOST, False, ()),
        (FIXED, (failed(A), LOST), Phase.LOST, HOST_LOST, False, ()),
        (FIXED, (LOST, LOST), Phase.LOST, HOST_LOST, False, ()),
        (FIXED, (done(A), LOST), Phase.LOST, HOST_LOST, False, ()),
        # What somebody asked for is the gang's end, whatever the rest made of it.
        (FIXED, (ended("cancelled", A, 1), failed(B)), Phase.ENDED, "cancelled", False, ()),
        (FIXED, (ended("cancelled", A, 1), LOST), Phase.ENDED, "cancelled", False, ()),
        (FIXED, (ended("cancelled", A, 1), RUNNING), Phase.RUNNING, "", True, ()),
        (FIXED, (ended("stalled", A, 1), ended(FOLLOWED, B, 1)), Phase.ENDED, "stalled", False, ()),
        # Elastic: the others go on, unless it held the rendezvous or too few are left.
        (ELASTIC, (RUNNING, LOST), Phase.RUNNING, "", False, (1,)),
        (ELASTIC, (RUNNING, failed(B)), Phase.RUNNING, "", False, (1,)),
        (ELASTIC, (RUNNING, LOST, failed(C)), Phase.RUNNING, "", False, (1, 2)),
        (ELASTIC, (done(A), LOST), Phase.ENDED, "completed", False, ()),
        (ELASTIC, (LOST, RUNNING), Phase.RUNNING, "", True, ()),
        (ELASTIC, (LOST, failed(B)), Phase.LOST, HOST_LOST, False, ()),
        (ELASTIC, (failed(A), LOST), Phase.ENDED, "failed", False, ()),
        (ELASTIC, (RUNNING, ended("cancelled", B, 1)), Phase.RUNNING, "", True, ()),
        # A role that may lose some for good; they do not come back.
        (FARM, (RUNNING, RUNNING, LOST), Phase.RUNNING, "", False, ()),
        (FARM, (RUNNING, LOST, LOST), Phase.RUNNING, "", True, ()),
        (FARM, (LOST, RUNNING, RUNNING), Phase.RUNNING, "", True, ()),
        (FARM, (RUNNING, ended("completed", "worker-0", 1, tolerated=True), LOST), Phase.RUNNING, "", True, ()),
    ],
)
def test_the_nodes_of_a_gang_live_and_die_together(gang, statuses, phase, reason, stops, missed):
    verdict = judged(gang, *statuses)
    assert (verdict.status.phase, verdict.status.reason) == (phase, reason)
    assert (bool(verdict.stop), verdict.missed) == (stops, missed)


def test_the_first_to_die_is_the_first_by_time_whatever_its_node():
    ends = judged(FIXED, failed(A, at=7.0), failed(B, at=5.0)).status.processes
    assert [(end.name, end.first) for end in ends] == [(A, False), (B, True)]


def test_a_forgiven_node_is_marked_and_is_never_the_first():
    ends = judged(ELASTIC, failed(A, at=9.0), LOST).status.processes
    assert [(end.name, end.first, end.tolerated) for end in ends] == [(A, True, False), (B, False, True)]
    ends = judged(ELASTIC, done(A), failed(B)).status.processes
    assert [(end.name, end.exit_code, end.tolerated) for end in ends] == [(A, 0, False), (B, 1, True)]


def test_the_reason_names_the_host():
    assert judged(FIXED, RUNNING, LOST).stop == "h1 was lost (no answer for 60 s)"
    assert judged(FIXED, RUNNING, failed(B)).stop == "agent-1 on h1 ended: failed"
    assert judged(FIXED, ended(FOLLOWED, A, 1), LOST).status.message == "h1 was lost (no answer for 60 s)"


STATUSES = st.sampled_from(["running", "done", "failed", "lost", "cancelled", FOLLOWED])


@given(st.sampled_from([FIXED, ELASTIC, FARM]), st.lists(STATUSES, min_size=1, max_size=5))
def test_a_gang_is_running_while_a_node_is_and_completes_only_if_nothing_unforgiven_failed(gang, words):
    shape = Shape.of(gang, len(words))
    nodes = []
    for number, word in enumerate(words):
        names = shape.nodes[number]
        code = 0 if word == "done" else 1
        ends = tuple(ProcessEnd(name, code, first=word == "failed", ended=float(number)) for name in names)
        reason = {"done": "completed"}.get(word, word)
        statuses = {"running": RUNNING, "lost": LOST}
        nodes.append(NodeState(host="h", status=statuses.get(word, Status(Phase.ENDED, reason, ends))))
    verdict = merge(shape, nodes)
    assert (verdict.status.phase is Phase.RUNNING) == ("running" in words)
    assert not verdict.missed or not verdict.stop
    if verdict.status.phase is Phase.RUNNING:
        return
    ends = verdict.status.processes
    assert [end.name for end in ends] == [name for node in shape.nodes for name in node]
    assert sum(end.first for end in ends) <= 1
    if verdict.status.reason == "completed":
        assert all(end.exit_code == 0 or end.tolerated for end in ends)
        assert "done" in words
    assert verdict.status.reason != "completed" or "cancelled" not in words
