"""``@task.ray_train``: a function of the DAG file on every worker of Ray Train; rank 0's return value is the result."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_ray_train_decorator() -> None:
    """Train a line on two workers; a lost worker and a retry of the task both go on from the last checkpoint."""

    @task.ray_train(num_workers=2, max_failures=1, retries=1, retry_delay=timedelta(seconds=5), deferrable=True)
    def fit(epochs: int = 5) -> dict[str, Any]:
        from pathlib import Path

        import torch
        from ray.train.torch import prepare_model

        stage = rallypoint.stage()
        torch.manual_seed(0)
        model = prepare_model(torch.nn.Linear(1, 1))  # torch.distributed is initialised by Ray Train
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        start, checkpoint = 0, stage.latest_checkpoint()
        if checkpoint:
            saved = torch.load(Path(checkpoint, "state.pt"))
            model.load_state_dict(saved["model"])
            start = saved["epoch"]
        x = torch.linspace(-1, 1, 64).unsqueeze(1) + stage.rank / 100
        loss = torch.zeros(())
        for epoch in range(start + 1, epochs + 1):
            for _ in range(20):
                loss = (model(x) - (3 * x + 1)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            state = {"epoch": epoch, "model": model.state_dict()}
            stage.save_checkpoint(lambda folder, state=state: torch.save(state, Path(folder, "state.pt")), step=epoch)
            stage.report(step=epoch, total=epochs, unit="epoch", loss=loss)
        return {"loss": loss, "workers": stage.world_size}

    @task
    def check(result: dict[str, Any]) -> None:
        print(f"{result['workers']} workers fitted the line to a loss of {result['loss']:.6f}")

    check(fit(epochs=5))


example_ray_train_decorator()
