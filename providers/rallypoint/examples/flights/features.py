"""What is known of a flight before it departs, as columns.

Nothing here looks at an outcome. Of the flights' 19 columns only `SCHEDULE` is used: when, where and with which plane
a flight is meant to go. Counts over the schedule include flights that were cancelled later, because the schedule did.
Weather is that of the scheduled hour of departure and of the hours before it, never of one after it.

Which features to keep was chosen with blocks of two months of January to October held out. The day of the year and
the distance to a holiday were left out for that reason: they recognise days of the training months, not days like
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

LATE_MINUTES = 15  # a flight is late when it arrives more than so many minutes after its schedule

SCHEDULE = (
    "year", "month", "day", "sched_dep_time", "sched_arr_time", "carrier", "flight", "tailnum", "origin", "dest",
    "distance", "hour", "time_hour",
)  # fmt: skip
OUTCOMES = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")

TARGET = "late"
DAY = ("month", "day")  # kept to split rows by, not a feature

CATEGORICAL: dict[str, tuple[str, ...]] = {
    "carrier": ("carrier",),
    "origin": ("origin",),
    "dest": ("dest",),
    "hour": ("hour",),
    "weekday": ("weekday",),
    "plane_model": ("plane_model",),
    "carrier_hour": ("carrier", "hour"),
    "carrier_dest": ("carrier", "dest"),
    "origin_carrier": ("origin", "carrier"),
    "origin_hour": ("origin", "hour"),
}
"""Each categorical feature and the columns that make it up."""

_PLAN = ("minute_of_day", "dep_sin", "dep_cos", "arr_sin", "arr_cos", "duration", "distance", "speed")
_TRAFFIC = ("hour_departures", "carrier_departures", "day_departures", "dest_departures", "departures_before")
_PLANE = ("plane_leg", "plane_gap", "plane_year", "seats")
_NOW = (
    "temp", "dewp", "spread", "humid", "wind_speed", "wind_north", "wind_east", "wind_gust", "precip", "pressure",
    "visib",
)  # fmt: skip
_BEFORE = (
    "precip_3h", "precip_12h", "visib_3h", "visib_6h", "visib_12h", "gust_3h", "wind_6h", "pressure_change_3h",
    "pressure_change_12h", "temp_change_3h", "temp_change_24h",
)  # fmt: skip
_CITY = ("city_visib", "city_visib_6h", "city_gust", "city_precip")
NUMERIC = _PLAN + _TRAFFIC + _PLANE + _NOW + _BEFORE + _CITY

SOURCES = tuple(dict.fromkeys(column for columns in CATEGORICAL.values() for column in columns))
COLUMNS = (*DAY, *SOURCES, *NUMERIC, TARGET)
"""The columns of a partition."""

_MINUTES_A_DAY = 24 * 60
_IMPOSSIBLE_WIND = 100.0  # miles per hour; one row of the file says 1,048


def schedule_features(flights: pd.DataFrame) -> pd.DataFrame:
    """Return what a schedule says of each flight.

    Args:
        flights: Whole days of flights, with at least the columns `SCHEDULE`; others are not looked at.

    Returns:
        The columns ``month``, ``day``, ``tailnum``, ``utc_hour``, the categorical sources and the numeric features of
        plan, traffic and the plane's day; same index, same order. Times are in minutes, the distance in miles, the
        speed in miles per minute.
    """
    import numpy as np
    import pandas as pd

    frame = flights[list(SCHEDULE)].copy()
    frame["utc_hour"] = pd.to_datetime(frame.pop("time_hour"), utc=True).dt.tz_localize(None).astype("datetime64[ns]")
    frame["weekday"] = pd.to_datetime(frame[["year", "month", "day"]]).dt.weekday
    departure, arrival = _minute_of_day(frame["sched_dep_time"]), _minute_of_day(frame["sched_arr_time"])
    frame["minute_of_day"] = departure
    for name, minute in (("dep", departure), ("arr", arrival)):
        angle = 2 * np.pi * minute / _MINUTES_A_DAY
        frame[f"{name}_sin"], frame[f"{name}_cos"] = np.sin(angle), np.cos(angle)
    # Destinations keep their own time, so this is the flight's time plus the difference of time zones.
    frame["duration"] = (arrival - departure) % _MINUTES_A_DAY
    frame["speed"] = frame["distance"] / frame["duration"].clip(lower=20)

    day = ["month", "day"]
    counted = {
        "hour_departures": ["origin", *day, "hour"],
        "carrier_departures": ["origin", *day, "hour", "carrier"],
        "day_departures": day,
        "dest_departures": ["dest", *day],
    }
    for name, keys in counted.items():
        frame[name] = frame.groupby(keys)["flight"].transform("size")
    in_order = frame.sort_values(["origin", *day, "minute_of_day", "carrier", "flight"])
    frame["departures_before"] = in_order.groupby(["origin", *day]).cumcount()
    in_order = frame[frame["tailnum"].notna()].sort_values(["tailnum", *day, "minute_of_day", "carrier", "flight"])
    legs = in_order.groupby(["tailnum", *day])
    frame["plane_leg"] = legs.cumcount()
    frame["plane_gap"] = in_order["minute_of_day"] - legs["minute_of_day"].shift()
    frame["plane_leg"] = frame["plane_leg"].fillna(-1)
    frame["plane_gap"] = frame["plane_gap"].fillna(_MINUTES_A_DAY)  # the first leg of the day
    return frame.drop(columns=["year", "sched_dep_time", "sched_arr_time", "flight"])


def weather_features(weather: pd.DataFrame) -> pd.DataFrame:
    """Return the weather at each origin and hour, with that of the hours before it.

    Args:
        weather: The rows of ``weather.csv``: °F, miles, miles per hour, inches and millibars.

    Returns:
        One row per ``origin`` and ``utc_hour``, without gaps. A missing reading is the last one of the six hours before
        it; ``*_3h`` and the like are over so many hours, the scheduled one included; ``city_*`` is the worst of the
        three airports.
    """
    import pandas as pd

    weather = weather.assign(
        utc_hour=pd.to_datetime(weather["time_hour"], utc=True).dt.tz_localize(None).astype("datetime64[ns]"),
        wind_speed=weather["wind_speed"].where(weather["wind_speed"] < _IMPOSSIBLE_WIND),
    )
    hours = pd.date_range(weather["utc_hour"].min(), weather["utc_hour"].max(), freq="h", unit="ns", name="utc_hour")
    airports = [
        _airport_weather(rows.set_index("utc_hour").reindex(hours)).assign(origin=origin).reset_index()
        for origin, rows in weather.groupby("origin")
    ]
    frame = pd.concat(airports, ignore_index=True)
    at_hour = frame.groupby("utc_hour")
    frame["city_visib"] = at_hour["visib"].transform("min")
    frame["city_visib_6h"] = at_hour["visib_6h"].transform("min")
    frame["city_gust"] = at_hour["wind_gust"].transform("max")
    frame["city_precip"] = at_hour["precip"].transform("max")
    return frame[["origin", "utc_hour", *_NOW, *_BEFORE, *_CITY]]


def plane_features(planes: pd.DataFrame) -> pd.DataFrame:
    """Return ``tailnum``, ``plane_year`` (of manufacture), ``plane_model`` and ``seats`` of each plane."""
    names = {"year": "plane_year", "model": "plane_model"}
    return planes.rename(columns=names)[["tailnum", "plane_year", "plane_model", "seats"]]


def _minute_of_day(time: pd.Series[int]) -> pd.Series[int]:
    return time // 100 * 60 + time % 100


def _airport_weather(readings: pd.DataFrame) -> pd.DataFrame:
    import numpy as np

    lasting = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "pressure", "visib"]
    frame = readings[[*lasting, "wind_gust", "precip"]].copy()
    frame[lasting] = frame[lasting].ffill(limit=6)
    rain = frame["precip"].fillna(0)
    frame["wind_gust"] = frame["wind_gust"].fillna(0)
    angle = np.deg2rad(frame["wind_dir"])
    frame["wind_north"] = (frame["wind_speed"] * np.cos(angle)).fillna(0)
    frame["wind_east"] = (frame["wind_speed"] * np.sin(angle)).fillna(0)
    frame["spread"] = frame["temp"] - frame["dewp"]  # small in fog
    frame["precip"] = _compressed(rain)
    for hours in (3, 12):
        frame[f"precip_{hours}h"] = _compressed(rain.rolling(hours, min_periods=1).sum())
        frame[f"pressure_change_{hours}h"] = frame["pressure"].diff(hours)
    for hours in (3, 6, 12):
        frame[f"visib_{hours}h"] = frame["visib"].rolling(hours, min_periods=1).min()
    frame["gust_3h"] = frame["wind_gust"].rolling(3, min_periods=1).max()
    frame["wind_6h"] = frame["wind_speed"].rolling(6, min_periods=1).max()
    for hours in (3, 24):
        frame[f"temp_change_{hours}h"] = frame["temp"].diff(hours)
    return frame


def _compressed(rain: pd.Series[float]) -> pd.Series[float]:
    import numpy as np

    return np.log1p(20 * rain.clip(lower=0))
