"""``@torch_task``: a function on every rank of a world of two, under torchrun; rank 0's return value is the result.

Run it with ``python flows/examples/torch_training.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

import rallypoint
from rallypoint.prefect import torch_task


@torch_task(nproc_per_node=2, max_restarts=1, retries=2, retry_delay_seconds=5)
def fit_line(epochs: int = 5) -> dict[str, Any]:
    """Fit a line; a rank that dies and a retry of the task both go on from the last checkpoint."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    stage = rallypoint.stage()
    model = torch.nn.Linear(1, 1)
    start = 0
    if checkpoint := stage.latest_checkpoint():
        saved = torch.load(Path(checkpoint, "state.pt"))
        start = saved["epoch"]
        model.load_state_dict(saved["model"])
    parallel = torch.nn.parallel.DistributedDataParallel(model)  # it gives every rank the weights of rank 0
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    x = torch.linspace(-1, 1, 64).unsqueeze(1) + stage.rank / 100
    loss = torch.zeros(())
    for epoch in range(start + 1, epochs + 1):
        for _ in range(20):
            loss = (parallel(x) - (3 * x + 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = {"epoch": epoch, "model": model.state_dict()}
        stage.save_checkpoint(lambda folder, state=state: torch.save(state, Path(folder, "state.pt")), step=epoch)
        stage.report(step=epoch, total=epochs, unit="epoch", loss=float(loss.detach()))
    dist.destroy_process_group()
    return {"loss": float(loss.detach()), "world_size": stage.world_size}


@flow(name="example-torch")
def pipeline(epochs: int = 5) -> dict[str, Any]:
    """Train."""
    return fit_line(epochs=epochs)


if __name__ == "__main__":
    print(pipeline())  # noqa: T201 - for who runs it
