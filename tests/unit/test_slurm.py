"""The Slurm launcher without a Slurm: its states, what it parses, what it asks, and how often."""

from __future__ import annotations

import asyncio
import json
import os
import time

import pytest

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Handle, Phase
from rallypoint.launchers.registry import open_launcher
from rallypoint.launchers.slurm import SlurmLauncher, queue
from rallypoint.launchers.slurm.address import Address, Ask
from rallypoint.launchers.slurm.attempt_folder import AttemptFolder
from rallypoint.launchers.slurm.commands import CommandError, Commands, environment
from rallypoint.launchers.slurm.queue import Queue, QueuedJob, parse_sacct, parse_squeue
from rallypoint.launchers.slurm.states import STATES, Meaning, meaning
from rallypoint.launchers.slurm.submission import SCRIPT, Submission
from rallypoint.launchers.slurm.survey import gpus_in, parse_sinfo
from rallypoint.spec.gang import Gang, Macro, Role, Secret
from rallypoint.spec.resources import Resources
from rallypoint.stages import failure_table
from rallypoint.stages.events import Event
from rallypoint.stages.view import AttemptView
from rallypoint.worker import context, hostprocs, slurm_folder
from rallypoint.worker import slurm as worker

URI = "slurm://gpu?root=/shared/runs"


def submission(gang, **ask):
    return Submission(
        gang=gang, attempt="rp-train-1", folder="/shared/runs/rp-train-1", partition="gpu", ask=Ask(**ask), python="py"
    )


def agents(replicas=2, least=None, **more):
    role = Role(name="agent", argv=(Macro.PYTHON, Macro.ADDRESS), replicas=replicas, min_replicas=least, **more)
    return Gang(name="torch", roles=(role,))


# States ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "means"),
    [
        ("PENDING", Meaning.THERE),
        ("RUNNING", Meaning.THERE),
        ("SUSPENDED", Meaning.THERE),
        ("COMPLETING", Meaning.THERE),
        ("CONFIGURING", Meaning.THERE),
        ("REQUEUED", Meaning.THERE),
        ("REQUEUE_HOLD", Meaning.THERE),
        ("STAGE_OUT", Meaning.THERE),
        ("COMPLETED", Meaning.COMPLETED),
        ("FAILED", Meaning.FAILED),
        ("CANCELLED", Meaning.CANCELLED),
        ("CANCELLED by 1000", Meaning.CANCELLED),
        ("CANCELLED+", Meaning.CANCELLED),
        ("TIMEOUT", Meaning.TIME_LIMIT),
        ("PREEMPTED", Meaning.PREEMPTED),
        ("NODE_FAIL", Meaning.NODE_LOST),
        ("BOOT_FAIL", Meaning.NODE_LOST),
        ("OUT_OF_MEMORY", Meaning.OUT_OF_MEMORY),
        ("DEADLINE", Meaning.DEADLINE),
        ("A_STATE_OF_TOMORROW", Meaning.THERE),
        ("", Meaning.THERE),
    ],
)
def test_a_state_means_what_the_manual_says_and_an_unknown_one_that_the_job_is_there(state, means):
    assert meaning(state) is means


def test_every_end_that_slurm_knows_has_a_rule_for_its_failure():
    ends = set(STATES.values()) - {Meaning.THERE, Meaning.COMPLETED, Meaning.FAILED}
    assert {end.value for end in ends} <= failure_table.BY_REASON.keys()


# What Slurm prints ----------------------------------------------------------------------------------------------------


def test_squeues_lines_are_read_and_foreign_ones_left_out():
    text = (
        "12|RUNNING|1795771766|None|n[1-2]|rp-train-1|/shared/runs/rp-train-1\n"
        "13|PENDING|1795771999|Resources||other|a comment | with a bar\n"
        "14|COMPLETED|Unknown|None|n1|wrap|(null)\n"
        "slurm_load_jobs error: Unable to contact slurm controller\n\n"
    )
    first, second, third = parse_squeue(text)
    assert first == QueuedJob(12, "RUNNING", 1795771766.0, "None", "n[1-2]", "rp-train-1", "/shared/runs/rp-train-1")
    assert (second.reason, second.comment) == ("Resources", "a comment | with a bar")
    assert (third.submitted, third.comment) == (0.0, "")


