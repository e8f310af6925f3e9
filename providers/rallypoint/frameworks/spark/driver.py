"""Inside the job: runs the user's code with a Spark session, whose driver is this process and a JVM below it."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rallypoint.frameworks.cluster.addresses import wait_for
from rallypoint.frameworks.spark import environment, properties
from rallypoint.frameworks.spark.causes import causes, find_lost_driver
from rallypoint.frameworks.spark.master_watch import watched
from rallypoint.frameworks.spark.progress import Application, ConnectProgress, Progress
from rallypoint.frameworks.spark.stopping import Stopping
from rallypoint.frameworks.spark.submit import run_jar
from rallypoint.worker import context, process
from rallypoint.worker.entry import run_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECT_PORT = 15002  # Spark Connect's default


def main(argv: list[str]) -> int:
    """Run ``SETTINGS KIND WHERE ARG…``, where the settings are the JSON of `SparkJob.settings`."""
    settings = json.loads(argv[0])
    name = os.environ.get(context.PROCESS, "driver-0")
    return process.run(lambda: _start(settings, argv[1:]), name=name, explain=causes)


def _start(settings: Mapping[str, Any], entry: list[str]) -> Any:
    with watched(settings):
        return _run(settings, entry)


def _run(settings: Mapping[str, Any], entry: list[str]) -> Any:
    if entry[0] == "jar":
        return run_jar(settings, entry)
    if "connect" in settings:
        return _with_server(settings, entry)
    path = environment.prepare(settings)
    stopping = Stopping(lambda: _stop(path))
    progress = Progress(_active, history=settings.get("history_server"), found=lambda: properties.remove(path))
    try:
        return run_entry(entry, inject={"spark": _session(path)} if entry[0] == "function" else None)
    except Exception as error:
        stopping.settle()
        lost = find_lost_driver(error)
        if lost is None:
            raise
        raise lost from error
    finally:
        stopping.settle()
        progress.finish()
        _stop(path)


def _session(path: str) -> Any:
    """Return the session that a function gets; everything that it needs is in the properties file."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    properties.remove(path)
    return spark


def _active() -> Application | None:
    """Return the application of this process's Spark context, whoever made it; None if there is none."""
    found = _context()
    return None if found is None else Application(str(found.applicationId), found.uiWebUrl)


def _context() -> Any:
    module = sys.modules.get("pyspark.core.context") or sys.modules.get("pyspark.context")
    return getattr(getattr(module, "SparkContext", None), "_active_spark_context", None)


def _stop(path: str) -> None:
    """Stop Spark, so that the cluster learns that the application is complete; a script may have forgotten to."""
    properties.remove(path)
    found = _context()
    if found is None:
        return
    try:
        found.stop()
    except Exception as error:  # noqa: BLE001 - the work is done, or has failed for another reason
        print(f"rallypoint: Spark was not stopped in good order: {error}", file=sys.stderr)  # noqa: T201 - likewise


def _with_server(settings: Mapping[str, Any], entry: list[str]) -> Any:
    """Run code with a session of a Spark Connect server, where the driver is."""
    url = str(settings["connect"])
    parts = urlsplit(url)
    timeout = settings["connect_timeout"]
    if not wait_for([f"{parts.hostname or ''}:{parts.port or _CONNECT_PORT}"], timeout):
        msg = (
            f"got the Spark Connect server {url}, at which nothing answered within {timeout:g} s from "
            f"{context.host()}: start it, or correct connect="
        )
        raise environment.ConnectUnreachableError(msg)
    os.environ["SPARK_REMOTE"] = url  # for a script's own `SparkSession.builder.getOrCreate()`
    from pyspark.sql import SparkSession

    conf = dict(settings.get("conf", {}))
    files = {kind: conf.pop(name, "") for name, kind in _ARTIFACTS.items()}
    builder = SparkSession.builder.remote(url)
    for name, text in {**conf, **environment.secrets(settings)}.items():
        builder = builder.config(name, text)
    spark: Any = builder.getOrCreate()
    stopping = Stopping(lambda: _interrupt(spark))
    spark.registerProgressHandler(ConnectProgress())
    for kind, words in files.items():
        if words:
            spark.addArtifacts(*words.split(","), **({kind: True} if kind else {}))
    try:
        return run_entry(entry, inject={"spark": spark})
    finally:
        stopping.settle()
        spark.stop()


_ARTIFACTS = {"spark.jars": "", "spark.submit.pyFiles": "pyfile", "spark.files": "file", "spark.archives": "archive"}


def _interrupt(spark: Any) -> None:
    """End the queries of this session on the server, which otherwise go on without their client."""
    spark.interruptAll()
    spark.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
