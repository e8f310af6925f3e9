"""The first stage on Spark: flights joined with weather and planes in SQL, as Parquet.

The columns are those of `features`, by the same rules: what is known before departure, and nothing else. Of the
flights only the schedule is read, and the arrival delay for the target; counts over the schedule include flights that
were cancelled later. A test holds the columns against those that pandas computes.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rallypoint
from rallypoint.examples.flights.data import data_folder, local_path
from rallypoint.examples.flights.features import COLUMNS, LATE_MINUTES, NUMERIC, TARGET
from rallypoint.examples.flights.preprocessing import TEST_MONTHS, TRAIN_MONTHS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyspark.sql import DataFrame

_FILES = {"flights": "flights.csv.zip", "weather": "weather.csv", "planes": "planes.csv"}
_BUCKETS = 1_000_000  # of the hash that samples

_SCHEDULE = """
WITH timed AS (
  SELECT year, month, day, carrier, flight, tailnum, origin, dest, distance, hour, arr_delay,
    sched_dep_time, to_timestamp(time_hour) AS utc_hour,
    weekday(make_date(year, month, day)) AS weekday,
    sched_dep_time DIV 100 * 60 + sched_dep_time % 100 AS departure,
    sched_arr_time DIV 100 * 60 + sched_arr_time % 100 AS arrival
  FROM flights WHERE month IN ({months})
)
SELECT *,
  departure AS minute_of_day,
  sin(2 * pi() * departure / 1440) AS dep_sin, cos(2 * pi() * departure / 1440) AS dep_cos,
  sin(2 * pi() * arrival / 1440) AS arr_sin, cos(2 * pi() * arrival / 1440) AS arr_cos,
  -- Destinations keep their own time, so this is the flight's time plus the difference of time zones.
  pmod(arrival - departure, 1440) AS duration,
  distance / greatest(pmod(arrival - departure, 1440), 20) AS speed,
  count(*) OVER (PARTITION BY origin, month, day, hour) AS hour_departures,
  count(*) OVER (PARTITION BY origin, month, day, hour, carrier) AS carrier_departures,
  count(*) OVER (PARTITION BY month, day) AS day_departures,
  count(*) OVER (PARTITION BY dest, month, day) AS dest_departures,
  row_number() OVER (PARTITION BY origin, month, day ORDER BY departure, carrier, flight) - 1 AS departures_before,
  CASE WHEN tailnum IS NULL THEN -1 ELSE row_number() OVER plane_day - 1 END AS plane_leg,
  -- The first leg of the day has a whole day before it.
  CASE WHEN tailnum IS NULL THEN 1440 ELSE coalesce(departure - lag(departure) OVER plane_day, 1440) END AS plane_gap
FROM timed
WINDOW plane_day AS (PARTITION BY tailnum, month, day ORDER BY departure, carrier, flight)
"""

_WEATHER = """
WITH readings AS (
  SELECT origin, to_timestamp(time_hour) AS utc_hour, temp, dewp, humid, wind_dir,
    CASE WHEN wind_speed < 100 THEN wind_speed END AS wind_speed,  -- one row of the file says 1,048
    wind_gust, precip, pressure, visib
  FROM weather
), hours AS (
  SELECT explode(sequence(from_hour, to_hour, INTERVAL 1 HOUR)) AS utc_hour
  FROM (SELECT min(utc_hour) AS from_hour, max(utc_hour) AS to_hour FROM readings)
), grid AS (
  SELECT origin, utc_hour FROM hours CROSS JOIN (SELECT DISTINCT origin FROM readings)
), lasting AS (
  -- A missing reading is the last one of the six hours before it.
  SELECT origin, utc_hour, {lasting},
    coalesce(wind_gust, 0) AS wind_gust, greatest(coalesce(precip, 0), 0) AS rain
  FROM grid LEFT JOIN readings USING (origin, utc_hour)
  WINDOW since AS (PARTITION BY origin ORDER BY utc_hour ROWS BETWEEN 6 PRECEDING AND CURRENT ROW)
), airport AS (
  SELECT origin, utc_hour, temp, dewp, temp - dewp AS spread, humid, wind_speed,
    coalesce(wind_speed * cos(radians(wind_dir)), 0) AS wind_north,
    coalesce(wind_speed * sin(radians(wind_dir)), 0) AS wind_east,
    wind_gust, log1p(20 * rain) AS precip, pressure, visib,
    log1p(20 * sum(rain) OVER h3) AS precip_3h, log1p(20 * sum(rain) OVER h12) AS precip_12h,
    min(visib) OVER h3 AS visib_3h, min(visib) OVER h6 AS visib_6h, min(visib) OVER h12 AS visib_12h,
    max(wind_gust) OVER h3 AS gust_3h, max(wind_speed) OVER h6 AS wind_6h,
    pressure - lag(pressure, 3) OVER past AS pressure_change_3h,
    pressure - lag(pressure, 12) OVER past AS pressure_change_12h,
    temp - lag(temp, 3) OVER past AS temp_change_3h, temp - lag(temp, 24) OVER past AS temp_change_24h
  FROM lasting
  WINDOW past AS (PARTITION BY origin ORDER BY utc_hour),
    h3 AS (PARTITION BY origin ORDER BY utc_hour ROWS BETWEEN 2 PRECEDING AND CURRENT ROW),
    h6 AS (PARTITION BY origin ORDER BY utc_hour ROWS BETWEEN 5 PRECEDING AND CURRENT ROW),
    h12 AS (PARTITION BY origin ORDER BY utc_hour ROWS BETWEEN 11 PRECEDING AND CURRENT ROW)
)
SELECT *, min(visib) OVER city AS city_visib, min(visib_6h) OVER city AS city_visib_6h,
  max(wind_gust) OVER city AS city_gust, max(precip) OVER city AS city_precip
