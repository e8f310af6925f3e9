"""What a job's Python has is looked up before a launch, and a process is started for that only where it has to be."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import ANY

import pytest

from rallypoint.launchers import interpreters
from rallypoint.launchers.interpreters import look_at

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_of_this_interpreters_own_packages_no_process_is_asked(monkeypatch):
    def run(*_, **__):
        pytest.fail("a process was started")

    monkeypatch.setattr(interpreters.subprocess, "run", run)
    assert look_at(sys.executable, ()) == {"python": HERE, "missing": [], "versions": {}}
    found = look_at(sys.executable, ("cloudpickle", "pytest"))
    assert found == {"python": HERE, "missing": [], "versions": {"cloudpickle": ANY, "pytest": pytest.__version__}}


def test_a_module_that_only_this_process_finds_is_missing(monkeypatch, tmp_path):
    """Jobs get none of the orchestrator's PYTHONPATH."""
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = look_at(sys.executable, ("json", "only_here"))
    assert found == {"python": HERE, "missing": ["only_here"], "versions": {}}


def test_another_interpreter_is_asked_itself(tmp_path):
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    version = subprocess.run([other, "-V"], capture_output=True, text=True, check=True).stdout
    found = look_at(str(other), ("json", "no_such_module"))
    assert version.startswith(f"Python {found['python']}.")
    assert found["missing"] == ["no_such_module"]
