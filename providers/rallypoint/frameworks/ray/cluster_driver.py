"""Inside the job: one node of a temporary Ray cluster, ``head SETTINGS`` or ``worker SETTINGS``.

Each node is a ``ray start --block``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import urllib.request
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.cluster import nodes
from rallypoint.frameworks.cluster.daemon import STOP_SECONDS, Daemon, DaemonStartError
from rallypoint.frameworks.cluster.nodes import Chief
from rallypoint.worker import process
from rallypoint.worker.ports import EVERYWHERE, free_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rallypoint.frameworks.cluster.nodes import Node

STARTS = 3  # how often a head is started at the most: Ray's agents have 15 seconds, which a busy host may not give them


def head(node: Node) -> None:
    """Run the head, say when every node has joined, and stay."""
    ip, port = node.settings["ip"], node.settings["port"]
    # Short: sockets lie below it, and a socket's path has 107 bytes at the most.
    folder = tempfile.mkdtemp(prefix="rp-ray-")
    deadline = node.deadline()
    for number in range(1, STARTS + 1):
        dashboard, client = free_ports(2, EVERYWHERE)
        url = f"http://{ip}:{dashboard}"
        words = [
            "--head",
            f"--port={port}",
            "--include-dashboard=true",
            f"--dashboard-host={ip}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={folder}",
        ]
        running = _start(node, words)
        try:
            _wait_for_nodes(node, url, running, deadline)
            break
        except DaemonStartError as error:
            if number == STARTS or running.ended() is None:
                raise
            print(f"{error}\nstart {number + 1} of {STARTS}", flush=True)  # noqa: T201 - the stage's log
    if not node.stopping:
        process.writer().write("link", name="Ray dashboard", url=url)
        workers = len(node.settings["nodes"]) - 1
        address = {"address": f"{ip}:{port}", "dashboard_url": url, "client": f"ray://{ip}:{client}"}
        process.writer().write("ready", address={**address, "workers": workers})
        print(f"ready: a head and {workers} workers at {ip}:{port}, dashboard {url}", flush=True)  # noqa: T201
    node.hold(running, "the cluster's head", logs=f"{folder}/session_latest/logs")
    shutil.rmtree(folder, ignore_errors=True)


def worker(node: Node) -> None:
    """Run a worker node, anew if it dies, and stay."""
    settings = node.settings
    address, url = settings["address"], settings.get("dashboard_url")

    def started(running: Daemon) -> None:
        if not url or not node.first:  # the head says it, or another worker
            return
        _wait_for_nodes(node, url, running, node.deadline())
        if not node.stopping:
            known = {name: settings[name] for name in ("address", "dashboard_url", "client") if settings[name]}
            process.writer().write("ready", address={**known, "workers": len(settings["nodes"])})

    chief = Chief("head", (address,))
    node.wait_for_chief(chief)
    node.keep(lambda: _start(node, [f"--address={address}"]), chief, started=started)


def _start(node: Node, words: Sequence[str]) -> Daemon:
    agent, agent_grpc, runtime_env, metrics = free_ports(4, EVERYWHERE)
    argv = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--disable-usage-stats",
        "--log-style=record",
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={runtime_env}",
        f"--metrics-export-port={metrics}",
        # The system's choice: Ray's own range is the same for every cluster of a host.
        "--min-worker-port=0",
        "--max-worker-port=0",
        *words,
        *_offer(node),
    ]
    drain = node.settings.get("drain", 0.0)  # seconds for running tasks when it is asked to end
    return Daemon(
        argv,
        log=f"ray-{node.name}",
        env={"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{drain:g}"},
        without=("RAY_ADDRESS",),
        called="ray start",
        stop_seconds=STOP_SECONDS + drain,
    )


def _offer(node: Node) -> list[str]:
    settings = node.settings
    words = [
        f"--node-ip-address={settings['ip']}",
        f"--node-name={settings['attempt']}-{node.name}",
        f"--num-cpus={settings['cpus']}",
        f"--num-gpus={settings['gpus']}",
        f"--resources={json.dumps(settings.get('resources') or {})}",
    ]
    if settings.get("memory"):
        words.append(f"--memory={settings['memory']}")
    if settings.get("object_store_memory"):
        words.append(f"--object-store-memory={settings['object_store_memory']}")
    if settings.get("labels"):
        words.append(f"--labels={','.join(f'{name}={value}' for name, value in sorted(settings['labels'].items()))}")
    return words


def _wait_for_nodes(node: Node, url: str, running: Daemon, deadline: float) -> None:
    prefix = f"{node.settings['attempt']}-"
    node.wait_for_members(node.settings["nodes"], lambda: _joined(url, prefix), running, deadline=deadline)


def _joined(url: str, prefix: str) -> dict[str, dict[str, Any]]:
    """Return this gang's nodes that the dashboard says are alive, by name; none while it does not answer."""
    request = urllib.request.Request(f"{url}/nodes?view=summary")  # noqa: S310 - http(s), checked with the job
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - likewise
            found = [each["raylet"] for each in json.load(answer)["data"]["summary"]]
        alive = {each["nodeName"]: each for each in found if each.get("state") == "ALIVE"}
        return {name.removeprefix(prefix): each for name, each in alive.items() if name.startswith(prefix)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def main(argv: Sequence[str]) -> int:
    """Run one node of the gang."""
    return nodes.run(argv, {"head": head, "worker": worker}, member="node")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
