"""``@dask_task``: a function with a connected client; a retry computes only the partitions that are missing.

Run it with ``python flows/examples/dask_table.py``.
"""

# ruff: noqa: PLC0415 - frameworks are imported in the job, not while the file is read

from __future__ import annotations

from typing import Any

from prefect import flow

from rallypoint.prefect import dask_task


@dask_task(retries=1)
def squares(client: Any, rows: int = 1000) -> dict[str, Any]:
    """Write a partitioned table and return its URI; the caller gives no client."""
    import dask.dataframe as dd
    import pandas as pd

    from rallypoint.frameworks.dask.partitions import write_partitions

    workers = len(client.scheduler_info()["workers"])
    frame = dd.from_pandas(pd.DataFrame({"n": range(rows)}), npartitions=4)
    return {"table": write_partitions(frame.assign(square=frame.n**2), name="squares"), "workers": workers}


@flow(name="example-dask")
def pipeline(rows: int = 1000) -> dict[str, Any]:
    """Make the table."""
    return squares(rows=rows)


if __name__ == "__main__":
    print(pipeline())  # noqa: T201 - for who runs it