def test_sacctcs_lines_are_read_without_steps():
    text = "12|NODE_FAIL|1795771766|rp-train-1\n12.batch|CANCELLED|1795771766|batch\n13|CANCELLED by 0|1795771767|x\n"
    assert [(job.id, job.meaning, job.name) for job in parse_sacct(text)] == [
        (12, Meaning.NODE_LOST, "rp-train-1"),
        (13, Meaning.CANCELLED, "x"),
    ]


def test_sinfos_lines_are_read_and_gpus_counted():
    nodes = parse_sinfo("n1|10.0.0.1|64|gpu:a100:4(S:0-1)|idle|none\nn2|n2|8|(null)|down*|Not responding\nnonsense\n")
    assert list(nodes) == ["n1", "n2"]
    assert (nodes["n2"]["state"], nodes["n2"]["silent"], nodes["n2"]["reason"]) == ("down", "yes", "Not responding")
    assert [gpus_in(gres) for gres in ("gpu:a100:4(S:0-1),accel:2", "gpu:2", "gpu", "accel:2", "(null)")] == [
        4,
        2,
        1,
        0,
        0,
    ]


# The address ----------------------------------------------------------------------------------------------------------


def test_a_uri_says_where_and_what_and_comes_back_the_same():
    uri = (
        "slurm://gpu,spot?root=/shared/runs&conf=/etc/slurm/b.conf&python=/opt/ml/bin/python&account=physics&qos=high"
        "&constraint=a100%26nvlink&gres=gpu:a100:4&time=12:00:00&nodes=2-8&reservation=r1&requeue=3&warning=300"
        "&setup=/shared/env.sh&sbatch=--licenses%3Dmatlab+--exclusive"
    )
    launcher = open_launcher(uri)
    assert isinstance(launcher, SlurmLauncher)
    ask = launcher.address.ask
    assert (launcher.address.partition, launcher.address.root) == ("gpu,spot", "/shared/runs")
    assert (ask.constraint, ask.requeue, ask.warning) == ("a100&nvlink", 3, 300)
    assert ask.sbatch == ("--licenses=matlab", "--exclusive")
    assert open_launcher(launcher.uri).uri == launcher.uri
    assert Address.from_uri(launcher.uri) == launcher.address


def test_options_come_before_the_uris():
    launcher = open_launcher(URI + "&time=10", {"time": "20", "sbatch": ["--mem-bind=local"], "qos": None})
    assert launcher.address.ask.time == "20"
    assert launcher.address.ask.sbatch == ("--mem-bind=local",)


@pytest.mark.parametrize(
    "wrong",
    [
        "slurm://gpu",
        "slurm://gpu?root=runs",
        "slurm://gpu/path?root=/r",
        "slurm://g%20pu?root=/r",
        URI + "&nope=1",
        URI + "&account=a+b",
        URI + "&account=a%0Ab",
        URI + "&time=tomorrow",
        URI + "&nodes=3-2",
        URI + "&nodes=0",
        URI + "&requeue=-1",
        URI + "&requeue=many",
        URI + "&warning=0",
        URI + "&setup=env.sh",
        URI + "&sbatch=--wrap%3Drm",
        URI + "&sbatch=-J+x",
        URI + "&sbatch=--export%3DALL",
        URI + "&sbatch=--job-name%3Dx",
        URI + "&sbatch='--comment",
    ],
)
def test_what_slurm_would_misunderstand_is_refused_before(wrong):
    with pytest.raises(LaunchError, match="got"):
        open_launcher(wrong)


