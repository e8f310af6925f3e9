"""The command line on the real engine: every command runs as a user would run it, in a process of its own."""

from __future__ import annotations

import json
import operator
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from gate import Gate
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

if TYPE_CHECKING:
    from pathlib import Path

JOBS = '''
"""Jobs for the tests; `Plain` runs a function in one process and needs nothing but Python."""

import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import helpers
import rallypoint
from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.job import Job

print("this file was read")

DRIVER = (
    "import os, sys; from rallypoint.worker import entry, process; "
    "sys.exit(process.run(lambda: entry.run_entry(sys.argv[1:]), name=os.environ['RALLYPOINT_PROCESS']))"
)


@dataclass(frozen=True, kw_only=True)
class Plain(Job):
    kind: ClassVar[str] = "plain"
    replicas: int = 1

    def roles(self):
        argv = (Macro.PYTHON, "-c", DRIVER, *self.code.command())
        return (Role(name="main", argv=argv, env=dict(self.env), replicas=self.replicas),)


def work(witness, value):
    helpers.sign(witness)
    stage = rallypoint.stage()
    stage.report(step=1, total=2, loss=0.5)
    print("started \\x1b[31min red\\x1b[0m\\x9b31m \\u00fc")
    stage.report(step=2, total=2, loss=0.25)
    if value == "bad":
        raise RuntimeError("the data are gone")
    return {"value": value}


def wait(witness, gate):
    helpers.sign(witness)
    print("waiting", flush=True)
    select.select([os.open(gate, os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
    return {"waited": True}


HERE = Path(__file__).parent
WITNESS = str(HERE / "witness.txt")

plain = Plain(
    rallypoint.Function(work, args=(WITNESS, "good")),
    env={"COLOUR": "blue sky"},
    secrets={"TOKEN": "hunter2-hunter2"},
)
pair = Plain(rallypoint.Function(work, args=(WITNESS, "pair")), replicas=2)
slow = Plain(rallypoint.Function(wait, args=(WITNESS, str(HERE / "gate"))))
bad = Plain(rallypoint.Function(work, args=(WITNESS, "bad")))
torch = rallypoint.TorchElastic(
    rallypoint.Function(work, args=(WITNESS, "good")), nproc_per_node=1, secrets={"TOKEN": "hunter2-hunter2"}
)
torch_bad = rallypoint.TorchElastic(rallypoint.Function(work, args=(WITNESS, "bad")), nproc_per_node=1)
beside = rallypoint.TorchElastic(rallypoint.Script("beside.py"), nproc_per_node=1)
typo = rallypoint.TorchElastic(rallypoint.Script("besides.py"), nproc_per_node=1)
not_a_job = 3
'''

HELPERS = """
import os

def sign(witness):
    with open(witness, "a") as file:
        file.write(f"{os.environ['RALLYPOINT_ATTEMPT']} {os.environ['RALLYPOINT_PROCESS']}\\n")
"""


