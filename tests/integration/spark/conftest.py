"""One real standalone cluster for all of these tests; what a test kills for good, it starts itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import spark_head

from rallypoint.launchers.local import LocalLauncher
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store

# An application whose end is decided from outside: it counts, says so, and then waits for a file if it is given one.
JAR = """
import java.nio.file.*;
import java.util.*;
import org.apache.spark.sql.SparkSession;

public class Counting {
    public static void main(String[] args) throws Exception {
        SparkSession spark = SparkSession.builder().getOrCreate();
        long rows = spark.range(1000).repartition(4).count();
        Files.writeString(Paths.get(args[0]), rows + " " + System.getenv("GREETING") + "\\n",
            StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        while (args.length > 1 && !Files.exists(Paths.get(args[1]))) Thread.sleep(100);
        if (args.length > 2) throw new IllegalStateException(args[2]);
        spark.stop();
    }
}
"""


@pytest.fixture(scope="session")
def spark_places(tmp_path_factory):
    """Returns the engine of a stage, by its name, in a store of the session."""
    root = tmp_path_factory.mktemp("spark")

    def engine(name: str) -> Engine:
        return Engine(Store.open(root / "store"), StageKey(("spark", "r1", name)), LocalLauncher(root / "runs"))

    return engine


@pytest.fixture(scope="package")
def spark_cluster(spark_places):
    """A standalone master and two workers on this machine, which the tests share: see `spark_head.Running`."""
    # Nobody waits for it between two tests; if the session is killed, it ends an hour later.
    with spark_head.spark_cluster(spark_places("cluster"), workers=2, lease=3600) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def counting_jar(tmp_path_factory) -> Path:
    """A jar with the class ``Counting``: its arguments are a file to write, one to wait for, and an error to raise."""
    import pyspark

    folder = tmp_path_factory.mktemp("jar")
    (folder / "Counting.java").write_text(JAR)
    jars = Path(pyspark.__file__).parent / "jars"
    subprocess.run(["javac", "-cp", f"{jars}/*", "Counting.java"], cwd=folder, check=True)
    subprocess.run(["jar", "cf", "counting.jar", "Counting.class"], cwd=folder, check=True)
    return folder / "counting.jar"
