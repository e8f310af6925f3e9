"""What happens on clusters: nodes die, jobs are preempted, time is over, controllers restart, submitters are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from rallypoint import Script
from rallypoint.frameworks.python.job import PythonJob
from rallypoint.launchers.base import Phase
from rallypoint.launchers.slurm import SlurmLauncher
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State
from rallypoint.worker import faults

pytestmark = pytest.mark.engine

# Ten steps, with a checkpoint when it is asked to end; from the second start on it does not wait.
TRAIN = """
    import os, select, signal, sys
    from pathlib import Path
    import rallypoint

    here = Path(sys.argv[1])
    stage = rallypoint.stage()
    checkpoint = stage.latest_checkpoint()
    step = int(Path(checkpoint, "step").read_text()) if checkpoint else 0
    with open(here / "starts", "a") as file:
        file.write(f"{step}\\n")

    def save(*_):
        stage.save_checkpoint(lambda folder: Path(folder, "step").write_text("7"), step=7)
        print("saved at the end", flush=True)
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    (here / "up").touch()
    if not checkpoint:
        select.select([os.open(here / "go", os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
    stage.result({"from": step})
"""

WORKER = """
    import asyncio, sys
    from rallypoint import Script
    from rallypoint.frameworks.python.job import PythonJob
    from rallypoint.launchers.registry import open_launcher
    from rallypoint.stages.attempt import Request
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.store import Store

    uri, store, script, here = sys.argv[1:]
    engine = Engine(Store.open(store), StageKey(("flights", "r1", "train")), open_launcher(uri))
    asyncio.run(engine.start(PythonJob(Script(script, [here])), Request(owner="try-1")))
"""


def starts(folder):
    path = folder / "starts"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def job(script, gate, tmp_path):
    return PythonJob(Script(script(TRAIN), [str(tmp_path)]))


async def test_a_lost_node_is_a_failure_that_is_retried_at_once(
    engine_on, uri, job, followed, until, slurm, gate, tmp_path
):
    engine = engine_on(SlurmLauncher.from_uri(uri(requeue=0)))
    started = await engine.start(job, Request(owner="try-1"))
    await until((tmp_path / "up").exists)
    (node,) = slurm.nodes_of(started.attempt.record.id)
    slurm.kill_node(node)
    # What a health check does; by itself the controller needs half a minute, as in the next test.
    slurm.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=it died")
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.LOST
    report = update.outcome.failure
    assert (report.kind, report.retry_after) == (Kind.RETRYABLE, 0), report
    slurm.ensure_node(node)
    second = await engine.start(job, Request(owner="try-2"))
    gate.open()
    update, _ = await followed(engine, second.attempt)
    assert update.outcome.state is State.SUCCEEDED


async def test_a_job_that_loses_its_node_goes_back_into_the_queue_and_runs_on_another(
    engine_on, uri, job, followed, until, slurm, gate, tmp_path
):
    engine = engine_on(SlurmLauncher.from_uri(uri()))
    started = await engine.start(job, Request(owner="try-1"))
    await until((tmp_path / "up").exists)
    (node,) = slurm.nodes_of(started.attempt.record.id)
    slurm.kill_node(node)
    slurm.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=it died")
    await until(lambda: len(starts(tmp_path)) == 2)
    assert slurm.nodes_of(started.attempt.record.id) == [other for other in slurm.nodes if other != node]
    gate.open()
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome
    assert (await engine.ledger.last()).record.number == 1


async def test_a_job_whose_daemon_was_killed_is_ended_before_it_is_called_lost(
    engine_on, uri, job, followed, until, slurm, tmp_path, jobs_left
):
    """Slurm takes the node for dead, and its processes live on: nothing may start beside them."""
    engine = engine_on(SlurmLauncher.from_uri(uri(requeue=0)))
    started = await engine.start(job, Request(owner="try-1"))
    await until((tmp_path / "up").exists)
    slurm.kill_daemon(*slurm.nodes_of(started.attempt.record.id))
    update, text = await followed(engine, started.attempt)
    assert update.outcome.state is State.LOST
    assert update.outcome.failure.kind is Kind.RETRYABLE
    assert "saved at the end" in text
    await until(lambda: not jobs_left())


async def test_a_preempted_job_goes_back_into_the_queue_and_continues(
    engine_on, uri, job, followed, until, slurm, tmp_path
):
    engine = engine_on(SlurmLauncher.from_uri(uri("low")))
    started = await engine.start(job, Request(owner="try-1"))
    await until((tmp_path / "up").exists)
    slurm.command("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 2", "--output=/dev/null")
    update, text = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome
    assert update.outcome.result == {"from": 7}
    assert starts(tmp_path) == [0, 7]
    assert "saved at the end" in text
    assert (await engine.ledger.last()).record.number == 1


async def test_shortly_before_its_time_is_over_a_job_saves_its_state_and_continues(
    engine_on, uri, job, followed, until, slurm, tmp_path
):
    engine = engine_on(SlurmLauncher.from_uri(uri(time="1", warning=58)))
    started = await engine.start(job, Request(owner="try-1"))
    update, text = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome
    assert update.outcome.result == {"from": 7}
    assert starts(tmp_path) == [0, 7]
    assert "saved at the end" in text


async def test_the_budget_of_runs_ends(engine_on, uri, job, followed, until, slurm, tmp_path):
    engine = engine_on(SlurmLauncher.from_uri(uri(time="1", warning=58, requeue=0)))
    started = await engine.start(job, Request(owner="try-1"))
    update, text = await followed(engine, started.attempt)
    assert update.outcome.state is State.FAILED
    report = update.outcome.failure
    assert (report.kind, report.retry_after) == (Kind.RETRYABLE, 0), report
    assert "time limit" in report.title
    assert "saved at the end" in text
    second = await engine.start(job, Request(owner="try-2"))
    update, _ = await followed(engine, second.attempt)
    assert update.outcome.result == {"from": 7}


async def test_a_controller_that_restarts_loses_no_job(engine_on, uri, job, followed, until, slurm, gate, tmp_path):
    launcher = SlurmLauncher.from_uri(uri())
    engine = engine_on(launcher)
    started = await engine.start(job, Request(owner="try-1"))
    await until((tmp_path / "up").exists)
    slurm.stop_controller()
    assert (await launcher.poll(started.attempt.handle)).phase is Phase.RUNNING
    slurm.start_controller()
    gate.open()
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED, update.outcome
    assert starts(tmp_path) == [0]


async def test_a_job_that_ends_while_no_controller_answers_is_a_success(
    engine_on, uri, job, followed, until, slurm, gate, tmp_path
):
    engine = engine_on(SlurmLauncher.from_uri(uri()))
    started = await engine.start(job, Request(owner="try-1"))
    await until((tmp_path / "up").exists)
    (node,) = slurm.nodes_of(started.attempt.record.id)
    slurm.stop_controller()
    try:
        gate.open()
        update, _ = await followed(engine, started.attempt)
        assert update.outcome.state is State.SUCCEEDED
    finally:
        slurm.start_controller()
        # What Slurm has of the job there would try for minutes to say that it has ended.
        slurm.kill_node(node)
        slurm.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=it died")
        slurm.ensure_node(node)


@pytest.mark.parametrize("point", ["after-intent", "after-launch"])
async def test_a_submitter_that_is_killed_leaves_one_job_which_the_next_finds(
    point, engine_on, uri, job, script, store, followed, until, slurm, gate, tmp_path
):
    armed = tmp_path / "armed"
    armed.touch()
    path = script(WORKER, "worker.py")
    env = os.environ | {faults.VARIABLE: f"{point}={armed}"}
    words = [sys.executable, path, uri(), store.uri, job.code.path, str(tmp_path)]
    died = await asyncio.to_thread(subprocess.run, words, env=env, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    engine = engine_on(SlurmLauncher.from_uri(uri()))
    started = await engine.start(job, Request(owner="try-2"))
    assert started.attempt.record.number == 1
    gate.open()
    update, _ = await followed(engine, started.attempt)
    assert update.outcome.state is State.SUCCEEDED
    assert starts(tmp_path) == [0]
    assert len(slurm.jobs(tmp_path / "runs" / started.attempt.record.id)) == 1
