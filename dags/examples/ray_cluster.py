"""A temporary Ray cluster for the tasks between its set-up and its teardown; one of them gets further workers."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag

from rallypoint.airflow.operators.python import PythonJobOperator
from rallypoint.airflow.operators.ray_cluster import ray_cluster, ray_workers


def count(address: dict[str, Any]) -> dict[str, float]:
    """Return what the cluster has, as its scheduler sees it, after a task ran on every CPU."""
    import ray

    ray.init(address=address["address"])

    @ray.remote(num_cpus=1)
    def square(number: int) -> int:
        return number * number

    cpus = ray.cluster_resources()["CPU"]
    total = sum(ray.get([square.remote(number) for number in range(int(cpus))]))
    return {"cpus": cpus, "nodes": len(ray.nodes()), "total": total}


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_ray_cluster() -> None:
    """The teardowns run also when `count` fails; clearing `count` clears them and the set-ups with it."""
    with ray_cluster(workers=1, object_store_memory="100MiB") as cluster:
        before = PythonJobOperator(
            task_id="count", python_callable=count, op_args=[cluster.address], uses=[cluster.address], deferrable=True
        )
        with ray_workers(cluster, workers=1, object_store_memory="100MiB") as more:
            PythonJobOperator(
                task_id="count_more",
                python_callable=count,
                op_args=[more.address],
                uses=[more.address],
                deferrable=True,
            )
        before >> more.start


example_ray_cluster()