@pytest.mark.parametrize(
    ("time", "seconds", "notice"),
    [
        ("", None, 120),
        ("1", 60, 30),
        ("90", 5_400, 120),
        ("1:30", 90, 45),
        ("12:00:00", 43_200, 120),
        ("2-0", 172_800, 120),
        ("1-02:30", 95_400, 120),
    ],
)
def test_a_job_has_at_least_half_of_its_time_before_it_is_warned(time, seconds, notice):
    assert (Ask(time=time).limit, Ask(time=time).notice) == (seconds, notice)


# The job --------------------------------------------------------------------------------------------------------------


def test_the_request_is_an_argument_list_with_the_attempts_name_and_folder():
    hostile = "x; rm -rf $HOME `id`"
    role = Role(
        name="agent", argv=(hostile,), replicas=2, env={"A": hostile}, resources=Resources(cpus=3, memory="1GiB")
    )
    job = submission(Gang(name="torch", roles=(role,)), account="physics", time="60", sbatch=("--licenses=m",))
    words = job.sbatch()
    for word in (
        "--job-name=rp-train-1",
        "--comment=/shared/runs/rp-train-1",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=3",
        "--mem=1024M",
        "--partition=gpu",
        "--account=physics",
        "--time=60",
        "--signal=B:USR1@120",
        "--requeue",
        "--licenses=m",
    ):
        assert word in words
    assert words[-6:] == [
        "/shared/runs/rp-train-1/job.sh", "py", "-m", "rallypoint.worker.slurm", "batch", "/shared/runs/rp-train-1",
    ]  # fmt: skip
    assert not any(hostile in word for word in words)
    assert hostile.encode() not in SCRIPT


def test_each_node_has_what_its_processes_ask_for_together():
    head = Role(name="head", argv=(), resources=Resources(cpus=1))
    worker = Role(name="worker", argv=(), replicas=3, resources=Resources(cpus=2.5, gpus=1, memory="2GiB"))
    words = submission(Gang(name="ray", roles=(head, worker)), nodes="2").sbatch()
    assert "--nodes=2" in words
    assert "--cpus-per-task=5" in words  # the second node has two workers
    assert "--mem=4096M" in words
    assert "--gres=gpu:2" in words
    assert "--gres=gpu:a100:4" in submission(Gang(name="ray", roles=(worker,)), gres="gpu:a100:4").sbatch()


def test_nodes_that_need_different_things_are_components_of_one_heterogeneous_job():
    head = Role(name="head", argv=(), resources=Resources(cpus=1))
    worker = Role(name="worker", argv=(), replicas=3, resources=Resources(cpus=2.5, gpus=1, memory="2GiB"))
    gang = Gang(name="ray", roles=(head, worker))
    words = submission(gang, account="physics", sbatch=("--licenses=m",)).sbatch()
    at = words.index(":")
    first, second = words[:at], words[at:]
    for part in (first, second):
        for word in ("--job-name=rp-train-1", "--comment=/shared/runs/rp-train-1", "--account=physics", "--licenses=m"):
            assert word in part
    assert {"--nodes=1", "--cpus-per-task=1", "--signal=B:USR1@120"} <= set(first)
    assert not any(word.startswith(("--mem", "--gres")) for word in first)
    assert {"--nodes=3", "--cpus-per-task=3", "--mem=2048M", "--gres=gpu:1"} <= set(second)
    assert not any(word.startswith(("--signal", "--output")) for word in second)
    assert second[-6] == "/shared/runs/rp-train-1/job.sh"
    # The GPUs of a connection are those of the nodes that want some.
    words = submission(gang, gres="gpu:a100:4").sbatch()
    assert [word for word in words if word.startswith("--gres")] == ["--gres=gpu:a100:4"]


