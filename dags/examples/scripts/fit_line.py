"""Fits a line with DistributedDataParallel; runs under plain ``torchrun`` as well as in a stage."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import rallypoint


def main() -> None:
    """Train, with a checkpoint after every epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    epochs = parser.parse_args().epochs
    stage = rallypoint.stage()
    dist.init_process_group("gloo")
    torch.manual_seed(stage.rank)
    model = torch.nn.Linear(1, 1)
    first = 0
    if checkpoint := stage.latest_checkpoint():
        state = torch.load(Path(checkpoint) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        first = state["epoch"]
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    loss = torch.tensor(0.0)
    for epoch in range(first, epochs):
        for _ in range(50):
            inputs = torch.rand(64, 1)
            loss = torch.nn.functional.mse_loss(parallel(inputs), 3 * inputs + 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = {"model": model.state_dict(), "epoch": epoch + 1}
        stage.save_checkpoint(lambda folder, state=state: torch.save(state, Path(folder) / "state.pt"), step=epoch + 1)
        stage.report(step=epoch + 1, total=epochs, unit="epoch", loss=loss)
    stage.result({"weight": model.weight, "bias": model.bias, "loss": loss})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
