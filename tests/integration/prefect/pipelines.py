"""Flows as users write them, on a job of one plain Python process; run as a script, it serves them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from prefect import flow, get_client, serve
from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import flow_run
from prefect.task_runners import ProcessPoolTaskRunner

from rallypoint.prefect import python_task, service, stop_jobs_on_cancellation
from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.service_job import ServiceJob


@python_task
def prepare(folder: str) -> str:
    with Path(folder, "prepared").open("a") as file:
        file.write("prepared\n")
    return f"{folder}/data"


def train_epochs(folder: str, data: str, epochs: int = 4) -> dict:
    """Four epochs with a checkpoint after each; a file called `do` says what happens after the second one."""
    import signal
    import time

    import rallypoint

    stage = rallypoint.stage()
    checkpoint = stage.latest_checkpoint()
    start = int(Path(checkpoint, "epoch").read_text()) if checkpoint else 0
    with Path(folder, "started").open("a") as file:
        file.write(f"{start} {os.getpid()}\n")
    for epoch in range(start + 1, epochs + 1):
        stage.save_checkpoint(lambda where, epoch=epoch: Path(where, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=epochs, loss=1 / epoch)
        print(f"epoch {epoch}", flush=True)  # noqa: T201 - what a job prints is its log
        do = Path(folder, "do").read_text()
        if epoch == 2 and do == "fail":
            raise ValueError("loss is NaN")
        if epoch == 2 and do == "refuse":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if epoch == 2 and do in {"wait", "refuse"}:
            Path(folder, "waits").touch()
            while Path(folder, "do").read_text() == do:
                time.sleep(0.05)
    return {"epochs": epochs, "from": start, "data": data}


train = python_task(name="train", assets=["test://models{folder}"])(train_epochs)


@python_task
def check(folder: str) -> None:
    with Path(folder, "checked").open("a") as file:
        file.write("checked\n")


def hear_of_suspension() -> None:
    """Have this process know that its run is suspended.

    Prefect's observer (3.7) reads the run's state at the event, which the server sends before it has stored the state:
    it then finds the run *Running*, and does not look again.
    """
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    if state.is_paused():
        FlowRunContext.get().flow_run_suspension_request.mark_requested(state)


def note_process(folder: str) -> None:
    with Path(folder, "flow").open("a") as file:
        file.write(f"{os.getpid()}\n")


@flow
def pipeline(folder: str, how: str = "direct"):
    note_process(folder)
    data = prepare(folder)
    if how == "submit":
        return train.submit(folder, data).result()
    if how == "suspend":
        suspend_flow_run(timeout=3600)
    trained = train(folder, data)
    if how == "suspend":
        hear_of_suspension()
    check(folder)
    return trained


@flow(name="async-pipeline")
async def async_pipeline(folder: str, how: str = "await"):
    note_process(folder)
    data = await prepare.aio(folder)
    if how == "submit":
        return train.submit(folder, data).result()
    return await train.aio(folder, data)


@flow(name="pool-pipeline", task_runner=ProcessPoolTaskRunner(max_workers=1))
def pool_pipeline(folder: str):
    note_process(folder)
    return train.submit(folder, "data").result()


@flow(name="hooked-pipeline", on_cancellation=[stop_jobs_on_cancellation])
def hooked_pipeline(folder: str):
    note_process(folder)
    return train(folder, "data")


@flow(name="prepared", persist_result=True)
def prepared(folder: str) -> str:
    with Path(folder, "bodies").open("a") as file:
        file.write("prepared\n")
    return prepare(folder)


@flow(name="trained")
def trained(folder: str, data: str) -> dict:
    with Path(folder, "bodies").open("a") as file:
        file.write(f"trained {flow_run.id}\n")
    return train(folder, data)


@flow(name="nested-pipeline")
def nested_pipeline(folder: str):
    note_process(folder)
    return trained(folder, prepared(folder))


SERVICE = """
import os, sys, time
from pathlib import Path
from rallypoint.worker import process

def serve():
    Path(os.environ["WITNESS"], "service").write_text(str(os.getpid()))
    process.writer().write("ready", address={"answer": 42})
    while True:
        time.sleep(0.1)

sys.exit(process.run(serve, name="p-0", primary=False))
"""


@dataclass(frozen=True, kw_only=True)
class Service(ServiceJob):
    kind: ClassVar[str] = "service"

    def roles(self):
        return (Role(name="p", argv=(Macro.PYTHON, "-c", SERVICE), env=dict(self.env)),)


@flow(name="service-pipeline")
def service_pipeline(folder: str):
    note_process(folder)
    with service(Service(env={"WITNESS": folder}), name="service") as address:
        return train.with_options(uses=[address])(folder, "data")


FLOWS = (pipeline, async_pipeline, pool_pipeline, hooked_pipeline, nested_pipeline, service_pipeline)

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "test"
    serve(*(each.to_deployment(name) for each in FLOWS))
