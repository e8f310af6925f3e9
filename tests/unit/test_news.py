"""The story of an attempt is told in a bounded number of lines, and says what it leaves out."""

from __future__ import annotations

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
