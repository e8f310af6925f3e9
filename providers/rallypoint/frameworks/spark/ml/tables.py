"""Reads a table by its name or its path, and keeps one as an artifact of the stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.ml import paths
from rallypoint.frameworks.spark.ml.kept import check_parts
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_NAME = re.compile(r"^\w+(\.\w+){0,2}$")
_FORMATS = {".parquet": "parquet", ".orc": "orc", ".json": "json", ".avro": "avro", ".csv": "csv"}


def source_of(source: str) -> tuple[str, str | None]:
    """Tell what a text names.

    Args:
        source: ``table``, ``schema.table`` or ``catalog.schema.table``, or a path or URI, which holds a ``/``.

    Returns:
        ``("table", None)``, or ``("path", format)`` with the format that the ending says, None for Spark's default.

    Raises:
        ValueError: It is neither.
    """
    if "/" in source:
        bare = source.rstrip("/").removesuffix(".gz").removesuffix(".bz2")
        return "path", next((kind for end, kind in _FORMATS.items() if bare.endswith(end)), None)
    if _NAME.match(source):
        return "table", None
    msg = f"got {source!r}, expected a table's name such as 'sales.orders', or a path or URI such as '/data/orders'"
    raise ValueError(msg)


def read_table(spark: Any, source: str | DataFrame) -> DataFrame:
    """Return a table.

    Args:
        spark: The session.
        source: A DataFrame, which is returned as it is; a table's name; or a path or URI of Parquet, ORC, JSON, Avro or
            CSV (with a header; types are inferred), as its ending says. Without an ending it is in the format of
            ``spark.sql.sources.default``, which is Parquet.

    Raises:
        ValueError: The text is neither a name nor a path.
    """
    if not isinstance(source, str):
        return source
    kind, file_format = source_of(source)
    if kind == "table":
        table: DataFrame = spark.table(source)
        return table
    reader = spark.read.format(file_format) if file_format else spark.read
    if file_format == "csv":
        reader = reader.option("header", True).option("inferSchema", True)
    frame: DataFrame = reader.load(paths.of_uri(source))
    return frame


def save_table(frame: DataFrame, name: str) -> str:
    """Write a table as Parquet, and keep it as the stage's artifact, whole or not at all.

    As models, it is written by the executors: those on other hosts have to see the store's folder.

    Args:
        frame: The table.
        name: The artifact's name.

    Returns:
        The URI of its folder; `read_table` reads it.

    Raises:
        NotSavedError: The files of the executors are not where the driver looks for them.
    """

    def write(folder: str) -> None:
        target = Path(folder)
        frame.write.mode("overwrite").parquet(paths.of_folder(target))
        check_parts(target)

    return stage().save_artifact(write, name=name)
