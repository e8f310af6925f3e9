"""When a run has been silent for too long, and how seldom that has to be looked at."""

from __future__ import annotations

import os
import time

import pytest

from rallypoint.worker import silence


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose clocks a test moves; its last line was written at 0."""

    class Run:
        now, looks = 0.0, 0

        def write(self, name, t):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (1000 + t, 1000 + t))

        def too_long(self, now):
            self.now = now
            return self.silence.too_long()

    def look(*arguments, real=silence.silent_for):
        found.looks += 1
        return real(*arguments)

    found = Run()
    found.silence = silence.Silence(str(tmp_path), str(tmp_path / "events"), 10.0)
    found.write("started.json", 0)
    monkeypatch.setattr(time, "time", lambda: 1000 + found.now)
    monkeypatch.setattr(time, "monotonic", lambda: found.now)
    monkeypatch.setattr(silence, "silent_for", look)
    return found


def test_it_is_told_as_soon_as_it_is_too_long(run):
    run.write("logs/main-0.log", 4)

    assert [run.too_long(now) for now in (5, 10, 13.9, 14)] == [None, None, None, 10]


def test_what_writes_all_the_time_is_looked_at_once_in_that_time(run):
    for tenth in range(1000):
        run.write("events/main-0.jsonl", tenth / 10)
        assert run.too_long(tenth / 10) is None

    assert run.looks == 10


def test_who_asked_for_patience_and_spoke_before_it_was_over_is_silent_from_then_on(run):
    run.write("events/main-0.jsonl", 100)  # starts up, and may take until then
    assert run.too_long(1) is None
    run.write("events/main-0.jsonl", 5)

    assert [run.too_long(now) for now in (14, 16)] == [None, 11]


def test_nothing_is_too_long_without_a_limit(tmp_path):
    assert silence.Silence(str(tmp_path), None, None).too_long() is None
