"""``@task.torch``: a function of the DAG file on every rank; rank 0's return value is the result."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

import rallypoint


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_torch_decorator() -> None:
    """Sum the ranks of a world of two."""

    @task.torch(nproc_per_node=2, retries=1, deferrable=True)
    def sum_of_ranks(offset: int = 0) -> dict[str, Any]:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        stage = rallypoint.stage()
        total = torch.tensor(float(stage.rank + offset))
        dist.all_reduce(total)
        stage.report(step=1, total=1, total_of_ranks=total)
        dist.destroy_process_group()
        return {"total": total, "world_size": stage.world_size}

    @task
    def check(result: dict[str, Any]) -> None:
        print(f"the ranks of {result['world_size']} processes add up to {result['total']}")

    check(sum_of_ranks(offset=1))


example_torch_decorator()
