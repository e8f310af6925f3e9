"""Inside the job: one daemon of a temporary standalone cluster, ``master SETTINGS`` or ``worker SETTINGS``.

Each daemon is a JVM; its executors, and the drivers of cluster mode, end with it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.cluster import nodes
from rallypoint.frameworks.cluster.nodes import Chief
from rallypoint.frameworks.spark import daemon
from rallypoint.worker import process
from rallypoint.worker.network import address_towards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.frameworks.cluster.daemon import Daemon
    from rallypoint.frameworks.cluster.nodes import Node

_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
# No proxy of the environment stands between the hosts of a gang.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def master(node: Node) -> None:
    """Run the master, say when every worker has joined, and stay."""
    settings = node.settings
    host, port, page = settings["host"], settings["port"], f"http://{settings['host']}:{settings['ui']}"
    own = {"spark.port.maxRetries": "0", "spark.master.rest.enabled": "true" if settings["rest"] else "false"}
    if settings["rest"]:
        own |= {"spark.master.rest.host": host, "spark.master.rest.port": settings["rest"]}
    words = ("--host", host, "--port", port, "--webui-port", settings["ui"])
    with daemon.run_folder(node.name) as folder:
        running = daemon.start(node, folder, host, _MASTER, *words, conf=own, env=_environment(node, host))
        joined = _wait_for_workers(node, page, running)
        if not node.stopping:
            address = {"master": f"spark://{host}:{port}", "ui": page}
            if settings["rest"]:
                address["rest"] = f"http://{host}:{settings['rest']}"
            process.writer().write("link", name="Spark master", url=page)
            process.writer().write("ready", address={**address, **_size(joined)})
            print(f"ready: {address['master']} with {len(joined)} workers, UI {page}", flush=True)  # noqa: T201
        node.hold(running, "the cluster's master")


def worker(node: Node) -> None:
    """Run a worker, anew if it dies, and stay."""
    settings, cluster = node.settings, node.settings.get("cluster")
    chief = Chief("master", tuple(settings["address"].removeprefix("spark://").split(",")))
    node.wait_for_chief(chief)
    host = _own_address(chief)
    own = {"spark.worker.idPattern": f"{settings['attempt']}-{node.name}-%s-%s-%d"}

    def started(running: Daemon) -> None:
        if not cluster or not node.first:  # the master says it, or another worker
            return
        joined = _wait_for_workers(node, cluster["ui"], running)
        if not node.stopping:
            process.writer().write("ready", address={**cluster, **_size(joined)})

    with daemon.run_folder(node.name) as folder:
        words = (
            *("--host", host, "--port", "0", "--webui-port", "0", "--cores", str(settings["cores"])),
            *("--memory", f"{settings['memory']}m", "--work-dir", str(folder / "work"), settings["address"]),
        )
        env = _environment(node, host)
        node.keep(lambda: daemon.start(node, folder, host, _WORKER, *words, conf=own, env=env), chief, started=started)


def _environment(node: Node, host: str) -> dict[str, str]:
    return {
        "SPARK_DAEMON_MEMORY": f"{node.settings['daemon_memory']}m",
        "SPARK_PUBLIC_DNS": os.environ.get("SPARK_PUBLIC_DNS") or host,
    }


def _own_address(chief: Chief) -> str:
    """Return the address by which the others of a cluster reach this host: that of the interface towards the master."""
    host, _, _ = chief.addresses[0].rpartition(":")
    try:
        return address_towards(host)
    except OSError:
        return host


def _wait_for_workers(node: Node, page: str, running: Daemon) -> list[dict[str, Any]]:
    wanted, attempt = node.settings["wanted"], node.settings["attempt"]
    return node.wait_for_members(
        wanted,
        lambda: _joined(page, {name: f"{attempt}-{name}-" for name in wanted}),
        running,
        deadline=node.deadline(),
    )


def _joined(page: str, prefixes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the workers of this gang that the master says are alive, by name; none while it does not answer.

    Args:
        page: The master's UI.
        prefixes: What the ids of a worker's daemons begin with, by its name.
    """
    try:
        with _OPENER.open(f"{page}/json/", timeout=5) as answer:
            workers = [each for each in json.load(answer)["workers"] if each["state"] == "ALIVE"]
        return {name: each for each in workers for name, it in prefixes.items() if str(each["id"]).startswith(it)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _size(workers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {"workers": len(workers), "cores": sum(int(each.get("cores", 0)) for each in workers)}


def main(argv: Sequence[str]) -> int:
    """Run one daemon of the gang."""
    return nodes.run(argv, {"master": master, "worker": worker}, member="worker")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
