"""What `make` says on a machine where no virtual environment can be made."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

INSTALL = Path(__file__).resolve().parents[2] / "devtools" / "install.sh"


@pytest.fixture
def install(tmp_path):
    """Runs the set-up with a Python that fails at what matches a pattern of the shell."""

    def run(pattern):
        python = tmp_path / "python3"
        python.write_text(f'#!/bin/sh\ncase "$*" in {pattern}) exit 1;; esac\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
        command = ["sh", str(INSTALL), str(tmp_path / "venv")]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.mark.parametrize(
    ("fails_at", "words"),
    [
        ("*version_info*", "expected Python 3.11 or later: name one with make PYTHON="),
        ("*ensurepip*", "apt-get install python3-venv"),  # Debian's python3 without python3-venv
    ],
)
def test_a_python_that_will_not_do_is_named_before_anything_is_made(install, tmp_path, fails_at, words):
    done = install(fails_at)
    assert done.returncode == 1
    assert words in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_environment_that_was_left_unfinished_is_made_again(install, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    assert "python3-venv" in install("*ensurepip*").stderr  # it came to making one
