"""Inside the job: a service of Spark as a daemon, with its properties in a file that nobody else can read."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.frameworks.cluster.daemon import Daemon
from rallypoint.frameworks.spark import properties
from rallypoint.frameworks.spark.installation import Installation
from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rallypoint.frameworks.cluster.nodes import Node

_LOOPBACK = "127."


@contextmanager
def run_folder(name: str) -> Iterator[Path]:
    """Have a folder of this user alone for what a daemon writes, below the attempt's.

    In it is ``local`` for Spark's temporary files, which is removed at the end. The rest stays.
    """
    base = os.environ.get(context.RUN_DIR)
    folder = Path(base, "spark", name) if base else Path.cwd() / f"spark-{name}"
    local = folder / "local"
    for each in (folder, local):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(local, ignore_errors=True)


def start(  # noqa: PLR0913 - each names one thing that differs between the services
    node: Node,
    folder: Path,
    host: str,
    main_class: str,
    *words: str,
    conf: Mapping[str, str],
    env: Mapping[str, str],
) -> Daemon:
    """Start a service of Spark.

    Args:
        node: This process; its settings name the job's properties (``conf``, ``secret_conf``) and where Spark and Java
            are (``spark_home``, ``java_home``).
        folder: As `run_folder` made it.
        host: The address by which others reach this host.
        main_class: What ``spark-class`` runs.
        *words: Its arguments.
        conf: Properties that the service chooses itself.
        env: Variables that it gets beside this process's own.
    """
    settings = node.settings
    installed = Installation(settings["spark_home"], settings["java_home"])
    secrets = {name: os.environ[variable] for name, variable in settings["secret_conf"].items()}
    file = folder / "daemon.properties"
    write_properties(file, properties.with_secrets({**settings["conf"], **conf}, secrets))
    shared = installed.environment()
    shared["SPARK_LOCAL_DIRS"] = os.environ.get("SPARK_LOCAL_DIRS") or str(folder / "local")
    if host.startswith(_LOOPBACK):  # for its web UI and block transfers, which would listen everywhere
        shared["SPARK_LOCAL_IP"] = host
    argv = installed.command(main_class, "--properties-file", str(file), *words)
    return Daemon(argv, log=f"spark-{node.name}", env={**shared, **env})


def write_properties(path: Path, values: Mapping[str, str]) -> None:
    """Write a file of Java properties that nobody else can read."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "w", encoding="ascii") as opened:
        opened.write(properties.dump(values))