class Place:
    """A folder with the jobs, a store of its own, and the command line."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs = folder / "jobs.py"
        self.jobs.write_text(JOBS)
        (folder / "helpers.py").write_text(HELPERS)
        self.gate = Gate(folder / "gate")
        self.store = folder / "store"
        # A terminal's width is none of a pipe's, and some library sets it for the process of the tests.
        strange = ("RALLYPOINT", "AIRFLOW", "COLUMNS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        self.environment = {**kept, "HOME": str(folder / "home"), "RALLYPOINT_STORE": str(self.store)}
        self.started: list[subprocess.Popen] = []

    def start(self, *words, env=None):
        process = subprocess.Popen(
            [sys.executable, "-m", "rallypoint.cli", *map(str, words)],
            env=self.environment if env is None else env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def cli(self, *words, env=None):
        process = self.start(*words, env=env)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def signatures(self):
        file = self.folder / "witness.txt"
        return file.read_text().splitlines() if file.exists() else []

    def open_gate(self):
        self.gate.open()

    def processes(self, attempt=None):
        """The living processes of this place's attempts, by the environment that marks them."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
            except psutil.Error:
                continue
            mine = str(self.folder) in environment.get("RALLYPOINT_RUN_DIR", "")
            if mine and attempt in (None, environment["RALLYPOINT_ATTEMPT"]):
                found.append(process)
        return found

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.gate.close()
        left = self.processes()
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def torch_run(tmp_path_factory):
    """A training with torchrun that has succeeded, and what its run printed."""
    made = Place(tmp_path_factory.mktemp("torch"))
    yield made, made.cli("run", "jobs.py:torch")
    made.close()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A plain job that has succeeded, and what its run printed. Nobody may run it again."""
    made = Place(tmp_path_factory.mktemp("done"))
    yield made, made.cli("run", "jobs.py:plain")
    made.close()


def eventually(condition, timeout=20):
    look = Retrying(retry=retry_if_result(operator.not_), stop=stop_after_delay(timeout), wait=wait_fixed(0.05))
    return look(condition)


def state_of(place, stage):
    return json.loads(place.cli("status", stage, "--json").stdout)["attempts"][-1]["state"]


# check ---------------------------------------------------------------------------------------------------------------


def test_check_shows_what_a_launchers_hosts_have_and_fails_if_something_is_wrong(place):
    shown = place.cli("check", "--requires", "psutil")
    assert shown.returncode == 0, shown.stderr
    row = shown.stdout.splitlines()[3]
    assert [word in row for word in ("127.0.0.1", psutil.__version__, "right")] == [True] * 3
    wrong = place.cli("check", "--requires", "no_such_module", "--json")
    assert wrong.returncode == 1
    (host,) = json.loads(wrong.stdout)
    assert host["problems"] == [f"{sys.executable} has no no_such_module"]
    assert host["versions"] == {}
    refused = place.cli("check", "ray-jobs://127.0.0.1:1")
    assert (refused.returncode, "expected one with hosts of its own" in refused.stderr) == (2, True)


# plan ----------------------------------------------------------------------------------------------------------------


def test_plan_shows_command_lines_environment_and_files_with_macros_left_readable(place):
    done = place.cli("plan", "jobs.py:torch")
    assert done.returncode == 0, done.stderr
    assert "rallypoint.frameworks.torch.driver" in done.stdout
    assert "--rdzv-endpoint=${rallypoint:host}:${rallypoint:port.rdzv}" in done.stdout
    assert "function.pkl (" in done.stdout
    assert "a free port on the first host" in done.stdout
    assert "COLOUR=blue sky" in place.cli("plan", "jobs.py:plain").stdout


def test_plan_masks_secrets(place):
    for options in ((), ("--json",), ("--placed",), ("--placed", "--json")):
        done = place.cli("plan", "jobs.py:plain", *options)
        assert "TOKEN" in done.stdout
        assert "hunter2" not in done.stdout + done.stderr


def test_plan_as_json_is_the_gang(place):
    done = place.cli("plan", "jobs.py:plain", "--json")
    gang = json.loads(done.stdout)
    assert gang["v"] == 1
    assert gang["secrets"] == ["TOKEN"]
    assert [role["name"] for role in gang["roles"]] == ["main"]
    assert gang["roles"][0]["env"]["COLOUR"] == "blue sky"


def test_plan_placed_shows_the_processes_of_this_machine(place):
    placed = json.loads(place.cli("plan", "jobs.py:pair", "--placed", "--json").stdout)["placed"]
    assert [process["name"] for process in placed["processes"]] == ["main-0", "main-1"]
    assert placed["processes"][0]["argv"][0] == sys.executable
    assert "RALLYPOINT_PROCESS=main-1" in place.cli("plan", "jobs.py:pair", "--placed").stdout


def test_plan_starts_nothing_and_writes_nothing(place):
    place.cli("plan", "jobs.py:plain", "--placed")
    assert not place.store.exists()
    assert place.signatures() == []


def test_plan_imports_no_framework(place):
    code = (
        "import sys; from rallypoint.cli.commands import app; app(['plan', 'jobs.py:torch'], standalone_mode=False);"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=place.environment,
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))
    assert "rallypoint" in loaded
    assert not loaded & {"torch", "tensorflow", "ray", "pyspark", "dask", "distributed", "pandas", "numpy", "airflow"}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("jobs.py", ["without a name", "plain (Plain)", "torch (TorchElastic)"]),
        ("jobs.py:", ["without a name", "plain (Plain)"]),
        ("jobs.py:plane", ["no plane", "plain (Plain)"]),
        ("jobs.py:not_a_job", ["not_a_job is a int", "plain (Plain)"]),
        ("nowhere.py:plain", ["no such file", "FILE.py:NAME"]),
        ("plain", ["no such file", "FILE.py:NAME"]),
        ("broken.py:plain", ["broken.py:2 cannot be loaded", "ModuleNotFoundError", "no_such_module"]),
        ("syntax.py:plain", ["syntax.py:1 cannot be loaded", "SyntaxError"]),
        ("leaves.py:plain", ["leaves.py:1 cannot be loaded", "SystemExit: 3"]),
        ("wrong.py:plain", ["wrong.py:2 cannot be loaded", "InvalidJobError", "nproc_per_node"]),
    ],
)
def test_a_wrong_target_is_one_line_that_says_what_there_is(place, target, words):
    (place.folder / "broken.py").write_text("import json\nimport no_such_module\n")
    (place.folder / "syntax.py").write_text("def :\n")
    (place.folder / "leaves.py").write_text("raise SystemExit(3)\n")
    (place.folder / "wrong.py").write_text(
        "import rallypoint\nplain = rallypoint.TorchElastic('/a.py', nproc_per_node=0)\n"
    )
    for command in ("plan", "run"):
        done = place.cli(command, target)
        assert done.returncode == 2
        said = [line for line in done.stderr.splitlines() if line != "this file was read"]
        assert len(said) == 1, done.stderr
        assert all(word in said[0] for word in words), said[0]
        assert done.stdout == ""


def test_wrong_options_are_refused_without_a_traceback(place):
    for words in (
        ("run", "jobs.py:plain", "--resume", "perhaps"),
        ("run", "jobs.py:plain", "--launcher", "slurm:///x"),
        ("run", "jobs.py:plain", "--store", "ftp://x/y"),
        ("run", "jobs.py:plain", "--stage", " "),
        ("logs", "x", "--rank", "0", "--process", "main-0"),
        ("cancel", "no/such/stage"),
        ("status", str(place.folder)),
    ):
        done = place.cli(*words)
        assert done.returncode == 2, words
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()


# run -----------------------------------------------------------------------------------------------------------------


def test_run_prints_the_result_alone_on_standard_output(done):
    _, first = done
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == {"value": "good"}
    assert "first attempt" in first.stderr
    assert "[main-0] started in red ü" in first.stderr
    assert "progress: step 2/2 loss=0.25" in first.stderr


def test_nothing_that_a_job_prints_steers_the_terminal(done):
    place, first = done
    logs = place.cli("logs", "jobs.plain")
    for text in (first.stderr, logs.stdout):
        assert "\x1b" not in text
        assert "\x9b" not in text


def test_secrets_reach_no_file_and_no_output(done):
    place, first = done
    files = [file for file in place.folder.rglob("*") if file.is_file() and file.name != "jobs.py"]
    assert not [file for file in files if b"hunter2" in file.read_bytes() and "__pycache__" not in file.parts]
    assert "hunter2" not in first.stdout + first.stderr


def test_a_second_run_of_a_stage_that_succeeded_returns_its_result_and_runs_nothing(done):
    place, first = done
    second = place.cli("run", "jobs.py:plain")
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert "its result is returned, nothing runs" in second.stderr
    assert "--rerun" in second.stderr
    assert len(place.signatures()) == 1


def test_a_second_run_says_when_the_work_has_changed_since(place):
    place.cli("run", "jobs.py:plain", "--stage", "mine")
    second = place.cli("run", "jobs.py:pair", "--stage", "mine")
    assert json.loads(second.stdout) == {"value": "good"}
    assert "the work has changed since: argument #2 changed" in second.stderr


def test_rerun_runs_a_stage_that_succeeded_again_in_a_new_generation(place):
    place.cli("run", "jobs.py:plain")
    assert "generation 2" in place.cli("run", "jobs.py:plain", "--rerun").stderr
    assert len(place.signatures()) == 2


def test_a_failed_run_says_why_and_exits_with_1(place):
    failed = place.cli("run", "jobs.py:bad")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "RuntimeError: the data are gone" in failed.stderr
    assert "what to do:" in failed.stderr
    assert "rallypoint logs rp-jobs-bad-" in failed.stderr
    again = place.cli("run", "jobs.py:bad")
    assert "continuing from its last checkpoint" in again.stderr
    assert "from scratch" in place.cli("run", "jobs.py:bad", "--resume", "never").stderr


def test_a_launcher_that_cannot_run_the_job_is_a_failed_stage(place):
    done = place.cli("run", "jobs.py:plain", "--launcher", f"local://{place.folder}/runs?python=/no/such/python")
    assert done.returncode == 1
    assert "/no/such/python" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_the_job_and_waits_for_its_end(place):
    running = place.start("run", "jobs.py:slow")
    eventually(place.signatures)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=40)
    assert running.returncode == 1
    assert stdout == ""
    assert "stopping the job" in stderr
    assert "interrupted by Ctrl-C" in stderr
    assert place.processes() == []
    assert state_of(place, "jobs.slow") == "cancelled"


def test_a_killed_command_leaves_the_job_and_the_next_run_reattaches(place):
    first = place.start("run", "jobs.py:slow")
    eventually(place.signatures)
    first.kill()
    first.communicate()
    assert state_of(place, "jobs.slow") == "live"
    second = place.start("run", "jobs.py:slow")
    eventually(lambda: "reattached" in second.stderr.readline())
    place.open_gate()
    stdout, stderr = second.communicate(timeout=40)
    assert second.returncode == 0, stderr
    assert json.loads(stdout) == {"waited": True}
    assert len(place.signatures()) == 1


def test_a_job_that_ended_unseen_is_shown_as_what_it_is(place):
    first = place.start("run", "jobs.py:slow")
    attempt = eventually(place.signatures)[0].split()[0]
    first.kill()
    first.communicate()
    place.open_gate()
    eventually(lambda: not place.processes(attempt))
    assert state_of(place, "jobs.slow") == "succeeded"


def test_two_runs_at_the_same_time_are_one_job(place):
    both = [place.start("run", "jobs.py:slow") for _ in range(2)]
    eventually(place.signatures)
    place.open_gate()
    for process in both:
        stdout, stderr = process.communicate(timeout=60)
        assert json.loads(stdout) == {"waited": True}, stderr
    assert len(place.signatures()) == 1


@pytest.mark.engine
def test_run_trains_with_torchrun(torch_run):
    _, first = torch_run
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == {"value": "good"}
    assert "rank 0 of 1" in first.stderr


@pytest.mark.engine
def test_the_relative_path_of_a_script_is_one_beside_the_file(place):
    (place.folder / "beside.py").write_text("import rallypoint; rallypoint.stage().result(7)")
    ran = place.cli("run", "jobs.py:beside")
    assert (ran.returncode, ran.stdout.strip()) == (0, "7"), ran.stderr
    missing = place.cli("run", "jobs.py:typo")
    assert missing.returncode == 1
    assert f"got the script '{place.folder / 'besides.py'}'" in missing.stderr


@pytest.mark.engine
def test_the_report_of_a_failed_training_names_the_rank(place):
    failed = place.cli("run", "jobs.py:torch_bad")
    assert failed.returncode == 1
    assert "rank 0" in failed.stderr.partition("stage failed")[2].splitlines()[0]
    assert "the data are gone" in failed.stderr


# status and logs -----------------------------------------------------------------------------------------------------


def test_status_lists_all_stages(done):
    place, _ = done
    shown = place.cli("status")
    assert shown.returncode == 0, shown.stderr
    (row,) = [line for line in shown.stdout.splitlines() if "cli/jobs.plain" in line]
    assert "succeeded" in row
    assert "step 2/2 loss=0.25" in row
    (stage,) = json.loads(place.cli("status", "--json").stdout)
    assert stage["stage"] == ["cli", "jobs.plain"]
    assert (stage["state"], stage["step"], stage["total"]) == ("succeeded", 2, 2)


def test_status_of_an_empty_store_says_so(place):
    shown = place.cli("status")
    assert shown.returncode == 0
    assert "no stages" in shown.stdout
    assert json.loads(place.cli("status", "--json").stdout) == []


def test_status_of_a_stage_shows_attempts_processes_and_result(done):
    place, _ = done
    shown = place.cli("status", "jobs.plain")
    assert "first attempt" in shown.stdout
    assert "main-0" in shown.stdout
    assert '{"value": "good"}' in shown.stdout
    told = json.loads(place.cli("status", "cli/jobs.plain", "--json").stdout)
    assert [attempt["state"] for attempt in told["attempts"]] == ["succeeded"]
    assert [process["exit_code"] for process in told["shown"]["processes"]] == [0]


def test_status_of_a_failed_stage_shows_the_report(place):
    place.cli("run", "jobs.py:bad")
    place.cli("run", "jobs.py:bad")
    shown = place.cli("status", "jobs.bad")
    assert "RuntimeError: the data are gone" in shown.stdout
    told = json.loads(place.cli("status", "jobs.bad", "--json").stdout)
    assert [attempt["number"] for attempt in told["attempts"]] == [1, 2]
    assert told["shown"]["failure"]["exception"] == "RuntimeError"
    first = json.loads(place.cli("status", told["attempts"][0]["attempt"], "--json").stdout)
    assert first["shown"]["number"] == 1


def test_an_attempt_id_and_a_run_folder_name_the_stage_too(done):
    place, _ = done
    (attempt,) = (name.split()[0] for name in place.signatures())
    expected = place.cli("logs", "cli/jobs.plain").stdout
    assert "started in red ü" in expected
    assert place.cli("logs", attempt).stdout == expected
    elsewhere = {**place.environment, "RALLYPOINT_STORE": str(place.folder / "another")}
    assert place.cli("logs", place.store / "runs" / attempt, env=elsewhere).stdout == expected


def test_logs_of_several_processes_name_them_and_of_one_are_plain(place):
    place.cli("run", "jobs.py:pair")
    lines = place.cli("logs", "jobs.pair").stdout.splitlines()
    assert {line.partition(" ")[0] for line in lines} == {"[main-0]", "[main-1]"}
    assert place.cli("logs", "jobs.pair", "--process", "main-1").stdout == "started in red ü\n"


def test_logs_of_a_process_that_is_not_there_say_which_are(done):
    place, _ = done
    wrong = place.cli("logs", "jobs.plain", "--process", "main-7")
    assert wrong.returncode == 2
    assert "expected one of main-0" in wrong.stderr
    assert "no rank has opened" in place.cli("logs", "jobs.plain", "--rank", "0").stderr
    assert "expected one of its attempts: 1" in place.cli("logs", "jobs.plain", "--attempt", "4").stderr


def test_logs_follow_until_the_attempt_has_ended(place):
    running = place.start("run", "jobs.py:slow")
    eventually(place.signatures)
    following = place.start("logs", "jobs.slow", "--process", "main-0", "--follow")
    assert following.stdout.readline() == "waiting\n"
    assert following.poll() is None
    place.open_gate()
    running.communicate(timeout=40)
    following.communicate(timeout=20)
    assert following.returncode == 0


@pytest.mark.engine
def test_logs_of_a_rank_are_its_own(torch_run):
    place, _ = torch_run
    assert place.cli("logs", "jobs.torch", "--rank", "0").stdout == "started in red ü\n"
    wrong = place.cli("logs", "jobs.torch", "--rank", "5")
    assert wrong.returncode == 2
    assert "got the rank 5, expected one of 0" in wrong.stderr


# cancel and forget ---------------------------------------------------------------------------------------------------


def test_cancel_stops_a_running_job_and_leaves_no_process(place):
    running = place.start("run", "jobs.py:slow")
    attempt = eventually(place.signatures)[0].split()[0]
    assert place.processes(attempt)
    refused = place.cli("cancel", "jobs.slow")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert place.processes(attempt)
    done = place.cli("cancel", "jobs.slow", "--yes")
    assert done.returncode == 0, done.stderr
    assert "is cancelled" in done.stderr
    eventually(lambda: not place.processes(attempt))
    _, stderr = running.communicate(timeout=20)
    assert running.returncode == 1
    assert "cancelled with rallypoint cancel" in stderr


def test_cancel_of_what_does_not_run_says_so(done):
    place, _ = done
    said = place.cli("cancel", "jobs.plain", "--yes")
    assert said.returncode == 0
    assert "nothing of cli/jobs.plain is running" in said.stderr


def test_forget_has_the_next_run_start_a_new_generation(place):
    place.cli("run", "jobs.py:plain")
    said = place.cli("forget", "jobs.plain", "--yes")
    assert said.returncode == 0, said.stderr
    assert "from scratch, in generation 2" in said.stderr
    assert "generation 2" in place.cli("run", "jobs.py:plain").stderr
    assert len(place.signatures()) == 2
    assert "nothing runs" in place.cli("run", "jobs.py:plain").stderr


def test_forget_of_a_running_stage_has_the_next_run_replace_it(place):
    first = place.start("run", "jobs.py:slow")
    attempt = eventually(place.signatures)[0].split()[0]
    said = place.cli("forget", "jobs.slow", "--yes")
    assert "stops it, then launches it again from its last checkpoint" in said.stderr
    second = place.start("run", "jobs.py:slow")
    eventually(lambda: len(place.signatures()) == 2)
    assert place.processes(attempt) == []
    place.open_gate()
    assert json.loads(second.communicate(timeout=40)[0]) == {"waited": True}
    first.communicate(timeout=20)
    assert first.returncode == 1


# prune ---------------------------------------------------------------------------------------------------------------


def test_prune_shows_what_would_go_asks_and_removes_it(place):
    for _ in range(3):
        place.cli("run", "jobs.py:plain", "--rerun")
    (place.store / "stages/cli/jobs.plain/generations/000001/artifacts").mkdir(parents=True)
    (place.store / "stages/cli/jobs.plain/generations/000001/artifacts/model").write_bytes(b"x" * 5_000_000)
    shown = place.cli("prune", "--older-than", "0s", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "cli/jobs.plain" in shown.stdout
    assert "generation" in shown.stdout
    assert "5.0 MB" in shown.stdout
    assert "would be removed" in shown.stderr
    refused = place.cli("prune", "--older-than", "0s")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert "good" not in place.cli("prune", "--older-than", "1d", "--yes").stdout
    assert "started" in place.cli("logs", "jobs.plain").stdout
    done = place.cli("prune", "--older-than", "0s", "--yes")
    assert done.returncode == 0, done.stderr
    assert re.search(r"removed \d\.\d MB", done.stderr)
    assert not (place.store / "stages/cli/jobs.plain/generations/000001").exists()
    assert "rallypoint prune" in place.cli("logs", "jobs.plain").stderr
    assert state_of(place, "jobs.plain") == "succeeded"
    assert "loss=0.25" in place.cli("status", "jobs.plain").stdout
    assert json.loads(place.cli("run", "jobs.py:plain").stdout) == {"value": "good"}
    assert len(place.signatures()) == 3
    assert "nothing in" in place.cli("prune", "--older-than", "0s", "--yes").stderr


def test_prune_forgets_a_stage_whole_and_it_then_runs_anew(place):
    place.cli("run", "jobs.py:plain")
    assert place.cli("prune", "--older-than", "0s", "--forget-stages", "--stage", "jobs.plain", "--yes").returncode == 0
    assert "no stages" in place.cli("status").stdout
    again = place.cli("run", "jobs.py:plain")
    assert json.loads(again.stdout) == {"value": "good"}
    assert "first attempt" in again.stderr
    assert len(place.signatures()) == 2


def test_prune_leaves_what_runs_alone(place):
    running = place.start("run", "jobs.py:slow")
    eventually(place.signatures)
    said = place.cli("prune", "--older-than", "0s", "--keep-generations", "1", "--forget-stages", "--yes")
    assert said.returncode == 0
    assert "nothing in" in said.stderr
    place.open_gate()
    assert json.loads(running.communicate(timeout=40)[0]) == {"waited": True}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--older-than", "soon"], "got 'soon', expected a number and a unit"),
        (["--keep-generations", "0"], "--keep-generations"),
        (["--stage", "nobody"], "names no stage"),
    ],
)
def test_prune_says_what_is_wrong_with_an_option(place, words, said):
    refused = place.cli("prune", *words)
    assert refused.returncode == 2
    assert said in refused.stderr
