"""A pipeline whose training fails in its first attempt and goes on in the next; run as a script, it serves it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow, serve

from rallypoint.prefect import python_task


@python_task(task_run_name="prepare")
def prepare(folder: str, seconds: float) -> str:
    time.sleep(3 * seconds)
    with Path(folder, "prepared").open("a") as file:
        file.write("prepared\n")
    return f"{folder}/data"


@python_task(task_run_name="train")
def train(folder: str, data: str, seconds: float, epochs: int = 12, breaks_after: int = 5) -> dict:
    """Train with a checkpoint after each epoch; an attempt that finds none breaks after some of them."""
    import math

    import rallypoint

    stage = rallypoint.stage()
    checkpoint = stage.latest_checkpoint()
    start = int(Path(checkpoint, "epoch").read_text()) if checkpoint else 0
    for epoch in range(start + 1, epochs + 1):
        time.sleep(seconds)
        with Path(folder, "epochs").open("a") as file:
            file.write(f"{epoch}\n")
        loss = 0.2 + math.exp(-epoch / 4)
        stage.save_checkpoint(lambda where, epoch=epoch: Path(where, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=epochs, loss=loss, accuracy=1 - loss / 2)
        print(f"epoch {epoch} of {epochs}: loss {loss:.3f}", flush=True)  # noqa: T201 - what a job prints is its log
        if checkpoint is None and epoch == breaks_after:
            raise ValueError("loss is NaN")
    return {"from": start, "epochs": epochs, "data": data, "loss": loss}


@python_task(task_run_name="evaluate")
def evaluate(folder: str, trained: dict) -> float:
    with Path(folder, "evaluated").open("a") as file:
        file.write("evaluated\n")
    return 1 - trained["loss"] / 2


@flow
def churn(folder: str, seconds: float = 0.2) -> float:
    """Prepare, train, evaluate.

    Args:
        folder: Where the jobs write what they did.
        seconds: What an epoch takes.
    """
    with Path(folder, "flow").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return evaluate(folder, train(folder, prepare(folder, seconds), seconds))


if __name__ == "__main__":
    serve(churn.to_deployment("nightly"))
