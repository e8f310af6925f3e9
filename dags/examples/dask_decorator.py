"""``@task.dask``: a function with a connected client; a retry computes only the partitions that are missing."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_dask_decorator() -> None:
    """Write a partitioned table, and pass its URI on."""

    @task.dask(retries=1, deferrable=True)
    def squares(client: Any, rows: int = 1000) -> dict[str, Any]:
        import dask.dataframe as dd
        import pandas as pd

        from rallypoint.frameworks.dask.partitions import write_partitions

        print(f"{len(client.scheduler_info()['workers'])} workers")
        frame = dd.from_pandas(pd.DataFrame({"n": range(rows)}), npartitions=4)
        return {"table": write_partitions(frame.assign(square=frame.n**2), name="squares")}

    squares(rows=400)


example_dask_decorator()
