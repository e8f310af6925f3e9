"""``@dask_task`` on a temporary Dask cluster that the flow run holds.

Run it with ``python flows/examples/dask_cluster.py``. Without ``cluster=`` each stage makes a Dask of its own.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from rallypoint import DaskCluster
from rallypoint.prefect import dask_task, service


@dask_task(retries=1)
def count(client: Any, upto: int) -> dict[str, Any]:
    """Return what the workers add up, and how many they are."""
    parts = client.map(sum, [range(start, min(start + 100, upto)) for start in range(0, upto, 100)])
    return {"total": client.submit(sum, parts).result(), "workers": len(client.scheduler_info()["workers"])}


@flow(name="example-dask-cluster")
def pipeline(upto: int = 1000) -> dict[str, Any]:
    """Use one cluster for two stages; it is stopped at the end, and also when one of them fails."""
    with service(DaskCluster(workers=2, memory_per_worker="512MiB"), name="cluster") as cluster:
        first = count.with_options(name="first", cluster=cluster)(upto)
        return count.with_options(name="second", cluster=cluster)(first["workers"] * upto)


if __name__ == "__main__":
    print(pipeline())  # noqa: T201 - for who runs it
