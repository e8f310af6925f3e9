"""How an elastic gang's job asks Slurm for more nodes, with commands that write down what they were asked."""

from __future__ import annotations

import json
import os
import stat
import time

import pytest

from rallypoint.worker import slurm_folder, slurm_growth
from rallypoint.worker.slurm_growth import Growth, Joining, submitted

REQUEST = {"options": ["--nodes=1", "--exclude=n9"], "job": ["job.sh", "python", "-m", "rallypoint.worker.slurm"]}
SAYS = """#!/bin/sh
echo "${{0##*/}} $*" >> {folder}/asked
env > {folder}/environment
cat {folder}/answer
exit $(cat {folder}/code)
"""


class Commands:
    """sbatch, scancel and scontrol, as far as they are asked."""

    def __init__(self, folder):
        self.folder = folder
        self.say("7")
        for name in ("sbatch", "scancel", "scontrol"):
            path = folder / name
            path.write_text(SAYS.format(folder=folder))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def say(self, answer, code=0):
        (self.folder / "answer").write_text(f"{answer}\n")
        (self.folder / "code").write_text(str(code))

    @property
    def asked(self):
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def environment(self):
        return dict(
            line.split("=", 1) for line in (self.folder / "environment").read_text().splitlines() if "=" in line
        )


@pytest.fixture
def commands(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    monkeypatch.setattr(slurm_growth, "_LOOK", 0.0)
    return Commands(folder)


@pytest.fixture
def growth(tmp_path):
    """A run of a gang of one to three nodes, whose first node has begun."""
    write(tmp_path / "slurm.json", {"failed_grace": 1.0, "requeue": 3})
    write(tmp_path / "i0" / "meeting.json", {})
    write(tmp_path / "i0" / "nodes" / "0" / "heartbeat.json", {"t": 1.0})
    return Growth(str(tmp_path), 0, nodes=1, most=3, request=REQUEST)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def looks_until(growth, condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        growth.look()
        time.sleep(0.01)


def test_nothing_is_asked_for_before_the_first_node_has_said_where_it_is(growth, commands, tmp_path):
    (tmp_path / "i0" / "meeting.json").unlink()
    growth.look()
    assert commands.asked == []


def test_one_array_has_an_element_for_each_further_node(growth, commands, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.setenv("TOKEN", "s3cr3t")
    looks_until(growth, lambda: submitted(growth.run_dir) == ["7"])
    for _ in range(5):
        growth.look()
    job = f"job.sh python -m rallypoint.worker.slurm join {tmp_path} 0"
    assert commands.asked == [f"sbatch --parsable --array=1,2 --nodes=1 --exclude=n1,n9 {job}"]
    assert commands.environment["TOKEN"] == "s3cr3t"
    assert "SLURM_CPUS_PER_TASK" not in commands.environment  # it is an option of sbatch


def test_what_slurm_refuses_is_asked_for_again_later(growth, commands, monkeypatch, capsys):
    monkeypatch.setattr(slurm_growth, "_PAUSE", 0.0)
    growth._pause = 0.0
    commands.say("sbatch: error: QOSMaxSubmitJobPerUserLimit", code=1)
    looks_until(growth, lambda: len(commands.asked) == 2)
    assert "QOSMaxSubmitJobPerUserLimit" in capsys.readouterr().out
    commands.say("8")
    looks_until(growth, lambda: submitted(growth.run_dir) == ["8"])


def test_a_node_without_sbatch_keeps_the_gang_from_growing_and_nothing_else(growth, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    growth.look()
    growth.close(good=True, wait=True)
    assert "no job for further nodes could be submitted" in capsys.readouterr().out


def test_a_node_of_the_job_that_falls_silent_is_asked_for_anew(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_folder, "STALE", 0.0)
    write(tmp_path / "i0" / "meeting.json", {})
    write(tmp_path / "i0" / "nodes" / "2" / "final.json", {"reason": "completed"})
    growth = Growth(str(tmp_path), 0, nodes=3, most=3, request=REQUEST)
    looks_until(growth, lambda: submitted(growth.run_dir) == ["7"])
    assert "--array=1 --nodes=1 --exclude=n9" in commands.asked[0]  # its host may come back


def test_the_end_of_a_run_cancels_what_waits_and_lets_nothing_start(growth, commands, tmp_path, monkeypatch):
    looks_until(growth, lambda: submitted(growth.run_dir) == ["7"])
    growth.close(good=False, wait=True)
    assert commands.asked[1:] == ["scancel --quiet --state=PENDING 7"]
    for name, value in (("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_JOB_ID", "7")):
        monkeypatch.setenv(name, value)
    assert Joining(str(tmp_path), 0, set()).run(["false"]) == 0
    assert not (tmp_path / "i0" / "nodes" / "1.1").exists()


def test_of_two_elements_for_one_node_the_second_ends(commands, tmp_path, monkeypatch):
    write(tmp_path / "i0" / "nodes" / "1.json", {"job": "7_1"})
    for name, value in (("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_JOB_ID", "8")):
        monkeypatch.setenv(name, value)
    assert Joining(str(tmp_path), 0, set()).run(["false"]) == 0
    assert not (tmp_path / "i0" / "nodes" / "1.1").exists()


def test_an_element_whose_job_is_silent_starts_nothing(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_folder, "STALE", 0.1)
    monkeypatch.setattr(slurm_folder, "TICK", 0.01)
    write(tmp_path / "slurm.json", {"failed_grace": 1.0, "requeue": 3})
    write(tmp_path / "i0" / "nodes" / "0" / "heartbeat.json", {"t": 1.0})
    for name, value in (("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_JOB_ID", "7")):
        monkeypatch.setenv(name, value)
    assert Joining(str(tmp_path), 0, set()).run(["false"]) == 0
    assert not (tmp_path / "i0" / "nodes" / "1.1").exists()
