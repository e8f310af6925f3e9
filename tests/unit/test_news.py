"""The story of an attempt is told in a bounded number of lines, and says what it leaves out."""

from __future__ import annotations

import copy

from rallypoint.launchers.base import LogChunk
from rallypoint.stages.attempt import Update
from rallypoint.stages.events import Event
from rallypoint.stages.news import Narrator
from rallypoint.stages.view import AttemptView

LOGS = "rallypoint logs rp-train-a1 --store file:///s"


def told(*updates):
    narrator = Narrator()
    return [[str(news) for news in narrator.tell(update)] for update in updates]


def output(data, offset, skipped=0):
    chunk = LogChunk("rank-0.r0", data, offset, skipped)
    return Update(view=AttemptView(), output=[chunk], logs=LOGS)


def test_skipped_output_is_said_with_the_command_that_shows_it():
    _, told_now = told(output(b"line 1\nhalf", 11), output(b"line 9\n", 5_000, skipped=4_982))
    assert told_now == [
        "[rank-0.r0] half",
        f"[rank-0.r0] … 4,982 bytes skipped here; all: {LOGS} --process rank-0.r0",
        "[rank-0.r0] line 9",
    ]


def test_of_many_lines_the_last_are_shown_and_the_others_counted():
    (lines,) = told(output(b"".join(b"line %d\n" % number for number in range(2_000)), 1))
    assert lines[0] == "[rank-0.r0] … 1500 lines left out here"
    assert (len(lines), lines[-1]) == (501, "[rank-0.r0] line 1999")


def test_of_many_events_the_first_are_told_and_the_others_counted():
    events = [Event("failed", f"rank-{n}", n, {"rank": n, "signal": "SIGKILL"}) for n in range(2_000)]
    (lines,) = told(Update(view=AttemptView(), events=events))
    assert (lines[0], len(lines)) == ("rank 0 failed: SIGKILL", 501)
    assert lines[-1] == "… 1500 more lines about events left out here"


def test_a_view_keeps_a_bounded_number_of_metrics_and_their_last_values():
    view = AttemptView()
    for value in (1, 2):
        view.apply(Event("metrics", "p", 1, {"metrics": {f"m{n}": value}}) for n in range(5_000))
    assert len(view.metrics) == 1_000
    assert set(view.metrics.values()) == {2}


def rank(number, world_size, restart):
    data = {"kind": "rank", "rank": number, "world_size": world_size, "restart": restart}
    return Event("opened", f"rank-{number}.r{restart}", 100.0 + restart, data)


def test_a_change_of_the_world_size_is_told_once_and_kept():
    view = AttemptView()
    updates = []
    for events in ([rank(0, 2, 0), rank(1, 2, 0)], [rank(0, 1, 1)], [], [rank(1, 2, 3), rank(0, 2, 3), rank(0, 2, 4)]):
        view.apply(events)
        updates.append(Update(view=copy.deepcopy(view), events=events))
    lines = [[line for line in lines if "world size" in line] for lines in told(*updates)]
    assert lines == [
        [],
        ["world size 2 → 1 (round 1): it goes on from the last checkpoint"],
        [],
        ["world size 1 → 2 (round 3): it goes on from the last checkpoint"],
    ]
    assert view.world_line == "2 → 1 → 2"
    assert AttemptView(worlds=view.worlds[2:]).world_line == ""
    assert [(world.restart, world.size, world.began) for world in view.worlds] == [
        (0, 2, 100.0),
        (1, 1, 101.0),
        (3, 2, 103.0),
        (4, 2, 104.0),
    ]
