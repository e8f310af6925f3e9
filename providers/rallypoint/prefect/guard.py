"""Stops the job of a cancelled flow run whose task runner has ended the process that waited for it.

A task in a worker of Dask, Ray or a pool of processes gets no signal. A cancellation ends its flow, the flow its task
runner, and the task runner its workers, often before the stage in them has looked at the run's state. So a stage in
such a process has a guard: a process that waits for the end of the other one, and only then looks at the run. It stops
the job if the run is cancelled, and leaves it for a retry if not, as the stage itself would have done.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings

from rallypoint.errors import RallypointError
from rallypoint.prefect.runs import UNREACHABLE, Run, Verdict, look
from rallypoint.stages.key import StageKey
from rallypoint.stages.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

GRACE = timedelta(seconds=12)  # for the job's own end; Prefect leaves 30 s for everything
WHY = {
    Verdict.STOP: "the flow run was cancelled in Prefect",
    Verdict.TIMED_OUT: "the flow run's timeout_seconds is over",
}
PATIENCE = 40.0  # seconds; a runner takes 30 until it kills a flow that does not end
_PAUSE = 1.0  # seconds between two looks
_DONE = b"done"
# It waits without Prefect, which takes a second and much memory to import, and is no child of a worker: Ray ends those.
_WAIT = f"""
import os, subprocess, sys
if os.fork():
    os._exit(0)
task = sys.stdin.buffer.read()
if not task.endswith({_DONE!r}):
    subprocess.run([sys.executable, "-m", "rallypoint.prefect.guard"], input=task)
"""


def is_remote() -> bool:
    """Return whether this is a process of a task runner, which ends with the flow and gets no signal of its end."""
    context = FlowRunContext.get()
    return context is not None and context.detached


@dataclass(frozen=True, kw_only=True)
class Ward:
    """The attempt that a guard looks after.

    Args:
        flow_run: The id of the flow run that waits for it.
        root: The id of the outermost flow run.
        place: The store and the launcher.
        key: The stage's key.
        number: The attempt's number.
        owner: Who waits: an attempt that a newer try owns is left alone.
    """

    flow_run: UUID
    root: UUID
    place: Place
    key: StageKey
    number: int
    owner: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, credentials included: it goes through a pipe."""
        place = {
            "store": self.place.store,
            "store_options": dict(self.place.store_options),
            "launcher": self.place.launcher,
            "launcher_options": dict(self.place.launcher_options),
        }
        ids = {"flow_run": str(self.flow_run), "root": str(self.root)}
        return {**ids, "place": place, "key": list(self.key.parts), "number": self.number, "owner": self.owner}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Ward:
        """Return what `to_json` was made of."""
        return cls(
            flow_run=UUID(data["flow_run"]),
            root=UUID(data["root"]),
            place=Place(**data["place"]),
            key=StageKey(tuple(data["key"])),
            number=data["number"],
            owner=data["owner"],
        )

    async def stop_if_cancelled(self, *, patience: float = PATIENCE) -> bool:
        """Stop the attempt if its run was cancelled, or its time is over; return whether it is stopped.

        A run that is being cancelled may be *Crashed* in between, when its runner sees the flow's process end before it
        has told the server of the cancellation. So the state is looked at for a while, unless a newer try owns the job.

        Args:
            patience: Seconds for which the state is looked at.
        """
        engine = self.place.engine(self.key)
        deadline = time.monotonic() + patience
        async with get_client() as client:
            while True:
                with suppress(RallypointError, *UNREACHABLE):  # the next look may go better
                    verdict = await look(client, Run(flow_run=self.flow_run, root=self.root))
                    if verdict in WHY:
                        return await engine.cancel(self.number, owner=self.owner, why=WHY[verdict], grace=GRACE)
                if time.monotonic() > deadline or await engine.owned(self.owner) is None:
                    return False
                await asyncio.sleep(_PAUSE)


@contextmanager
def guarded(ward: Ward) -> Iterator[None]:
    """Have an attempt stopped if this process ends within the block and the run was cancelled.

    Args:
        ward: The attempt that this process waits for.
    """
    guard = subprocess.Popen(
        [sys.executable, "-c", _WAIT],
        stdin=subprocess.PIPE,  # what is in it may be secret
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | get_current_settings().to_environment_variables(exclude_unset=True),
        start_new_session=True,
    )
    pipe = cast("IO[bytes]", guard.stdin)
    try:
        with suppress(BrokenPipeError):
            pipe.write(json.dumps(ward.to_json()).encode())
            pipe.flush()
        yield
    finally:
        with suppress(BrokenPipeError):
            pipe.write(_DONE)
            pipe.close()
        guard.wait()


if __name__ == "__main__":
    asyncio.run(Ward.from_json(json.loads(sys.stdin.buffer.read())).stop_if_cancelled())
