"""Inside the job: one daemon of a temporary standalone cluster, ``master SETTINGS`` or ``worker SETTINGS``.

Each daemon is a JVM below a `rallypoint.worker.reaper`, which leaves nothing of it behind (its executors, and the
drivers of cluster mode), also when this process is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark import daemon
from rallypoint.frameworks.spark.daemon import Daemon, DaemonLostError, DaemonStartError, Installation
from rallypoint.frameworks.spark.properties import with_secrets
from rallypoint.worker import context, process

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ORPHANED = 15.0  # seconds that a worker waits to be stopped with its master, which is then what failed
_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
_LOOPBACK = "127."
# No proxy of the environment stands between the hosts of a gang.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_stop = threading.Event()


def master(settings: Mapping[str, Any]) -> None:
    """Run the master, say when every worker has joined, and stay."""
    host, port, page = settings["host"], settings["port"], f"http://{settings['host']}:{settings['ui']}"
    own = {"spark.port.maxRetries": "0", "spark.master.rest.enabled": "true" if settings["rest"] else "false"}
    if settings["rest"]:
        own |= {"spark.master.rest.host": host, "spark.master.rest.port": settings["rest"]}
    words = ("--host", host, "--port", port, "--webui-port", settings["ui"])
    running = _start(_MASTER, words, own, settings, host)
    joined = _wait_for_workers(settings, page, running)
    if not _stop.is_set():
        address = {"master": f"spark://{host}:{port}", "ui": page}
        if settings["rest"]:
            address["rest"] = f"http://{host}:{settings['rest']}"
        process.writer().write("link", name="Spark master", url=page)
        process.writer().write("ready", address={**address, **_size(joined)})
        print(f"ready: {address['master']} with {len(joined)} workers, UI {page}", flush=True)  # noqa: T201
    code = running.wait(_stop)
    if code is not None:
        msg = f"the cluster's master ended with exit code {code}; it printed:\n{running.last_lines()}"
        raise DaemonLostError(msg)
    running.stop()


def worker(settings: Mapping[str, Any]) -> None:
    """Run a worker, anew if it dies, and stay."""
    masters = settings["address"].removeprefix("spark://").split(",")
    _wait_for_master(masters, settings["start_timeout"])
    host = daemon.own_address(masters[0])
    folder = daemon.run_folder(_name())
    own = {"spark.worker.idPattern": f"{settings['attempt']}-{_name()}-%s-%s-%d"}
    words = (
        *("--host", host, "--port", "0", "--webui-port", "0", "--cores", str(settings["cores"])),
        *("--memory", f"{settings['memory']}m", "--work-dir", str(folder / "work"), settings["address"]),
    )
    restarts = 0
    while not _stop.is_set():
        running = _start(_WORKER, words, own, settings, host)
        if restarts == 0 and _name() == "worker-0" and settings.get("cluster"):
            joined = _wait_for_workers(settings, settings["cluster"]["ui"], running)
            if not _stop.is_set():
                process.writer().write("ready", address={**settings["cluster"], **_size(joined)})
        code = running.wait(_stop)
        if code is None:
            running.stop()
            break
        if not any(daemon.answers(each) for each in masters) and not _stop.wait(ORPHANED):
            msg = f"the cluster's master at {settings['address']} is gone"
            raise DaemonLostError(msg)
        restarts += 1
        if restarts > settings["max_restarts"]:
            msg = (
                f"this worker ended with exit code {code}, after {restarts - 1} restarts (max_restarts); it printed:\n"
                f"{running.last_lines()}"
            )
            raise DaemonLostError(msg)
        print(f"the worker ended with exit code {code}: restart {restarts} of {settings['max_restarts']}", flush=True)  # noqa: T201
        _stop.wait(min(2.0**restarts, 30.0))


def _start(kind: str, words: tuple[str, ...], own: Mapping[str, str], settings: Mapping[str, Any], host: str) -> Daemon:
    installed = Installation(settings["spark_home"], settings["java_home"])
    folder = daemon.run_folder(_name())
    file = folder / "daemon.properties"
    secrets = {name: os.environ[variable] for name, variable in settings["secret_conf"].items()}
    daemon.write_properties(file, with_secrets({**settings["conf"], **own}, secrets))
    env = {
        **installed.environment(),
        "SPARK_DAEMON_MEMORY": f"{settings['daemon_memory']}m",
        "SPARK_LOCAL_DIRS": os.environ.get("SPARK_LOCAL_DIRS") or str(_made(folder / "local")),
        "SPARK_PUBLIC_DNS": os.environ.get("SPARK_PUBLIC_DNS") or host,
    }
    if host.startswith(_LOOPBACK):  # for its web UI and block transfers, which would listen everywhere
        env["SPARK_LOCAL_IP"] = host
    argv = installed.command(kind, "--properties-file", str(file), *words)
    return Daemon(argv, env=env, log=f"spark-{_name()}")


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _name() -> str:
    return os.environ.get(context.PROCESS, "daemon-0")


def _wait_for_master(masters: list[str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not any(daemon.answers(each) for each in masters) and not _stop.wait(daemon.LOOK):
        if time.monotonic() > deadline:
            msg = f"nothing answered at the master's address {','.join(masters)} within {timeout:g} s"
            raise DaemonStartError(msg)


def _wait_for_workers(settings: Mapping[str, Any], page: str, running: Daemon) -> list[dict[str, Any]]:
    """Return this gang's workers when each has joined; none if this process is asked to stop before."""
    wanted = {f"{settings['attempt']}-{name}" for name in settings["wanted"]}
    deadline = time.monotonic() + settings["start_timeout"]
    while not _stop.wait(daemon.LOOK):
        if (code := running.ended()) is not None:
            msg = f"it ended with exit code {code} while the cluster was starting; it printed:\n{running.last_lines()}"
            raise DaemonStartError(msg)
        joined = _joined(page, wanted)
        missing = sorted(wanted - joined.keys())
        if not missing:
            return list(joined.values())
        if time.monotonic() > deadline:
            names = ", ".join(name.removeprefix(f"{settings['attempt']}-") for name in missing)
            msg = (
                f"{len(joined)} of {len(wanted)} workers joined within {settings['start_timeout']:g} s, without "
                f"{names}: look at their logs, or raise start_timeout"
            )
            raise DaemonStartError(msg)
    return []


def _joined(page: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Return the workers of this gang that the master says are alive, by name; none while it does not answer."""
    try:
        with _OPENER.open(f"{page}/json/", timeout=5) as answer:
            workers = [each for each in json.load(answer)["workers"] if each["state"] == "ALIVE"]
        return {name: each for each in workers for name in wanted if str(each["id"]).startswith(f"{name}-")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _size(workers: list[dict[str, Any]]) -> dict[str, int]:
    return {"workers": len(workers), "cores": sum(int(each.get("cores", 0)) for each in workers)}


def _run(role: str, settings: Mapping[str, Any]) -> None:
    try:
        {"master": master, "worker": worker}[role](settings)
    finally:
        shutil.rmtree(daemon.run_folder(_name()) / "local", ignore_errors=True)


def main(argv: list[str]) -> int:
    """Run one daemon of the gang."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop.set())
    settings = json.loads(argv[1])
    name = os.environ.get(context.PROCESS, f"{argv[0]}-0")
    return process.run(lambda: _run(argv[0], settings), name=name, primary=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
