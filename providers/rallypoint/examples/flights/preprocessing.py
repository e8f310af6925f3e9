"""The first stage: flights joined with weather and planes, as Parquet, on a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rallypoint
from rallypoint.examples.flights.data import read_flights, read_partitions, read_planes, read_weather
from rallypoint.examples.flights.features import (
    COLUMNS,
    LATE_MINUTES,
    NUMERIC,
    TARGET,
    plane_features,
    schedule_features,
    weather_features,
)
from rallypoint.frameworks.dask.partitions import write_partitions

if TYPE_CHECKING:
    import dask.dataframe
    import distributed
    import pandas as pd

TRAIN_MONTHS = range(1, 11)
TEST_MONTHS = range(11, 13)

_KEY = ["month", "day", "carrier", "flight", "origin", "sched_dep_time"]  # names a flight of the schedule


def preprocess(client: distributed.Client, fraction: float = 1.0) -> dict[str, Any]:
    """Write the flights of January to October for training and those of November and December for the test.

    A month is a partition. A retry computes the partitions that the attempts before it did not finish.

    Args:
        client: The Dask client that computes; the stage connects it.
        fraction: The share of flights to keep, above 0 and up to 1. Which ones depends on nothing but the flight.

    Returns:
        The URIs ``train`` and ``test`` of two folders, and for each of them ``rows`` and ``late_share``.

    Raises:
        ValueError: The fraction is out of its range.
    """
    if not 0 < fraction <= 1:
        msg = f"preprocess(fraction=…): got {fraction!r}, expected a share above 0 and up to 1"
        raise ValueError(msg)
    workers: Any = client.ncores  # it has no annotations
    print(f"preprocessing {fraction:.0%} of the flights on {len(workers())} workers")  # noqa: T201 - the stage's log
    uris, rows, late_share = {}, {}, {}
    for name, months in (("train", TRAIN_MONTHS), ("test", TEST_MONTHS)):
        # This also reports the progress, partition by partition.
        uris[name] = write_partitions(flights_frame(months, fraction), name)
        late = read_partitions(uris[name], columns=[TARGET])[TARGET]
        rows[name], late_share[name] = len(late), round(float(late.mean()), 4)
        metrics: dict[str, Any] = {f"{name}_rows": rows[name], f"{name}_late_share": late_share[name]}
        rallypoint.stage().report(**metrics)
        print(f"{name}: {rows[name]:,} flights, {late_share[name]:.1%} of them late")  # noqa: T201 - the stage's log
    return {**uris, "rows": rows, "late_share": late_share}


def flights_frame(months: range, fraction: float = 1.0) -> dask.dataframe.DataFrame:
    """Return the joined flights, lazy, one partition a month.

    Args:
        months: Months of 2013.
        fraction: The share of flights to keep.

    Returns:
        A frame with the columns `COLUMNS`.
    """
    import dask.dataframe as dd

    from_map: Any = dd.from_map  # it has no annotations
    flights = from_map(_month, list(months), fraction=fraction)
    # One partition each: the joins then need no shuffle and keep the months apart.
    weather = from_map(_weather, [0])
    planes = from_map(_planes, [0])
    joined = flights.merge(weather, on=["origin", "utc_hour"], how="left").merge(planes, on="tailnum", how="left")
    frame: dask.dataframe.DataFrame = joined.map_partitions(_selected)
    return frame


def sample(flights: pd.DataFrame, fraction: float) -> pd.Series[bool]:
    """Tell which flights a fraction keeps: those with a small hash of what names the flight.

    Args:
        flights: At least the columns that name a flight.
        fraction: The share to keep; a larger one keeps all that a smaller one does.

    Returns:
        One boolean a row.
    """
    import pandas as pd

    hashes = pd.util.hash_pandas_object(flights[_KEY], index=False)
    return hashes <= int(fraction * (2**64 - 1)) if fraction < 1 else hashes >= 0


def _month(month: int, fraction: float) -> pd.DataFrame:
    flights = read_flights(month)
    frame = schedule_features(flights)  # of the whole schedule, before any flight is left out
    frame[TARGET] = (flights["arr_delay"] > LATE_MINUTES).astype("int8")
    landed = flights["arr_delay"].notna()  # neither cancelled nor diverted
    return frame[landed & sample(flights, fraction)].reset_index(drop=True)


def _weather(_: int) -> pd.DataFrame:
    return weather_features(read_weather())


def _planes(_: int) -> pd.DataFrame:
    return plane_features(read_planes())


def _selected(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[list(COLUMNS)].astype(dict.fromkeys(NUMERIC, "float32"))
