"""A failure names its cause: who failed first, with what, and whether a retry can help."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.spec.failure import Kind
from rallypoint.stages.events import Event
from rallypoint.stages.failures import FailureReport, explain, launch_report
from rallypoint.stages.text import printable
from rallypoint.stages.view import AttemptView

SCREEN = 85  # lines


def opened(process, *, kind="process", **fields):
    return Event("opened", process, 1.0, {"kind": kind, "host": "node-1", "pid": 7, "log": process, **fields})


def rank(number, *, restart=0):
    return opened(f"rank-{number}.r{restart}", kind="rank", rank=number, world_size=2, restart=restart)


def failed(process, t=5.0, **fields):
    return Event("failed", process, t, {"kind": "process", "host": "node-1", **fields})


def seen_dead(number, t, **fields):
    """What torchrun's agent says of a rank that it saw die."""
    return failed("agent-0", t, kind="rank", rank=number, seen_by="agent-0", **fields)


def report(*events, reason="failed", ends=(), phase=Phase.ENDED, message=""):
    view = AttemptView()
    view.apply(events)
    return explain(Status(phase, reason, tuple(ends), message), view, attempt="rp-1", logs="rallypoint logs rp-1")


PEER = {"exception": "RuntimeError", "message": "[gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:3921"}


# The table -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "title"),
    [
        ({"exception": "MemoryError"}, Kind.RETRYABLE, "out of memory"),
        ({"exception": "torch.OutOfMemoryError", "message": "CUDA out of memory."}, Kind.RETRYABLE, "out of memory"),
        ({"exception": "RuntimeError", "message": "CUDA out of memory."}, Kind.RETRYABLE, "out of GPU memory"),
        ({"exception": "OSError", "message": "[Errno 28] No space left on device"}, Kind.RETRYABLE, "disk full"),
        ({"exception": "OSError", "message": "[Errno 98] Address already in use"}, Kind.RETRYABLE, "a port was taken"),
        (PEER, Kind.RETRYABLE, "another process was lost"),
        (
            {
                "exception": "torch.distributed.DistBackendError",
                "message": "NCCL error in: x.cpp:1, remote process exited",
            },
            Kind.RETRYABLE,
            "another process was lost",
        ),
        (
            {
                "exception": "RuntimeError",
                "message": "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)",
            },
            Kind.RETRYABLE,
            "a collective timed out",
        ),
        ({"exception": "RuntimeError", "message": "Timed out after 60000ms waiting for recv"}, Kind.RETRYABLE, None),
        (
            {"exception": "ModuleNotFoundError", "message": "No module named 'x'"},
            Kind.USER,
            "the entry cannot be loaded",
        ),
        ({"exception": "SyntaxError"}, Kind.USER, "the entry cannot be loaded"),
        ({"exception": "rallypoint.worker.entry.EntryLoadError"}, Kind.USER, "the entry cannot be loaded"),
        ({"exception": "rallypoint.worker.process.NotJSONError"}, Kind.USER, "the result is not JSON"),
        (
            {"exception": "TypeError", "message": "f() got an unexpected keyword"},
            Kind.USER,
            "an error in the user's code",
        ),
        ({"exception": "NameError"}, Kind.USER, "an error in the user's code"),
        ({"exception": "AttributeError"}, Kind.USER, "an error in the user's code"),
        ({"signal": "SIGKILL"}, Kind.RETRYABLE, "killed"),
        ({"signal": "SIGTERM"}, Kind.RETRYABLE, "terminated from outside"),
        ({"exception": "torch.distributed.elastic.multiprocessing.api.SignalException"}, Kind.RETRYABLE, None),
        ({"signal": "SIGSEGV"}, Kind.UNKNOWN, "crashed in native code"),
        ({"signal": "SIGABRT"}, Kind.UNKNOWN, "crashed in native code"),
        ({"exception": "ValueError", "message": "loss is NaN"}, Kind.UNKNOWN, "failed"),
        ({"exception": "SystemExit", "message": "the code called sys.exit(3)"}, Kind.UNKNOWN, "failed"),
        ({"exception": "mylib.MyTypeError"}, Kind.UNKNOWN, "failed"),
        ({"exit_code": 3}, Kind.UNKNOWN, "failed"),
        ({}, Kind.UNKNOWN, "failed"),
    ],
)
def test_what_a_failure_is(fields, kind, title):
    found = report(opened("agent-0"), failed("agent-0", **fields))
    assert found.kind is kind
    assert title in (None, found.title)
    assert found.advice