@pytest.mark.parametrize(
    ("resources", "ask"),
    [(Resources(cpus=2), {"nodes": "2"}), (Resources(cpus=1), {}), (Resources(), {})],
    ids=["who says how many gets equal ones", "one CPU is what a node has anyway", "nothing is asked for"],
)
def test_a_job_of_equal_nodes_has_no_components(resources, ask):
    gang = Gang(name="ray", roles=(Role(name="head", argv=()), Role(name="worker", argv=(), resources=resources)))
    assert ":" not in submission(gang, **ask).sbatch()


def test_every_component_of_a_job_runs_its_nodes_with_what_it_has(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # the first component's
    words = worker._srun([{"nodes": 1, "cpus": 1}, {"nodes": 3, "cpus": 2}], ["program", "1"])
    at = words.index(":")
    assert words[:2] == ["srun", "--het-group=0"]
    assert {"--nodes=1", "--cpus-per-task=1", "--mem=0"} <= set(words[:at])
    assert {"--het-group=1", "--nodes=3", "--cpus-per-task=2", "--mem=0"} <= set(words[at:])
    assert words[at - 2 : at] == words[-2:] == ["program", "1"]
    assert not any(word.startswith(("--het", "--mem")) for word in worker._srun([{"nodes": 2, "cpus": 0}], ["program"]))


def test_an_elastic_gang_starts_on_its_least_nodes_and_survives_the_loss_of_one():
    job = submission(agents(4, 1))
    assert "--nodes=1" in job.sbatch()
    assert "--no-kill" in job.sbatch()
    assert [len(node["processes"]) for node in job.placements()["nodes"]] == [1, 1, 1, 1]
    assert not job.settings()["together"]
    assert "--no-kill" not in submission(agents()).sbatch()
    assert submission(agents()).settings()["grows"] is None


def test_a_node_that_joins_an_elastic_gang_is_asked_for_like_the_jobs_own():
    job = submission(agents(4, 1), account="physics", nodes="2-3", sbatch=("--exclusive",))
    assert "--nodes=2" in job.sbatch()
    grows = job.settings()["grows"]
    assert grows["most"] == 3
    for word in ("--job-name=rp-train-1", "--comment=/shared/runs/rp-train-1", "--nodes=1", "--account=physics"):
        assert word in grows["request"]["options"]
    assert "--requeue" in grows["request"]["options"]
    assert grows["request"]["options"][-1] == "--exclusive"
    assert not any(word.startswith(("--signal", "--array")) for word in grows["request"]["options"])
    assert grows["request"]["job"][0] == "/shared/runs/rp-train-1/job.sh"


def test_nodes_that_are_fewer_than_the_gangs_least_share_its_processes_and_do_not_grow():
    job = submission(agents(4, 2), nodes="1")
    assert [len(node["processes"]) for node in job.placements()["nodes"]] == [2]
    assert job.settings()["grows"] is None


@pytest.mark.parametrize(
    ("gang", "nodes"), [(agents(), "3"), (agents(), "1-2"), (agents(4, 2), "2-5"), (agents(4, 2), "1-4")]
)
def test_more_nodes_than_processes_are_refused(gang, nodes):
    with pytest.raises(PreflightError, match="nodes"):
        submission(gang, nodes=nodes).sbatch()


def test_a_service_is_never_put_back_into_the_queue():
    job = submission(Gang(name="ray", roles=agents().roles, service=True))
    assert "--no-requeue" in job.sbatch()
    assert job.settings()["requeue"] == 0


def test_secrets_are_variables_and_nothing_else(tmp_path):
    gang = Gang(name="torch", roles=agents().roles, secrets={"TOKEN": Secret("s3cr3t")})
    job = submission(gang, setup="/shared/env.sh")
    assert job.environment("/bin")["TOKEN"] == "s3cr3t"
    assert "s3cr3t" not in " ".join(job.sbatch())
    AttemptFolder(tmp_path).prepare(job.files())
    assert not any(b"s3cr3t" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_commands_and_jobs_get_nothing_of_the_orchestrators_environment(monkeypatch):
    for name in (
        "AIRFLOW__CORE__FERNET_KEY",
        "SBATCH_PARTITION",
        "SLURM_JOB_ID",
        "AWS_SECRET_ACCESS_KEY",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/a.conf")
    assert environment("")["SLURM_CONF"] == "/etc/slurm/a.conf"
    found = environment("/etc/slurm/b.conf")
    assert found["SLURM_CONF"] == "/etc/slurm/b.conf"
    assert found.keys() <= {
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "PATH",
        "SLURM_CONF",
    }


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("sbatch: error: invalid partition specified: nope", True),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            True,
        ),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", False),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", False),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", False),
    ],
)
def test_a_refusal_for_good_is_told_from_one_for_now(words, refused):
    assert CommandError("sbatch", words).refused is refused


