"""The Java that Spark runs on: that it is on this host, and new enough for this Spark."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from rallypoint.worker import context
from rallypoint.worker.entry import EntryLoadError

# What each Spark needs at least; older ones than these are not known here, and not checked.
_LEAST = {4: 17}
_LEAST_JAVA = f"Java {_LEAST[4]} or later"
_VERSION = re.compile(r'^JAVA_VERSION="(?:1\.)?(\d+)', re.MULTILINE)
_CORE = re.compile(r"^spark-core_[\d.]+-(\d+)\.")


class JavaMissingError(EntryLoadError):
    """There is no Java here that Spark could run on."""


def require_java(home: str | None = None) -> Path:
    """Return the ``java`` that Spark's scripts will start.

    Args:
        home: Java's folder; None for ``JAVA_HOME``, or else the ``java`` on the path.

    Raises:
        JavaMissingError: There is none.
    """
    named = home or os.environ.get("JAVA_HOME")
    found = str(Path(named, "bin", "java")) if named else shutil.which("java")
    if named and not os.access(str(found), os.X_OK):
        msg = f"got JAVA_HOME={named}, in which there is no bin/java on {context.host()}, expected {_LEAST_JAVA}"
        raise JavaMissingError(f"{msg}: correct java_home= or the variable")
    if found is None:
        msg = (
            f"got no Java on {context.host()} (JAVA_HOME is not set and no java is on the path), expected "
            f"{_LEAST_JAVA}, which Spark runs on: install it, name it with java_home=, or use a Spark Connect server, "
            "whose clients need none, with connect="
        )
        raise JavaMissingError(msg)
    return Path(found)


def require_version(java: Path, spark_home: str) -> None:
    """Raise if a Java is too old for a Spark, which would end with an `UnsupportedClassVersionError` at best.

    Args:
        java: The ``java``; without the file ``release`` that comes with it, its version is not known and not checked.
        spark_home: The Spark.

    Raises:
        JavaMissingError: It is.
    """
    release = java.resolve().parent.parent / "release"
    version = _VERSION.search(release.read_text(encoding="utf-8", errors="replace")) if release.is_file() else None
    cores = (_CORE.match(path.name) for path in Path(spark_home, "jars").glob("spark-core_*.jar"))
    spark = next((int(core[1]) for core in cores if core), 0)
    least = _LEAST.get(spark, 0)
    if version and int(version[1]) < least:
        msg = (
            f"got Java {version[1]} ({java} on {context.host()}), expected Java {least} or later, which Spark {spark} "
            "needs: name one with java_home= or JAVA_HOME"
        )
        raise JavaMissingError(msg)