@pytest.mark.parametrize(
    ("reason", "phase", "kind", "title"),
    [
        ("cancelled", Phase.ENDED, Kind.CANCELLED, "cancelled"),
        ("stalled", Phase.ENDED, Kind.RETRYABLE, "stalled"),
        ("terminated", Phase.ENDED, Kind.RETRYABLE, "lost"),
        ("", Phase.LOST, Kind.RETRYABLE, "lost"),
    ],
)
def test_an_end_without_a_culprit_is_named(reason, phase, kind, title):
    found = report(opened("agent-0"), reason=reason, phase=phase, message="what the launcher says")
    assert (found.kind, found.title, found.message) == (kind, title, "what the launcher says")


def test_a_gang_that_the_supervisor_could_not_start_says_why():
    ends = [ProcessEnd("agent-0", None, None, "node-1")]
    found = report(reason="error", ends=ends, message="the supervisor could not start the processes: [Errno 8]")
    assert "could not start the processes" in found.headline


@pytest.mark.parametrize(("fatal", "kind"), [(True, Kind.USER), (False, Kind.RETRYABLE)])
def test_a_launch_that_did_not_happen_is_a_failure(fatal, kind):
    found = launch_report(OSError("no such Python"), attempt="rp-1", fatal=fatal)
    assert found.kind is kind
    assert "no such Python" in found.headline


# The first cause -----------------------------------------------------------------------------------------------------


def test_a_killed_rank_comes_before_the_one_that_saw_its_connection_close():
    found = report(
        opened("agent-0"),
        rank(0),
        rank(1),
        failed("rank-0.r0", 5.0, **PEER),
        seen_dead(1, 5.2, signal="SIGKILL"),
        seen_dead(0, 5.3, exit_code=1, message=PEER["message"]),
        failed("agent-0", 5.4, secondary=True, exception="ChildFailedError"),
    )
    assert (found.process, found.signal, found.title) == ("rank 1", "SIGKILL", "killed")
    assert found.host == "node-1"
    assert [line.split(":")[0] for line in found.others] == ["rank 0"]


def test_of_real_causes_the_earliest_is_the_first():
    found = report(
        rank(0),
        rank(1),
        failed("rank-1.r0", 5.0, exception="ValueError"),
        failed("rank-0.r0", 4.0, exception="KeyError"),
    )
    assert (found.process, found.exception) == ("rank 0", "KeyError")


def test_where_all_only_saw_another_end_the_first_of_them_is_named():
    found = report(rank(0), rank(1), failed("rank-1.r0", 4.0, **PEER), failed("rank-0.r0", 5.0, **PEER))
    assert (found.process, found.kind) == ("rank 1", Kind.RETRYABLE)


def test_a_node_that_was_killed_comes_before_the_one_that_lost_it():
    ends = [ProcessEnd("agent-1", None, "SIGKILL", "node-1", first=True), ProcessEnd("agent-0", 1, None, "node-1")]
    found = report(opened("agent-0"), opened("agent-1"), failed("agent-0", 5.0, **PEER), ends=ends)
    assert (found.process, found.signal) == ("agent-1", "SIGKILL")


def test_what_a_rank_said_and_what_its_agent_saw_is_one_failure():
    found = report(
        rank(0),
        failed("rank-0.r0", 4.0, exception="ValueError", message="bad", traceback="Traceback…"),
        seen_dead(0, 4.1, exit_code=1, message="ValueError: bad"),
    )
    assert (found.exception, found.message, found.traceback, found.exit_code) == ("ValueError", "bad", "Traceback…", 1)
    assert found.others == ()


def test_earlier_rounds_of_restarts_are_no_cause():
    found = report(
        rank(0),
        failed("rank-0.r0", 2.0, exception="KeyError"),
        rank(0, restart=1),
        failed("rank-0.r1", 5.0, exception="ValueError"),
    )
    assert found.exception == "ValueError"
    assert found.others == ()


