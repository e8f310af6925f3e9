"""The private Prefect of the demo and the tests: what is stopped with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prefect_instance import MARK, stop_home

from rallypoint.worker import context


@pytest.fixture
def sleeper():
    """Starts processes that wait for ever, with more in their environment."""
    started = []

    def start(**environment):
        command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(3600)"]
        process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE)
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_jobs_below_a_home_are_stopped_with_it_and_no_others(tmp_path, sleeper):
    home = tmp_path / "home"
    own = sleeper(**{MARK: str(home)})
    job = sleeper(**{context.RUN_DIR: f"{home}/rallypoint/runs/rp-train-0b1e55ed00-a1"})
    others = [
        sleeper(**{MARK: f"{home}-2"}),
        sleeper(**{context.RUN_DIR: f"{home}-2/rallypoint/runs/rp-train-0b1e55ed00-a1"}),
    ]
    stopped = stop_home(home)
    assert sorted(line.split(":")[0] for line in stopped) == sorted(f"pid {each.pid}" for each in (own, job))
    assert own.poll() is not None
    assert job.poll() is not None
    assert [each.poll() for each in others] == [None, None]
