"""Writes a Dask dataframe partition by partition, so that a retry computes only the partitions that are missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.worker.stage import stage
from rallypoint.worker.storage import open_storage, scratch_folder

if TYPE_CHECKING:
    import dask.dataframe
    import pandas as pd


def write_partitions(frame: dask.dataframe.DataFrame, name: str) -> str:
    """Write every partition as Parquet and publish them together as an artifact.

    Each partition is kept under the stage's generation as soon as it is computed, so an attempt that continues an
    earlier one computes only what is missing; the published folder appears whole, at the end. The same call must
    give the same partitions in every attempt: no partitioning by the number of workers, no random split without seed.

    Args:
        frame: The dataframe, lazy. Its partitions are computed on the connected client.
        name: The artifact's name.

    Returns:
        The URI of a folder with ``part-00000.parquet``, ``part-00001.parquet`` and so on.
    """
    from dask.delayed import delayed
    from distributed import as_completed, get_client

    here = stage()
    storage = open_storage(here.data_uri)
    parts = frame.to_delayed()
    names = [f"part-{number:05d}" for number in range(len(parts))]
    done = set(storage.names(f"partitions/{name}"))
    missing = [(part, number) for number, part in enumerate(parts) if names[number] not in done]
    print(f"{name}: {len(missing)} of {len(parts)} partitions to compute, {len(parts) - len(missing)} are there")  # noqa: T201
    here.report(step=len(parts) - len(missing), total=len(parts), unit=f"{name} partition")
    write = delayed(_write, pure=False)
    futures = get_client().compute([write(part, here.data_uri, f"partitions/{name}/{names[n]}") for part, n in missing])
    for count, future in enumerate(as_completed(futures), start=len(parts) - len(missing) + 1):
        future.result()
        here.report(step=count, total=len(parts), unit=f"{name} partition")

    def gather(folder: str) -> None:
        for part in names:
            _link(Path(storage.fetch(f"partitions/{name}/{part}")) / "data.parquet", Path(folder) / f"{part}.parquet")

    return here.save_artifact(gather, name=name)


def _write(part: pd.DataFrame, data_uri: str, name: str) -> None:
    storage = open_storage(data_uri)
    with scratch_folder(storage) as folder:
        part.to_parquet(Path(folder) / "data.parquet", index=False)
        storage.commit(folder, name)


def _link(source: Path, target: Path) -> Any:
    try:
        os.link(source, target)  # the same bytes twice in the store need the room once
    except OSError:
        target.write_bytes(source.read_bytes())