FROM airport WINDOW city AS (PARTITION BY utc_hour)
"""
_LASTING = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "pressure", "visib")

_JOINED = """
SELECT /*+ BROADCAST(w), BROADCAST(p) */ {columns}
FROM scheduled s
LEFT JOIN hourly_weather w USING (origin, utc_hour)
LEFT JOIN (SELECT tailnum, year AS plane_year, model AS plane_model, seats FROM planes) p USING (tailnum)
WHERE s.arr_delay IS NOT NULL  -- neither cancelled nor diverted
  AND pmod(xxhash64(s.month, s.day, s.carrier, s.flight, s.origin, s.sched_dep_time), {buckets}) < {kept}
"""


def spark_features(spark: Any, fraction: float = 1.0) -> dict[str, Any]:
    """Write the flights of January to October for training and those of November and December for the test.

    Args:
        spark: The session; the stage makes it.
        fraction: The share of flights to keep, above 0 and up to 1. Which ones depends on nothing but the flight.

    Returns:
        The URIs ``train`` and ``test`` of two folders of Parquet files, and for each ``rows`` and ``late_share``.

    Raises:
        ValueError: The fraction is out of its range.
    """
    from rallypoint.frameworks.spark.ml import read_table, save_table

    if not 0 < fraction <= 1:
        msg = f"spark_features(fraction=…): got {fraction!r}, expected a share above 0 and up to 1"
        raise ValueError(msg)
    stage = rallypoint.stage()
    read_tables(spark, stage.save_artifact(_unpack, name="csv"))
    uris, rows, late_share = {}, {}, {}
    for done, (name, months) in enumerate((("train", TRAIN_MONTHS), ("test", TEST_MONTHS)), start=1):
        uris[name] = save_table(features_frame(spark, months, fraction), name)
        written = read_table(spark, uris[name])
        count, late = written.selectExpr("count(*)", f"avg({TARGET})").collect()[0]
        rows[name], late_share[name] = count, round(late or 0.0, 4)
        stage.report(step=done, total=2, unit="table")
        print(f"{name}: {count:,} flights, {late_share[name]:.1%} of them late", flush=True)  # noqa: T201 - the stage's log
    return {**uris, "rows": rows, "late_share": late_share}


def read_tables(spark: Any, uri: str) -> None:
    """Make the temporary views ``flights``, ``weather`` and ``planes``.

    Args:
        spark: The session.
        uri: A folder with their CSV files.
    """
    folder = local_path(uri)
    for name in _FILES:
        frame = spark.read.csv(f"file://{folder}/{name}.csv", header=True, inferSchema=True, nullValue="NA")
        frame.createOrReplaceTempView(name)


def features_frame(spark: Any, months: Iterable[int], fraction: float = 1.0) -> DataFrame:
    """Return the joined flights, lazy, with the columns of a partition in `features`.

    Args:
        spark: The session, with the views of `read_tables`.
        months: Months of 2013.
        fraction: The share of flights to keep.
    """
    lasting = ", ".join(f"last_value({name}) IGNORE NULLS OVER since AS {name}" for name in _LASTING)
    spark.sql(_SCHEDULE.format(months=", ".join(map(str, months)))).createOrReplaceTempView("scheduled")
    spark.sql(_WEATHER.format(lasting=lasting)).createOrReplaceTempView("hourly_weather")
    as_type = dict.fromkeys(NUMERIC, "float")
    columns = [
        f"CAST(s.arr_delay > {LATE_MINUTES} AS TINYINT) AS {TARGET}"
        if name == TARGET
        else f"CAST({name} AS {as_type[name]}) AS {name}"
        if name in as_type
        else name
        for name in COLUMNS
    ]
    query = _JOINED.format(columns=", ".join(columns), buckets=_BUCKETS, kept=round(fraction * _BUCKETS))
    frame: DataFrame = spark.sql(query)
    return frame


def _unpack(folder: str) -> None:
    """Write the CSV files; Spark reads no zip archive."""
    for name, file in _FILES.items():
        source, target = data_folder() / file, Path(folder) / f"{name}.csv"
        if file.endswith(".zip"):
            with zipfile.ZipFile(source) as archive:
                target.write_bytes(archive.read(f"{name}.csv"))
        else:
            target.write_bytes(source.read_bytes())