# The questions --------------------------------------------------------------------------------------------------------


class Slurm:
    """Answers squeue and sacct from what a test says, and counts."""

    def __init__(self):
        self.jobs: dict[int, str] = {}
        self.accounted: dict[int, str] = {}
        self.broken = False
        self.accounting = True
        self.asked: list[str] = []

    async def run(self, argv, *, env=None):
        self.asked.append(argv[0])
        await asyncio.sleep(0)
        if self.broken or (argv[0] == "sacct" and not self.accounting):
            raise CommandError(argv[0], "Unable to contact slurm controller")
        if argv[0] == "sacct":
            return "".join(f"{number}|{state}|100|name\n" for number, state in self.accounted.items())
        return "".join(f"{number}|{state}|100|None|n1|name|\n" for number, state in self.jobs.items())


@pytest.fixture
def slurm():
    return Slurm()


@pytest.fixture
def clock(monkeypatch):
    """The time that the queue sees; it is moved by hand."""

    class Clock:
        now = 1_000.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(queue, "time", found)
    return found


async def test_one_question_serves_every_stage_and_the_next_comes_after_the_interval(slurm, clock):
    slurm.jobs = dict.fromkeys(range(200), "PENDING")
    jobs = Queue(slurm)
    for _ in range(50):
        seen = await asyncio.gather(*(jobs.look(number) for number in range(200)))
        assert all(sighting.known and sighting.job for sighting in seen)
    assert len(slurm.asked) == 1
    clock.now += queue.SHORTEST
    await asyncio.gather(*(jobs.look(number) for number in range(200)))
    await jobs._answer()
    assert len(slurm.asked) == 2


async def test_a_look_does_not_wait_for_slurm_once_something_is_known(slurm, clock):
    slurm.jobs = {1: "PENDING"}
    jobs = Queue(slurm)
    await jobs.look(1)
    slurm.jobs = {1: "RUNNING"}
    clock.now += 60
    assert (await jobs.look(1)).job.state == "PENDING"
    await jobs._answer()
    assert (await jobs.look(1)).job.state == "RUNNING"


async def test_questions_become_rare_while_nothing_changes_and_rarer_while_nobody_answers(slurm, clock):
    slurm.jobs = {1: "PENDING"}
    jobs = Queue(slurm)

    async def asked_within(seconds):
        before = len(slurm.asked)
        for _ in range(seconds):
            clock.now += 1
            await jobs.look(1)
            await jobs._answer()
        return len(slurm.asked) - before

    await jobs.look(1)
    assert await asked_within(300) <= 20
    slurm.broken = True
    assert await asked_within(1_200) <= 16
    assert (await jobs.look(1)).job.state == "PENDING"  # what was known stays
    slurm.broken, slurm.jobs = False, {1: "RUNNING"}
    await asked_within(int(queue.LONGEST_AFTER_FAILURE))
    assert (await jobs.look(1)).job.state == "RUNNING"


async def test_a_job_is_unknown_and_not_gone_until_slurm_was_asked_after_it_was_wanted(slurm, clock):
    slurm.jobs = {1: "RUNNING"}
    jobs = Queue(slurm)
    await jobs.look(1)
    clock.now += 1
    slurm.jobs[2] = "PENDING"  # submitted after the newest answer
    assert not (await jobs.look(2)).known
    assert "sacct" not in slurm.asked
    clock.now += queue.SHORTEST
    await jobs.look(2)
    await jobs._answer()
    assert (await jobs.look(2)).job.state == "PENDING"


