"""An elastic training of one to two nodes for tests of launchers: it goes on until it is told that it is enough."""

from __future__ import annotations

import asyncio
import textwrap
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rallypoint import Script, TorchElastic
from rallypoint.stages.attempt import Request
from rallypoint.stages.news import Narrator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rallypoint.stages.attempt import Started
    from rallypoint.stages.engine import Engine
    from rallypoint.stages.outcome import Outcome
    from rallypoint.stages.view import AttemptView

SLOW = 150.0  # seconds that a machine with much else to do may take for a rendezvous and its ranks' imports
_INTERVAL = timedelta(seconds=0.3)

# With a checkpoint at every step.
_TRAIN = """
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
        stage.report(step=step, world=stage.world_size)
        over = torch.tensor(float(enough.exists()))
        dist.all_reduce(over, op=dist.ReduceOp.MAX)
        if over:
            break
        time.sleep(0.1)
    stage.result({"world": stage.world_size, "from": start})
    dist.destroy_process_group()
"""
# A rank that is gone is missed after some seconds.
_QUICK = {"keep_alive_interval": "1", "keep_alive_max_attempt": "3", "last_call_timeout": "2", "read_timeout": "10"}


class Training:
    """An attempt that is watched in the background, as a trigger does.

    Args:
        engine: The stage's engine.
        started: What its start returned.
        folder: The folder of the script.

    Attributes:
        outcome: How it ended; None while it runs.
        said: What a task's log would say.
    """

    def __init__(self, engine: Engine, started: Started, folder: Path) -> None:
        self.attempt, self.decision, self._folder = started.attempt, started.decision, folder
        self.view: AttemptView | None = None
        self.outcome: Outcome | None = None
        self.said: list[str] = []
        self.watching = asyncio.create_task(self._watch(engine))

    async def _watch(self, engine: Engine) -> None:
        narrator = Narrator()
        async for update in engine.watch(self.attempt, interval=_INTERVAL):
            self.view, self.outcome = update.view, update.outcome or self.outcome
            self.said += [str(news) for news in narrator.tell(update)]

    @property
    def sizes(self) -> list[int]:
        """The world sizes so far."""
        return [world.size for world in self.view.worlds] if self.view else []

    @property
    def step(self) -> int:
        """The step of the newest checkpoint."""
        return int((self.view.checkpoint or {}).get("step") or 0) if self.view else 0

    def trains(self, size: int, beyond: int = 0) -> bool:
        """Return whether the world has a size and has made a step, and is beyond one."""
        made_it = self.view.metrics.get("world") if self.view else None
        return self.sizes[-1:] == [size] == [made_it] and self.step > beyond

    def enough(self) -> None:
        """Let it end."""
        (self._folder / "enough").touch()


@asynccontextmanager
async def training(engine: Engine, folder: Path, owner: str = "try-1") -> AsyncIterator[Training]:
    """Start a training in a stage, and end it with the block.

    Args:
        engine: The stage's engine.
        folder: A folder for the script.
        owner: The try that starts it.
    """
    path = folder / "train.py"
    path.write_text(textwrap.dedent(_TRAIN), encoding="utf-8")
    job = TorchElastic(
        Script(str(path), [str(folder / "enough")]),
        nnodes="1:2",
        nproc_per_node=1,
        max_restarts=20,
        rdzv_conf=_QUICK,
        rdzv_timeout=60,
    )
    one = Training(engine, await engine.start(job, Request(owner=owner)), folder)
    try:
        yield one
    finally:
        one.watching.cancel()
        if one.outcome is None:
            await engine.cancel(one.attempt.record.number, owner=None, why="the test ends", grace=timedelta(0))
