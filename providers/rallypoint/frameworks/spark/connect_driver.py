"""Inside the job: a temporary Spark Connect server, ``server SETTINGS``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark import daemon
from rallypoint.frameworks.spark.daemon import Daemon, DaemonLostError, DaemonStartError, Installation
from rallypoint.frameworks.spark.properties import with_secrets
from rallypoint.worker import context, process

if TYPE_CHECKING:
    from collections.abc import Mapping

_SUBMIT = "org.apache.spark.deploy.SparkSubmit"
_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
_NO_JAR = "spark-internal"  # what spark-submit calls code of Spark itself
_LOOPBACK = "127."

_stop = threading.Event()


def serve(settings: Mapping[str, Any]) -> None:
    """Run the server, say when it answers, and stay."""
    host, port, page = settings["host"], settings["port"], f"http://{settings['host']}:{settings['ui']}"
    folder = daemon.run_folder(os.environ.get(context.PROCESS, "server-0"))
    running = _start(settings, folder)
    _wait(f"{host}:{port}", settings["start_timeout"], running)
    if not _stop.is_set():
        remote = f"sc://{host}:{port}"
        process.writer().write("link", name="Spark UI", url=page)
        process.writer().write("ready", address={"remote": remote, "ui": page})
        print(f"ready: {remote}, UI {page}", flush=True)  # noqa: T201
    code = running.wait(_stop)
    if code is not None:
        msg = f"the Spark Connect server ended with exit code {code}; it printed:\n{running.last_lines()}"
        raise DaemonLostError(msg)
    running.stop()
    shutil.rmtree(folder / "local", ignore_errors=True)


def _start(settings: Mapping[str, Any], folder: Any) -> Daemon:
    installed = Installation(settings["spark_home"], settings["java_home"])
    host = settings["host"]
    secrets = {name: os.environ[variable] for name, variable in settings["secret_conf"].items()}
    own = {
        "spark.app.name": os.environ.get(context.ATTEMPT_ID, "Spark Connect"),
        "spark.ui.port": settings["ui"],
        "spark.port.maxRetries": "0",  # another port would make the address untrue
        "spark.connect.grpc.binding.address": host,
        "spark.connect.grpc.binding.port": settings["port"],
    }
    file = folder / "server.properties"
    daemon.write_properties(file, with_secrets({**settings["conf"], **settings["options"], **own}, secrets))
    local = folder / "local"
    local.mkdir(mode=0o700, exist_ok=True)
    env = {**installed.environment(), "SPARK_LOCAL_DIRS": os.environ.get("SPARK_LOCAL_DIRS") or str(local)}
    if host.startswith(_LOOPBACK):  # for its web UI and block transfers, which would listen everywhere
        env["SPARK_LOCAL_IP"] = host
    # Executors in Python run what the clients' functions were pickled by, which is this gang's Python.
    env.setdefault("PYSPARK_PYTHON", os.environ.get("PYSPARK_PYTHON") or sys.executable)
    argv = installed.command(_SUBMIT, "--properties-file", str(file), "--class", _SERVER, _NO_JAR)
    return Daemon(argv, env=env, log=f"spark-{os.environ.get(context.PROCESS, 'server-0')}")


def _wait(address: str, timeout: float, running: Daemon) -> None:
    deadline = time.monotonic() + timeout
    while not _stop.wait(daemon.LOOK) and not daemon.answers(address):
        if (code := running.ended()) is not None:
            msg = f"the server ended with exit code {code} while it was starting; it printed:\n{running.last_lines()}"
            raise DaemonStartError(msg)
        if time.monotonic() > deadline:
            msg = (
                f"nothing answered at {address} within {timeout:g} s: raise start_timeout, or see what the server "
                f"printed:\n{running.last_lines()}"
            )
            raise DaemonStartError(msg)


def main(argv: list[str]) -> int:
    """Run the server of the gang."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop.set())
    settings = json.loads(argv[1])
    return process.run(lambda: serve(settings), name=os.environ.get(context.PROCESS, "server-0"), primary=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