def test_a_process_that_said_nothing_is_known_from_its_end():
    ends = [ProcessEnd("driver-0", None, "SIGKILL", "node-2", first=True)]
    found = report(opened("driver-0"), ends=ends)
    assert (found.process, found.host, found.signal) == ("driver-0", "node-2", "SIGKILL")


def test_the_first_of_several_ends_is_the_cause():
    ends = [
        ProcessEnd("a-0", 1, None, "n"),
        ProcessEnd("a-1", 2, None, "n", first=True),
        ProcessEnd("a-2", 0, None, "n"),
    ]
    found = report(ends=ends)
    assert (found.process, found.exit_code) == ("a-1", 2)
    assert [line.split(":")[0] for line in found.others] == ["a-0"]


# What is shown -------------------------------------------------------------------------------------------------------

texts = st.text(max_size=200) | st.text(alphabet="\n\x1b[31m\x9b\r\x00ab", max_size=300) | st.just("line\n" * 200)
long_texts = texts | st.just("x" * 3_000)


def _shown(text):
    return [char for char in text if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"]


@given(
    st.dictionaries(st.sampled_from(["exception", "message", "traceback", "host", "signal"]), long_texts),
    st.lists(texts, max_size=20),
    st.integers(0, 40),
)
def test_a_report_fits_on_a_screen_and_obeys_no_escape(fields, last_lines, others):
    events = [rank(0), failed("rank-0.r0", 4.0, **fields)]
    events += [failed(f"rank-{number}.r0", 5.0, **fields) for number in range(1, others + 1)]
    found = report(*events)
    lines = tuple(printable(line.replace("\n", " "))[:500] for line in last_lines)  # as the engine cuts them
    found = FailureReport.from_json({**found.to_json(), "last_lines": lines})
    text = found.render()
    assert len(text.splitlines()) <= SCREEN
    assert max(map(len, text.splitlines())) <= 1000
    assert _shown(text) == []
    assert len(found.headline.splitlines()) == 1


@given(texts, st.sampled_from(["cancelled", "stalled", "terminated", "error", "failed"]))
def test_what_a_launcher_says_fits_on_a_screen_too(message, reason):
    text = report(reason=reason, message=message).render()
    assert len(text.splitlines()) <= SCREEN
    assert _shown(text) == []


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain", "plain"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("over\rwritten", "over\nwritten"),
        ("bell\x07 null\x00 delete\x7f", "bell null delete"),
        ("eight-bit \x9b31m escapes", "eight-bit  escapes"),
        ("\x1b]0;title\x07", "]0;title"),
        ("half \ud800 a character", "half  a character"),
        ("日本 é", "日本 é"),
    ],
)
def test_printable_text_has_nothing_that_a_terminal_obeys(text, clean):
    assert printable(text) == clean


def test_the_report_reads_like_this():
    found = report(
        opened("agent-0"),
        rank(0),
        rank(1),
        failed("rank-0.r0", 5.0, **PEER),
        seen_dead(1, 5.2, signal="SIGKILL"),
    )
    found = FailureReport.from_json({**found.to_json(), "last_lines": ("epoch 3", "epoch 4")})
    assert found.render().splitlines() == [
        "stage failed, retryable: rank 1 on node-1: killed (SIGKILL)",
        "",
        "last lines of rank 1:",
        "  | epoch 3",
        "  | epoch 4",
        "",
        "the others:",
        "  rank 0: another process was lost (RuntimeError) " + PEER["message"],
        "",
        "what to do: the kernel kills what uses too much memory: look at the host's log, or give the job more memory",
        "all logs: rallypoint logs rp-1",
    ]


reports = st.builds(
    FailureReport,
    kind=st.sampled_from(Kind),
    title=st.text(min_size=1),
    process=st.text(),
    host=st.text(),
    exception=st.text(),
    message=st.text(),
    traceback=st.text(),
    exit_code=st.none() | st.integers(),
    signal=st.none() | st.text(min_size=1),
    last_lines=st.lists(st.text()).map(tuple),
    others=st.lists(st.text()).map(tuple),
    advice=st.text(),
    attempt=st.text(),
    logs=st.text(),
)


@given(reports)
def test_a_report_is_the_same_after_json(found):
    assert FailureReport.from_json(json.loads(json.dumps(found.to_json()))) == found