async def test_while_nobody_answers_no_job_is_gone(slurm, clock):
    slurm.broken = True
    jobs = Queue(slurm)
    for _ in range(100):
        clock.now += 30
        assert not (await jobs.look(1)).known


async def test_jobs_that_are_no_longer_listed_are_looked_up_in_accounting_together(slurm, clock):
    slurm.accounted = {1: "NODE_FAIL", 2: "TIMEOUT"}
    jobs = Queue(slurm)
    await asyncio.gather(*(jobs.look(number) for number in (1, 2, 3)))
    assert (await jobs.look(1)).job.meaning is Meaning.NODE_LOST
    assert (await jobs.look(2)).job.meaning is Meaning.TIME_LIMIT
    third = await jobs.look(3)
    assert third.known
    assert third.job is None
    assert slurm.asked.count("sacct") == 1


async def test_without_accounting_a_job_that_is_no_longer_listed_is_gone(slurm, clock):
    slurm.accounting = False
    sighting = await Queue(slurm).look(1)
    assert sighting.known
    assert sighting.job is None


async def test_a_job_that_accounting_still_calls_running_is_believed_for_some_minutes(slurm, clock):
    slurm.accounted = {1: "RUNNING"}
    jobs = Queue(slurm)
    assert not (await jobs.look(1)).known
    clock.now += queue.RUNAWAY / 2
    assert not (await jobs.look(1)).known
    clock.now += queue.RUNAWAY
    sighting = await jobs.look(1)
    assert sighting.known
    assert sighting.job is None


async def test_a_job_that_got_the_id_anew_is_not_taken_for_the_old_one():
    launcher = SlurmLauncher.from_uri(URI)
    handle = Handle(launcher.uri, "rp-train-1", {"job": 12, "submitted": 1_000_000.0})
    folder = "/shared/runs/rp-train-1"
    mine = QueuedJob(12, "RUNNING", 1_000_000.0, name="rp-train-1", comment=folder)
    assert launcher._is(mine, handle)
    assert launcher._is(QueuedJob(12, "RUNNING", 1_500_000.0, name="rp-train-1", comment=folder), handle)  # requeued
    assert not launcher._is(QueuedJob(12, "RUNNING", 1_000_000.0, name="rp-other-1", comment=folder), handle)
    assert not launcher._is(
        QueuedJob(12, "RUNNING", 1_000_000.0, name="rp-train-1", comment="/other/rp-train-1"), handle
    )
    assert not launcher._is(QueuedJob(12, "RUNNING", 900_000.0, name="rp-train-1", comment=folder), handle)


async def test_without_slurms_commands_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    launcher = SlurmLauncher.from_uri(f"slurm://gpu?root={tmp_path}/runs")
    with pytest.raises(PreflightError, match="squeue"):
        await launcher.launch(agents(), "rp-train-1")
    with pytest.raises(PreflightError, match="squeue"):
        await launcher.poll(Handle(launcher.uri, "rp-train-1", {"job": 1}))


