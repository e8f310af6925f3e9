"""A stage on a Ray cluster, through the real engine: a result, a cause, a retry, a crash between submit and record."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from datetime import timedelta

import pytest
from ray_head import RayHead

from rallypoint import PythonJob
from rallypoint.errors import LaunchError, StageFailedError
from rallypoint.launchers.registry import open_launcher
from rallypoint.spec.entry import Script
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.news import Narrator
from rallypoint.stages.outcome import raise_for
from rallypoint.stages.rule import Action, State
from rallypoint.stages.store import Store
from rallypoint.worker import faults

pytestmark = pytest.mark.engine

INTERVAL = timedelta(seconds=0.3)
DEADLINE = 120.0  # seconds: a job's start takes some, and cores are shared

# Each start is written down; `fail` lets the first one fail after its checkpoint, `held` keeps one waiting.
TRAIN = """
    import os, sys, time
    from pathlib import Path
    import rallypoint

    here, stage = Path(sys.argv[1]), rallypoint.stage()
    checkpoint = stage.latest_checkpoint()
    start = int(Path(checkpoint, "epoch").read_text()) if checkpoint else 0
    with open(here / "starts", "a") as file:
        file.write(f"{start}\\n")
    while (here / "held").exists():
        time.sleep(0.05)
    for epoch in range(start + 1, 4):
        stage.save_checkpoint(lambda folder: Path(folder, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=3, loss=1 / epoch)
        print(f"epoch {epoch}", flush=True)
        if epoch == 2 and (here / "fail").exists():
            (here / "fail").unlink()
            raise ValueError("loss is NaN")
    stage.result({"epochs": 3, "from": start})
"""


@pytest.fixture
def uri(ray_head):
    return ray_head.dashboard_url.replace("http://", "ray-jobs://")


@pytest.fixture
def key(request):
    return StageKey(("ray-stages", request.node.name, "train"))


@pytest.fixture
def ray_engine(tmp_path, key, uri):
    return Engine(Store.open(tmp_path / "store"), key, open_launcher(uri))


async def follow(engine, started):
    lines, narrator = [str(news) for news in Narrator().opening(started, engine.key.text)], Narrator()
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        lines += [str(news) for news in narrator.tell(update)]
    return (await engine.read(started.attempt.record.number)).outcome, lines


async def test_a_retry_on_the_cluster_continues_and_its_failure_has_told_the_cause(
    ray_engine, ray_head, script, tmp_path
):
    job = PythonJob(Script(script(TRAIN), (str(tmp_path),)))
    (tmp_path / "fail").touch()
    started = await ray_engine.start(job, Request(owner="try-1"))
    shown = await ray_engine.inspect(1)
    page = f"{ray_head.dashboard_url}/#/jobs/{started.attempt.record.id}"
    assert shown.view.links == {"Ray job": page}  # live from the start
    outcome, lines = await follow(ray_engine, started)
    assert f"Ray job: {page}" in lines
    assert "[main-0] epoch 2" in lines
    with pytest.raises(StageFailedError) as failed:
        raise_for(outcome)
    assert (failed.value.report.exception, failed.value.report.message) == ("ValueError", "loss is NaN")
    assert failed.value.report.last_lines == ("epoch 1", "epoch 2")
    again = await ray_engine.start(job, Request(owner="try-2"))
    outcome, lines = await follow(ray_engine, again)
    assert outcome.result == {"epochs": 3, "from": 2}
    assert (tmp_path / "starts").read_text() == "0\n2\n"
    assert "[main-0] epoch 3" in lines
    assert (await ray_engine.start(job, Request(owner="try-3"))).decision.action is Action.RETURN


WORKER = """
    import asyncio, sys
    from pathlib import Path
    from rallypoint import PythonJob
    from rallypoint.launchers.registry import open_launcher
    from rallypoint.spec.entry import Script
    from rallypoint.stages.attempt import Request
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.store import Store

    uri, path, folder, *parts = sys.argv[1:]
    engine = Engine(Store.open(Path(folder, "store")), StageKey(tuple(parts)), open_launcher(uri))
    asyncio.run(engine.start(PythonJob(Script(path, (folder,))), Request(owner="killed")))
"""


async def test_a_worker_that_dies_between_the_submission_and_its_record_leaves_one_job_that_is_found(
    ray_engine, uri, key, script, tmp_path, until
):
    path, armed = script(TRAIN), tmp_path / "armed"
    (tmp_path / "held").touch()
    armed.touch()
    worker = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(WORKER), uri, path, str(tmp_path), *key.parts],
        env={**os.environ, faults.VARIABLE: f"after-launch={armed}"},
        check=False,
    )
    assert worker.returncode == -signal.SIGKILL
    entry = await ray_engine.ledger.last()
    assert entry.handle is None, "it was killed before it could record the job"
    started = await ray_engine.start(PythonJob(Script(path, (str(tmp_path),))), Request(owner="next"))
    assert started.decision.action is Action.REATTACH
    await until((tmp_path / "starts").exists)
    (tmp_path / "held").unlink()
    outcome, _ = await follow(ray_engine, started)
    assert outcome.result == {"epochs": 3, "from": 0}
    assert (tmp_path / "starts").read_text() == "0\n"


async def test_a_cancelled_stage_has_stopped_its_job_in_ray(ray_engine, ray_head, script, tmp_path, until):
    (tmp_path / "held").touch()
    job = PythonJob(Script(script(TRAIN), (str(tmp_path),)))
    started = await ray_engine.start(job, Request(owner="me"))
    await until((tmp_path / "starts").exists)
    assert not await ray_engine.cancel(1, owner="somebody else", why="the older try was killed")
    assert await ray_engine.cancel(1, owner="me", why="the task was cleared")
    outcome = (await ray_engine.read(1)).outcome
    assert (outcome.state.value, outcome.failure.message) == ("cancelled", "the task was cleared")
    assert ray_head.get(f"/api/jobs/{started.attempt.record.id}")["status"] == "STOPPED"


async def test_a_job_that_a_restarted_cluster_does_not_know_is_lost_and_the_next_try_runs_there(
    script, key, tmp_path, until
):
    token = "a-token-of-more-than-thirty-two-characters"
    job = PythonJob(Script(script(TRAIN), (str(tmp_path),)))
    (tmp_path / "held").touch()
    with RayHead(num_cpus=1, env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as cluster:
        uri = cluster.dashboard_url.replace("http://", "ray-jobs://")
        with pytest.raises(LaunchError, match="the credentials were refused"):
            await open_launcher(uri, {"token": "wrong"}).check()
        engine = Engine(Store.open(tmp_path / "store"), key, open_launcher(uri, {"token": token}))
        first = await engine.start(job, Request(owner="try-1"))
        await until((tmp_path / "starts").exists, deadline=DEADLINE)
        assert (await engine.inspect(1)).state is State.LIVE
        await asyncio.to_thread(cluster.head.kill)
        with pytest.raises(LaunchError, match="does not answer"):
            await engine.inspect(1)
        await asyncio.to_thread(cluster.start, same_ports=True)
        outcome, _ = await follow(engine, first)
        assert (outcome.state, outcome.failure.kind) == (State.LOST, Kind.RETRYABLE)
        assert "the cluster was restarted" in outcome.failure.message
        (tmp_path / "held").unlink()
        second = await engine.start(job, Request(owner="try-2"))
        assert (second.decision.action, second.attempt.record.number) == (Action.LAUNCH, 2)
        outcome, _ = await follow(engine, second)
        assert outcome.result == {"epochs": 3, "from": 0}
