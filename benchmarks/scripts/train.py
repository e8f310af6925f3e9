"""Data-parallel training of a small network, with a checkpoint after each epoch.

With ``--plain`` it is the script that one has before Rallypoint: no import of it and no checkpoint.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of one epoch")
    parser.add_argument("--plain", action="store_true", help="make no use of Rallypoint")
    parser.add_argument("--record", type=Path, help="where rank 0 writes when epochs began and ended")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep after each epoch")
    args = parser.parse_args()
    stage = None
    if not args.plain:
        import rallypoint  # noqa: PLC0415 - a plain script does not know it

        stage = rallypoint.stage()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    data, first = torch.randn(64, 256), 0
    if stage and (checkpoint := stage.latest_checkpoint()):
        saved = torch.load(Path(checkpoint, "model.pt"))
        model.module.load_state_dict(saved["model"])
        first = saved["epoch"]
    note(args.record)
    for epoch in range(first + 1, args.epochs + 1):
        for _ in range(args.steps):
            optimizer.zero_grad()
            loss = model(data).square().mean()
            loss.backward()
            optimizer.step()
        if stage:
            state = {"epoch": epoch, "model": model.module.state_dict()}
            stage.save_checkpoint(lambda folder, state=state: torch.save(state, Path(folder, "model.pt")), step=epoch)
            stage.report(step=epoch, total=args.epochs, unit="epoch", loss=loss.item())
        dist.barrier()
        note(args.record)
        time.sleep(args.pause)
    dist.destroy_process_group()


def note(record: Path | None) -> None:
    """Write down the time, on rank 0, with what tells its round of restarts from others."""
    if record and dist.get_rank() == 0:
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"t": time.time(), "pid": os.getpid(), "world": dist.get_world_size()}) + "\n")


if __name__ == "__main__":
    main()
