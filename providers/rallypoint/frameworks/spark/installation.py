"""Inside the job: Spark and Java on this host. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from rallypoint.frameworks.spark.environment import FileMissingError
from rallypoint.frameworks.spark.java import require_java, require_version


class Installation:
    """Spark and Java on this host.

    Args:
        spark_home: Spark's folder; None for ``SPARK_HOME``, or the one of this Python's ``pyspark`` package.
        java_home: Java's folder; None for ``JAVA_HOME``, or the ``java`` on the path.

    Raises:
        FileMissingError: Spark is not here.
        JavaMissingError: Java is not here, or too old.
    """

    def __init__(self, spark_home: str | None = None, java_home: str | None = None) -> None:
        self.home = spark_home or os.environ.get("SPARK_HOME") or _package()
        self.java_home = java_home or os.environ.get("JAVA_HOME")
        if not Path(self.home, "bin", "spark-class").is_file() or not Path(self.home, "jars").is_dir():
            msg = (
                f"got {self.home} as Spark's folder, which has no bin/spark-class and jars: correct spark_home=, or "
                f"install the package pyspark (pyspark-client has none of it) for {sys.executable}"
            )
            raise FileMissingError(msg)
        require_version(require_java(self.java_home), self.home)

    def environment(self) -> dict[str, str]:
        """Return the variables that Spark's own scripts want."""
        found = {"SPARK_HOME": self.home}
        return found if self.java_home is None else {**found, "JAVA_HOME": self.java_home}

    def command(self, *words: str) -> list[str]:
        """Return the command line of ``spark-class``."""
        return [str(Path(self.home, "bin", "spark-class")), *words]


def _package() -> str:
    try:
        spec = importlib.util.find_spec("pyspark")
    except ValueError:
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        msg = f"there is no Spark for {sys.executable}: install the package pyspark, or give spark_home="
        raise FileMissingError(msg)
    return folders[0]
