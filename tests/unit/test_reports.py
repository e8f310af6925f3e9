"""A report in every batch costs next to nothing, and no metric's last value is lost."""

from __future__ import annotations

import json
import os
import time

import pytest

from rallypoint.worker.events import EventTooLargeError, EventWriter
from rallypoint.worker.reports import INTERVAL, Reports


class World:
    """A clock that stands still, the timers that were started, and the lines that were written."""

    def __init__(self):
        self.now = 100.0
        self.timers = []
        self.lines = []
        self.broken = False

    def write(self, kind, fields):
        if self.broken:
            raise OSError("no space left on device")
        self.lines.append((kind, fields))

    def later(self, seconds, call):
        self.timers.append((self.now + seconds, call))

    def wait(self, seconds):
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now + 1e-9]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, call in due:
            call()

    @property
    def metrics(self):
        return [fields["metrics"] for _, fields in self.lines]


@pytest.fixture
def world():
    return World()


@pytest.fixture
def reports(world):
    return Reports(world.write, clock=lambda: world.now, later=world.later)


def at(step):
    return {"step": step, "total": 9, "unit": "batch"}


def test_the_first_report_is_written_at_once(world, reports):
    reports.add({"loss": 1.0}, at(1))
    assert world.lines == [("progress", {**at(1), "metrics": {"loss": 1.0}})]


def test_reports_that_come_quickly_are_one_line_with_the_last_values(world, reports):
    for step in range(1, 1001):
        reports.add({"loss": 1 / step}, at(step))
    assert len(world.lines) == 1
    world.wait(INTERVAL)
    assert world.lines[1:] == [("progress", {**at(1000), "metrics": {"loss": 1 / 1000}})]


def test_no_metrics_last_value_is_lost_between_reports_of_different_metrics(world, reports):
    reports.add({}, {})
    reports.add({"loss": 1.0, "accuracy": 0.5}, at(1))
    reports.add({"loss": 0.5}, {})
    reports.add({"learning_rate": 0.1}, {})
    world.wait(INTERVAL)
    assert world.lines[1:] == [("progress", {**at(1), "metrics": {"loss": 0.5, "accuracy": 0.5, "learning_rate": 0.1}})]


def test_reports_that_come_slowly_are_all_written_and_start_no_timer(world, reports):
    for step in range(1, 5):
        reports.add({"loss": step}, at(step))
        world.wait(INTERVAL)
    assert [fields["step"] for _, fields in world.lines] == [1, 2, 3, 4]
    assert world.timers == []


def test_for_ten_seconds_of_reports_there_are_a_hundred_lines(world, reports):
    for step in range(10_000):
        reports.add({"loss": step}, at(step))
        world.wait(0.001)
    assert 95 <= len(world.lines) <= 101


def test_only_metrics_are_a_line_of_metrics(world, reports):
    reports.add({"loss": 1.0}, {})
    assert world.lines == [("metrics", {"metrics": {"loss": 1.0}})]


def test_what_was_written_is_not_written_again(world, reports):
    reports.add({"loss": 1.0}, at(1))
    reports.add({"loss": 2.0}, at(2))
    reports.flush()
    reports.flush()
    world.wait(INTERVAL)
    assert world.metrics == [{"loss": 1.0}, {"loss": 2.0}]


@pytest.mark.parametrize("large", [{"text": "x" * 1000}, {"list": list(range(10))}, {"x" * 200: 1}, {"n": 10**400}])
def test_a_large_value_does_not_wait_and_comes_in_order(world, reports, large):
    reports.add({"loss": 1.0}, at(1))
    reports.add({"loss": 2.0}, at(2))
    reports.add(large, at(3))
    assert world.metrics == [{"loss": 1.0}, {"loss": 2.0}, large]


def test_many_different_metrics_do_not_wait_until_their_line_is_too_long(world, reports):
    reports.add({}, {})
    for number in range(2_000):
        reports.add({f"metric-{number}": "\N{GRINNING FACE}" * 80}, {})
    reports.flush()
    assert len(world.lines) > 3
    assert max(len(json.dumps(fields)) for _, fields in world.lines) < 1 << 20
    assert sum(len(metrics) for metrics in world.metrics) == 2_000


def test_what_could_not_be_written_waits_for_the_next_time(world, reports):
    reports.add({"loss": 1.0}, at(1))
    reports.add({"loss": 2.0}, at(2))
    world.broken = True
    world.wait(INTERVAL)
    with pytest.raises(OSError, match="no space left"):
        reports.add({"rate": 0.1}, {})
    world.broken = False
    reports.flush()
    assert world.lines[1:] == [("progress", {**at(2), "metrics": {"loss": 2.0, "rate": 0.1}})]


def test_what_waits_in_a_process_that_forks_is_written_once(world, reports):
    reports.add({"loss": 1.0}, at(1))
    reports.add({"loss": 2.0}, at(2))
    if (child := os.fork()) == 0:
        reports.flush()
        os._exit(len(world.lines))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    reports.flush()
    assert len(world.lines) == 2


# In an event file ----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    def read():
        return [json.loads(line) for line in (tmp_path / "a-0.jsonl").read_text().splitlines()]

    return read


@pytest.fixture
def writer(tmp_path):
    return EventWriter(f"file://{tmp_path}", "a-0")


@pytest.mark.parametrize("event", ["artifact", "result", "failed", "closed"])
def test_what_was_reported_is_written_before_any_other_event(writer, written, event):
    writer.report({"loss": 1.0}, at(1))
    writer.report({"loss": 2.0}, at(2))
    writer.write(event)
    assert [line["event"] for line in written()] == ["progress", "progress", event]
    assert written()[1]["metrics"] == {"loss": 2.0}


def test_the_last_report_is_written_soon_though_nothing_follows(writer, written):
    writer.report({"loss": 1.0}, at(1))
    writer.report({"loss": 2.0}, at(2))
    deadline = time.monotonic() + 20
    while len(written()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert written()[-1]["step"] == 2


def test_a_flush_writes_what_was_reported(writer, written):
    writer.report({"loss": 1.0}, at(1))
    writer.report({"loss": 2.0}, at(2))
    writer.flush()
    assert len(written()) == 2


def test_a_report_that_is_too_large_is_refused_where_it_is_made(writer):
    with pytest.raises(EventTooLargeError, match="save_artifact"):
        writer.report({"text": "x" * (1 << 20)}, {})
