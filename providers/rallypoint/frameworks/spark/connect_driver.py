"""Inside the job: a temporary Spark Connect server, ``server SETTINGS``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from rallypoint.frameworks.cluster import nodes
from rallypoint.frameworks.cluster.addresses import answers
from rallypoint.frameworks.cluster.daemon import LOOK, DaemonStartError
from rallypoint.frameworks.spark import daemon
from rallypoint.worker import context, process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rallypoint.frameworks.cluster.daemon import Daemon
    from rallypoint.frameworks.cluster.nodes import Node

_SUBMIT = "org.apache.spark.deploy.SparkSubmit"
_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
_NO_JAR = "spark-internal"  # what spark-submit calls code of Spark itself


def serve(node: Node) -> None:
    """Run the server, say when it answers, and stay."""
    settings = node.settings
    host, port, page = settings["host"], settings["port"], f"http://{settings['host']}:{settings['ui']}"
    own = {
        **settings["options"],
        "spark.app.name": os.environ.get(context.ATTEMPT_ID, "Spark Connect"),
        "spark.ui.port": settings["ui"],
        "spark.port.maxRetries": "0",  # another port would make the address untrue
        "spark.connect.grpc.binding.address": host,
        "spark.connect.grpc.binding.port": port,
    }
    # Executors in Python run what the clients' functions were pickled by, which is this gang's Python.
    env = {"PYSPARK_PYTHON": os.environ.get("PYSPARK_PYTHON") or sys.executable}
    with daemon.run_folder(node.name) as folder:
        running = daemon.start(node, folder, host, _SUBMIT, "--class", _SERVER, _NO_JAR, conf=own, env=env)
        _wait(node, f"{host}:{port}", running)
        if not node.stopping:
            remote = f"sc://{host}:{port}"
            process.writer().write("link", name="Spark UI", url=page)
            process.writer().write("ready", address={"remote": remote, "ui": page})
            print(f"ready: {remote}, UI {page}", flush=True)  # noqa: T201
        node.hold(running, "the Spark Connect server")


def _wait(node: Node, address: str, running: Daemon) -> None:
    deadline = node.deadline()
    while not node.stop.wait(LOOK) and not answers(address):
        if (code := running.ended()) is not None:
            msg = f"the server ended with exit code {code} while it was starting; it printed:\n{running.last_lines()}"
            raise DaemonStartError(msg)
        if time.monotonic() > deadline:
            msg = (
                f"nothing answered at {address} within {node.settings['start_timeout']:g} s: raise start_timeout, or "
                f"see what the server printed:\n{running.last_lines()}"
            )
            raise DaemonStartError(msg)


def main(argv: Sequence[str]) -> int:
    """Run the server of the gang."""
    return nodes.run(argv, {"server": serve}, member="server")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
