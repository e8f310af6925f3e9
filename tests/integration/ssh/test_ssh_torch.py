"""Elastic PyTorch on two hosts: it loses one and goes on, takes it in when it is back, and a retry does the rest."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from rallypoint import Script, TorchElastic
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.news import Narrator
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(480)]

INTERVAL = timedelta(seconds=0.3)
SLOW = 150.0  # seconds that a machine with much else to do may take for a rendezvous and its ranks' imports

# Data-parallel training that goes on until somebody says that it is enough, with a checkpoint at every step.
TRAIN = """
    import sys, time
    from datetime import timedelta
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    import rallypoint

    enough = Path(sys.argv[1])
    stage = rallypoint.stage()
    dist.init_process_group("gloo", timeout=timedelta(seconds=5))
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    step, checkpoint = 0, stage.latest_checkpoint()
    if checkpoint:
        saved = torch.load(Path(checkpoint, "model.pt"))
        model.module.load_state_dict(saved["model"])
        step = saved["step"]
    start = step
    while True:
        model(torch.ones(4, 2)).square().mean().backward()
        step += 1
        state = {"step": step, "model": model.module.state_dict()}
        stage.save_checkpoint(lambda folder: torch.save(state, Path(folder, "model.pt")), step=step)
        over = torch.tensor(float(enough.exists()))
        dist.all_reduce(over, op=dist.ReduceOp.MAX)
        if over:
            break
        time.sleep(0.1)
    stage.result({"world": stage.world_size, "from": start})
    dist.destroy_process_group()
"""
QUICK = {"keep_alive_interval": "1", "keep_alive_max_attempt": "3", "last_call_timeout": "2", "read_timeout": "10"}


class Run:
    """An attempt that is watched in the background, as a trigger does."""

    def __init__(self, engine, started, folder):
        self.attempt, self.decision, self._folder = started.attempt, started.decision, folder
        self.view = self.outcome = None
        self.said = []
        self.watching = asyncio.create_task(self._watch(engine))

    async def _watch(self, engine):
        narrator = Narrator()
        async for update in engine.watch(self.attempt, interval=INTERVAL):
            self.view, self.outcome = update.view, update.outcome or self.outcome
            self.said += [str(news) for news in narrator.tell(update)]

    @property
    def sizes(self):
        return [world.size for world in self.view.worlds] if self.view else []

    @property
    def step(self):
        return (self.view.checkpoint or {}).get("step") or 0 if self.view else 0

    def trains(self, size, beyond=0):
        return self.sizes[-1:] == [size] and self.step > beyond

    def enough(self):
        (self._folder / "enough").touch()


@pytest.fixture
def run(engine, script, tmp_path):
    job = TorchElastic(
        Script(script(TRAIN), [str(tmp_path / "enough")]),
        nnodes="1:2",
        nproc_per_node=1,
        max_restarts=20,
        rdzv_conf=QUICK,
        rdzv_timeout=60,
    )

    @asynccontextmanager
    async def go(owner="try-1"):
        one = Run(engine, await engine.start(job, Request(owner=owner)), tmp_path)
        try:
            yield one
        finally:
            one.watching.cancel()
            if one.outcome is None:
                await engine.cancel(one.attempt.record.number, owner=None, why="the test ends", grace=timedelta(0))

    return go


async def test_a_host_dies_comes_back_and_the_host_of_the_rendezvous_dies(run, hosts, until):
    async with run() as one:
        await until(lambda: one.trains(2), deadline=SLOW)
        hosts[1].kill()
        await until(lambda: one.trains(1), deadline=SLOW)
        before = one.step
        await until(lambda: one.trains(1, beyond=before), deadline=SLOW)
        alone = one.step
        hosts[1].start()
        await until(lambda: one.trains(2, beyond=alone), deadline=SLOW)
        assert one.outcome is None
        await until(lambda: [line for line in one.said if "world size 1 → 2 (round " in line])
        reached = one.step
        hosts[0].kill()
        await until(lambda: one.outcome, deadline=SLOW)
        failure = one.outcome.failure
        assert (one.outcome.state, failure.kind, failure.title) == (State.LOST, Kind.RETRYABLE, "a host was lost")
        assert hosts[0].address in failure.message
        assert failure.retry_after == 0
    async with run("try-2") as two:
        assert two.decision.from_checkpoint
        await until(lambda: two.trains(1), deadline=SLOW)
        two.enough()
        await until(lambda: two.outcome, deadline=SLOW)
        assert two.outcome.state is State.SUCCEEDED, two.outcome.failure.render()
        assert (two.outcome.result["world"], two.outcome.result["from"] >= reached) == (1, True)


async def test_a_link_is_cut_and_healed(run, hosts, until):
    async with run() as one:
        await until(lambda: one.trains(2), deadline=SLOW)
        hosts[1].link_down()
        await until(lambda: one.trains(1), deadline=SLOW)
        alone = one.step
        hosts[1].link_up()
        await until(lambda: one.trains(2, beyond=alone), deadline=SLOW)
        one.enough()
        await until(lambda: one.outcome, deadline=SLOW)
        assert one.outcome.state is State.SUCCEEDED, one.outcome.failure.render()
        assert one.outcome.result["world"] == 2
