"""``@ray_task``, ``@ray_train_task`` and ``@ray_tune_task`` on a temporary Ray cluster that the flow run holds.

Run it with ``python flows/examples/ray_cluster.py``. Without ``address=`` each stage makes a Ray of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

import rallypoint
from rallypoint import RayCluster, search
from rallypoint.prefect import ray_task, ray_train_task, ray_tune_task, service


@ray_task(retries=1)
def square(upto: int) -> list[int]:
    """Run a Ray task for each number; Ray is initialised."""
    import ray

    @ray.remote(num_cpus=1)
    def of(number: int) -> int:
        return number * number

    return ray.get([of.remote(number) for number in range(upto)])


@ray_train_task(num_workers=2, max_failures=1, retries=1)
def mean(numbers: list[int]) -> dict[str, Any]:
    """Average the numbers over two workers, which Ray Train has joined."""
    import torch
    import torch.distributed as dist

    stage = rallypoint.stage()
    mine = numbers[stage.rank :: stage.world_size]
    total = torch.tensor([float(sum(mine)), float(len(mine))])
    dist.all_reduce(total)
    stage.report(step=1, total=1, mean=float(total[0] / total[1]))
    return {"mean": float(total[0] / total[1]), "workers": stage.world_size}


@ray_tune_task(
    space={"learning_rate": search.loguniform(1e-3, 1.0)}, metric="loss", num_samples=4, reuse_actors=True, retries=1
)
def descend(target: float, learning_rate: float, steps: int = 4) -> dict[str, Any]:
    """Descend to a target; each trial gets another learning rate, and goes on from its own checkpoint."""
    stage = rallypoint.stage()
    done, x = 0, 0.0
    if checkpoint := stage.latest_checkpoint():
        step, value = Path(checkpoint, "state").read_text(encoding="utf-8").split()
        done, x = int(step), float(value)
    for step in range(done + 1, steps + 1):
        x -= learning_rate * 2 * (x - target)
        state = f"{step} {x!r}"
        stage.save_checkpoint(lambda folder, state=state: Path(folder, "state").write_text(state, encoding="utf-8"))
        stage.report(step=step, total=steps, loss=(x - target) ** 2)
    return {"x": x}


@flow(name="example-ray")
def pipeline(upto: int = 10) -> dict[str, Any]:
    """Use one cluster for three stages; it is stopped at the end, and also when one of them fails."""
    with service(RayCluster(workers=0, head_cpus=2, object_store_memory="100MiB"), name="cluster") as cluster:
        numbers = square.with_options(address=cluster)(upto)
        averaged = mean.with_options(address=cluster)(numbers)
        best = descend.with_options(address=cluster)(averaged["mean"])
    return {**averaged, "config": best["config"]}


if __name__ == "__main__":
    print(pipeline())  # noqa: T201 - for who runs it