async def test_a_configuration_that_anybody_can_write_is_not_used(tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.touch()
    conf.chmod(0o666)
    with pytest.raises(PreflightError, match="root owns"):
        await Commands(str(conf)).run(["squeue"])
    with pytest.raises(PreflightError, match="cannot be read"):
        await Commands(str(tmp_path / "none.conf")).run(["squeue"])


# The shared folder ----------------------------------------------------------------------------------------------------


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def final(reason, name, code):
    end = {"name": name, "exit_code": code, "signal": None, "host": "h", "first": bool(code), "t": 1.0}
    return {"v": 1, "reason": reason, "message": "", "processes": [end]}


@pytest.fixture
def folder(tmp_path):
    """An attempt on two nodes whose first run has begun."""
    found = AttemptFolder(tmp_path)
    found.prepare(submission(agents()).files())
    write(tmp_path / "i0" / "run.json", {"nodes": 2})
    return found


def has_ended(folder, *ends, run=0):
    for number, (reason, code) in enumerate(ends):
        record = folder.path / f"i{run}" / "nodes" / str(number)
        write(record / "started.json", {"pid": 1, "host": "elsewhere", "t": 0.0})
        write(record / "final.json", final(reason, f"agent-{number}", code))


def test_nothing_has_ended_before_the_job_says_so(folder):
    has_ended(folder, ("completed", 0), ("completed", 0))
    assert folder.ended() is None
    write(folder.path / "end.json", {"run": 0, "reason": "", "message": ""})
    assert folder.ended().reason == "completed"


def test_of_several_runs_the_last_one_counts(folder):
    has_ended(folder, ("time limit", 1), ("time limit", 1))
    write(folder.path / "i1" / "run.json", {"nodes": 2})
    has_ended(folder, ("completed", 0), ("completed", 0), run=1)
    write(folder.path / "end.json", {"run": 1, "reason": "", "message": ""})
    assert folder.ended().reason == "completed"


def test_a_cancel_that_came_too_late_leaves_the_success(folder):
    has_ended(folder, ("completed", 0), ("completed", 0))
    write(folder.path / "cancel.json", {})
    write(folder.path / "end.json", {"run": 0, "reason": "", "message": ""})
    assert folder.ended().reason == "completed"


@pytest.mark.parametrize(
    ("found", "phase", "reason"),
    [
        (Meaning.NODE_LOST, Phase.LOST, "host lost"),
        (Meaning.PREEMPTED, Phase.ENDED, "preempted"),
        (Meaning.TIME_LIMIT, Phase.ENDED, "time limit"),
        (Meaning.OUT_OF_MEMORY, Phase.ENDED, "out of memory"),
        (Meaning.DEADLINE, Phase.ENDED, "deadline"),
        (Meaning.CANCELLED, Phase.ENDED, "cancelled"),
        (None, Phase.LOST, ""),
    ],
)
def test_where_the_gang_left_no_last_word_slurm_has_it(folder, found, phase, reason):
    has_ended(folder, ("terminated", 1))
    status = folder.judge(found, "Slurm's job 12 is gone")
    assert (status.phase, status.reason) == (phase, reason)


def test_what_every_process_said_is_worth_more_than_slurms_word(folder):
    has_ended(folder, ("completed", 0), ("completed", 0))
    assert folder.judge(Meaning.NODE_LOST, "").reason == "completed"


def test_a_node_that_still_computes_is_ended_before_anything_is_called_lost(folder):
    has_ended(folder, ("failed", 1))
    record = folder.path / "i0" / "nodes" / "1"
    write(record / "started.json", {"pid": 1, "host": "elsewhere", "t": time.time()})
    write(record / "heartbeat.json", {"t": time.time()})
    assert folder.judge(Meaning.NODE_LOST, "").phase is Phase.RUNNING
    assert json.loads((record / "cancel.json").read_text())["reason"] == "followed"
    write(record / "heartbeat.json", {"t": time.time() - 3_600})
    assert folder.judge(Meaning.NODE_LOST, "").phase is Phase.LOST


# Nodes that join ------------------------------------------------------------------------------------------------------


@pytest.fixture
def growing(tmp_path):
    """An elastic attempt of one to three nodes, whose job has one and has begun."""
    found = AttemptFolder(tmp_path)
    found.prepare(submission(agents(3, 1)).files())
    write(tmp_path / "i0" / "run.json", {"nodes": 1})
    return found


def joined(folder, node, start, reason=None, code=0):
    record = folder.path / "i0" / "nodes" / f"{node}.{start}"
    write(record / "started.json", {"pid": 1, "host": "elsewhere", "t": time.time()})
    if reason:
        write(record / "final.json", final(reason, f"agent-{node}", code))


def over(folder):
    write(folder.path / "end.json", {"run": 0, "reason": "", "message": ""})
    return folder.ended()


def test_nodes_that_never_joined_are_not_missed(growing):
    has_ended(growing, ("completed", 0))
    assert over(growing).reason == "completed"
    assert [end.name for end in growing.ended().processes] == ["agent-0"]


def test_a_node_that_joined_has_to_complete_too_and_its_newest_start_counts(growing):
    has_ended(growing, ("completed", 0))
    joined(growing, 2, 1, "failed", 1)
    joined(growing, 2, 2)
    assert over(growing) is None
    assert (growing.path / "i0" / "nodes" / "2.2" / "cancel.json").exists()  # it is asked to end
    joined(growing, 2, 2, "completed")
    ended = growing.ended()
    assert (ended.reason, [end.name for end in ended.processes]) == ("completed", ["agent-0", "agent-2"])


def test_a_node_that_joined_and_was_lost_or_came_too_late_breaks_nothing(growing):
    has_ended(growing, ("completed", 0))
    joined(growing, 1, 1, "failed", 1)
    joined(growing, 2, 1, "followed", 1)
    ended = over(growing)
    assert (ended.reason, [(end.name, end.tolerated) for end in ended.processes]) == (
        "completed",
        [("agent-0", False), ("agent-1", True)],
    )


def test_the_first_node_is_the_gangs_whoever_joined(growing):
    has_ended(growing, ("failed", 1))
    joined(growing, 1, 1, "followed", 1)
    ended = over(growing)
    assert (ended.reason, [end.first for end in ended.processes]) == ("failed", [True])


def test_a_supervisors_silence_is_measured_by_the_clock_of_who_looks(tmp_path):
    pulse = slurm_folder.Pulse(str(tmp_path))
    assert pulse.silent < 1
    write(tmp_path / "heartbeat.json", {"t": -1_000_000.0})
    assert (pulse.silent < 1, pulse.beats) == (True, 1)


# The next run of a job ------------------------------------------------------------------------------------------------


def test_the_rounds_of_a_further_run_follow_those_of_the_runs_before(monkeypatch, tmp_path):
    for name in ("rank-0.r0.log", "rank-1.r2.log", "agent-0.log"):
        (tmp_path / name).touch()
    assert worker._last_round(str(tmp_path)) == 2
    assert worker._last_round(str(tmp_path / "none")) == -1
    monkeypatch.setenv(context.ROUNDS, "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert context.Placement.from_environment().restart == 4


def test_what_a_process_failed_with_in_an_earlier_run_is_over_once_it_opens_again():
    view = AttemptView()
    view.apply(
        [
            Event("opened", "agent-0", 1.0, {"kind": "process"}),
            Event("failed", "agent-0", 2.0, {"exception": "SignalException"}),
            Event("closed", "agent-0", 3.0, {"exit_code": 1}),
            Event("opened", "agent-0", 4.0, {"kind": "process"}),
        ]
    )
    assert view.failures == []
    assert view.processes["agent-0"].exit_code is None


def test_a_supervisor_of_an_earlier_run_may_live_until_it_said_so_or_is_known_to_be_gone(tmp_path):
    record = tmp_path / "node"
    assert not slurm_folder.may_live(str(record))
    here = {"host": context.host(), "boot_id": hostprocs.boot_id()}
    write(record / "started.json", {**here, "pid": os.getpid(), "start_time": hostprocs.start_time(os.getpid())})
    assert slurm_folder.may_live(str(record))
    write(record / "started.json", {**here, "pid": os.getpid(), "start_time": -1})
    assert not slurm_folder.may_live(str(record))
    write(record / "started.json", {**here, "host": "elsewhere", "pid": 1, "start_time": 1})
    assert slurm_folder.may_live(str(record))
    write(record / "final.json", {})
    assert not slurm_folder.may_live(str(record))
