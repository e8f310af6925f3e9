"""What processes report is read once, in order, and never believed more than it deserves."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint.stages.events import Event, EventReader
from rallypoint.stages.store import Store
from rallypoint.stages.view import AttemptView
from rallypoint.worker import process as worker_process
from rallypoint.worker.events import MAX_LINE, EventTooLargeError, EventWriter


def _line(event="progress", t=1.0, **fields):
    return json.dumps({"v": 1, "t": t, "event": event, "process": "x", **fields}).encode() + b"\n"


@pytest.fixture
def events_dir(tmp_path):
    folder = tmp_path / "events"
    folder.mkdir()
    return folder


@pytest.fixture
def reader(tmp_path, events_dir):
    return EventReader(Store.open(tmp_path), "events")


async def _rest(reader):
    events = []
    while new := await reader.read():
        events += new
    return events


def _append(file: Path, data: bytes) -> None:
    with file.open("ab") as target:
        target.write(data)


async def test_a_job_that_has_not_reported_has_no_events(tmp_path):
    assert await EventReader(Store.open(tmp_path), "nothing/here").read() == []


async def test_what_the_writer_wrote_is_read(reader, events_dir):
    writer = EventWriter(f"file://{events_dir}", "rank-0.r0")
    writer.write("progress", step=1, total=3, metrics={"loss": 0.5})
    (event,) = await reader.read()
    assert (event.kind, event.process) == ("progress", "rank-0.r0")
    assert event.data == {"step": 1, "total": 3, "metrics": {"loss": 0.5}}


def test_silence_counts_for_the_stall_timer_only_after_what_starts_up_or_the_next_event(events_dir, monkeypatch):
    writer = EventWriter(f"file://{events_dir}", "rank-0")
    monkeypatch.setattr(worker_process, "_writer", writer)
    file, began = events_dir / "rank-0.jsonl", time.time()
    with worker_process.starting_up(60.0):
        assert file.stat().st_mtime >= began + 59
    assert file.stat().st_mtime <= time.time() + 1
    writer.excuse(60.0)
    writer.write("progress", step=1)
    assert file.stat().st_mtime <= time.time() + 1


async def test_only_what_is_new_is_read(reader, events_dir):
    file = events_dir / "a-0.jsonl"
    _append(file, _line(step=1))
    assert [event.data["step"] for event in await reader.read()] == [1]
    assert await reader.read() == []
    _append(file, _line(step=2))
    assert [event.data["step"] for event in await reader.read()] == [2]


async def test_a_reader_goes_on_from_anothers_offsets(tmp_path, reader, events_dir):
    _append(events_dir / "a-0.jsonl", _line(step=1))
    await reader.read()
    _append(events_dir / "a-0.jsonl", _line(step=2))
    other = EventReader(Store.open(tmp_path), "events", reader.offsets)
    assert [event.data["step"] for event in await other.read()] == [2]


async def test_a_torn_last_line_is_left_for_the_next_read(reader, events_dir):
    file, line = events_dir / "a-0.jsonl", _line(step=2)
    _append(file, _line(step=1) + line[:20])
    assert [event.data["step"] for event in await reader.read()] == [1]
    assert await reader.read() == []
    _append(file, line[20:])
    assert [event.data["step"] for event in await reader.read()] == [2]


async def test_events_of_several_processes_come_in_the_order_of_their_time(reader, events_dir):
    _append(events_dir / "a-0.jsonl", _line(t=1) + _line(t=3))
    _append(events_dir / "a-1.jsonl", _line(t=2))
    assert [event.time for event in await reader.read()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "process"),
    [
        ("agent-0.jsonl", "agent-0"),
        ("rank-0.r0.jsonl", "rank-0.r0"),
        ("rank-0.r0.000000.jsonl", "rank-0.r0"),
        ("rank-12.r3.000001.jsonl", "rank-12.r3"),
    ],
)
async def test_the_file_says_which_process_wrote_it(reader, events_dir, file, process):
    _append(events_dir / file, _line(process="somebody-else"))
    assert [event.process for event in await reader.read()] == [process]


async def test_a_file_of_another_kind_is_none_of_the_readers_business(reader, events_dir):
    _append(events_dir / "notes.txt", b"garbage\n")
    assert await reader.read() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"garbage", "a line that is no JSON"),
        (b"\xff\xfe\x00", "a line that is no JSON"),
        (b'{"v": 1, "t": 1,', "a line that is no JSON"),
        (b"[" * 100_000, "a line that is no JSON"),
        (b'{"v": 1, "t": 1, "event": "x", "deep": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "a line that is no JSON"),
        (b"[1, 2]", "no event of version 1"),
        (b'"text"', "no event of version 1"),
        (b'{"t": 1, "event": "progress"}', "no event of version 1"),
        (b'{"v": 2, "t": 1, "event": "progress"}', "no event of version 1"),
        (b'{"v": 1, "event": "progress"}', "without a kind or a time"),
        (b'{"v": 1, "t": 1}', "without a kind or a time"),
        (b'{"v": 1, "t": "now", "event": "progress"}', "without a kind or a time"),
        (b'{"v": 1, "t": 1, "event": ["progress"]}', "without a kind or a time"),
        (b'{"v": 1, "t": NaN, "event": "progress"}', "without a kind or a time"),
        (b'{"v": 1, "t": Infinity, "event": "progress"}', "without a kind or a time"),
        (b'{"v": 1, "t": 1' + b"0" * 400 + b', "event": "progress"}', "without a kind or a time"),
        (b'{"v": 1, "t": 1, "event": "' + b"x" * MAX_LINE + b'"}', "is over 1,048,576"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_a_bad_line_is_refused_and_said_and_the_next_one_read(reader, events_dir, line, said):
    _append(events_dir / "a-0.jsonl", line + b"\n" + _line("closed", exit_code=0))
    rejected, closed = await reader.read()
    assert rejected.kind == "rejected"
    assert said in rejected.data["message"]
    assert "a-0.jsonl" in rejected.data["message"]
    assert closed.kind == "closed"


async def test_a_line_without_an_end_fills_no_memory_and_stops_nothing(reader, events_dir):
    _append(events_dir / "a-0.jsonl", b"x" * (5 * MAX_LINE))
    _append(events_dir / "b-0.jsonl", _line("closed"))
    assert {event.kind for event in await reader.read()} == {"rejected", "closed"}
    _append(events_dir / "a-0.jsonl", b"\n" + _line("closed"))
    assert [event.kind for event in await _rest(reader)][-1] == "closed"


async def test_a_flood_is_read_in_bounded_parts_and_starves_nobody(reader, events_dir):
    line = _line(text="x" * 1000)
    for name in ("a-0", "b-0", "c-0"):
        _append(events_dir / f"{name}.jsonl", line * (6 * MAX_LINE // len(line)))
    _append(events_dir / "d-0.jsonl", _line("closed"))
    first, second = await reader.read(), await reader.read()
    assert len(first) * len(line) <= 6 * MAX_LINE
    assert {event.process for event in first + second} == {"a-0", "b-0", "c-0", "d-0"}
    assert len(first + second + await _rest(reader)) == 3 * (6 * MAX_LINE // len(line)) + 1


async def test_the_parts_of_one_process_are_read_in_order_though_others_flood(reader, events_dir):
    for name in ("a-0.000000", "a-0.000001", "a-0.000002", "b-0.000000", "b-0.000001", "b-0.000002"):
        _append(events_dir / f"{name}.jsonl", _line(part=name, text="x" * 1000) * (3 * MAX_LINE // 1000))
    for process in ("a-0", "b-0"):
        reader.offsets.clear()
        parts = [event.data["part"] for event in await _rest(reader) if event.process == process]
        assert parts == sorted(parts)


async def test_what_a_full_disk_tore_is_refused_and_the_next_line_read(reader, events_dir, monkeypatch):
    writer, write = EventWriter(f"file://{events_dir}", "a-0"), os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:20]))
        with pytest.raises(OSError, match="No space left on device"):
            writer.write("progress", step=1)
    writer.write("progress", step=2)
    writer.write("progress", step=3)
    events = await reader.read()
    assert [(event.kind, event.data.get("step")) for event in events] == [
        ("rejected", None),
        ("progress", 2),
        ("progress", 3),
    ]


def test_the_writer_refuses_a_line_that_readers_would(events_dir):
    writer = EventWriter(f"file://{events_dir}", "a-0")
    with pytest.raises(EventTooLargeError, match="save_artifact"):
        writer.write("result", value="x" * MAX_LINE)
    writer.write("result", value="x" * (MAX_LINE - 200))


async def test_the_largest_line_that_is_written_is_read(reader, events_dir):
    EventWriter(f"file://{events_dir}", "a-0").write("result", value="x" * (MAX_LINE - 200))
    (event,) = await reader.read()
    assert event.kind == "result"


@pytest.mark.parametrize("kind", ["applause", "rejected", "_on_failed", "apply"])
def test_the_view_ignores_a_kind_that_it_does_not_know(kind):
    view = AttemptView()
    view.apply([Event(kind, "a-0", 1.0, {"step": 1})])
    assert view == AttemptView()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KINDS = ["opened", "progress", "metrics", "artifact", "link", "result", "failed", "closed", "unknown"]
FIELDS = [
    "kind",
    "rank",
    "world_size",
    "restart",
    "exit_code",
    "step",
    "metrics",
    "name",
    "url",
    "message",
    "log",
    "value",
]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), json_values)), max_size=5))
def test_the_view_takes_any_fields_without_falling(events):
    view = AttemptView()
    view.apply([Event(kind, "a-0", 1.0, data) for kind, data in events])
    assert isinstance(view.progress_line, str)
    assert isinstance(view.shown_logs(), list)
    assert isinstance(view.last_round, list)


lines = st.lists(
    st.builds(lambda step, text: _line(t=float(step), step=step, text=text), st.integers(0, 99), st.text(max_size=20))
    | st.sampled_from([b"garbage\n", b"\n", b'{"v": 2}\n', b"\xff\n", b"caf\xc3\xa9\r\n"]),
    max_size=8,
)


@settings(max_examples=40)
@given(lines, st.lists(st.integers(0, 400), max_size=6))
def test_however_the_bytes_arrive_the_events_are_the_same(written, cuts):
    data = b"".join(written)

    async def read_in(pieces):
        with tempfile.TemporaryDirectory() as folder:
            reader = EventReader(Store.open(folder), "events")
            file = Path(folder) / "events" / "a-0.jsonl"
            file.parent.mkdir()
            events = []
            for piece in pieces:
                _append(file, piece)
                events += await reader.read()
            return sorted(map(repr, events))

    edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert asyncio.run(read_in(pieces)) == asyncio.run(read_in([data]))
