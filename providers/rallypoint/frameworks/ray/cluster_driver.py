"""Inside the job: one node of a temporary Ray cluster, ``head SETTINGS`` or ``worker SETTINGS``.

Each node is a ``ray start --block`` below a `rallypoint.worker.reaper`, which leaves nothing of it behind, also when
this process is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.worker import context, process, reaper
from rallypoint.worker.ports import EVERYWHERE, free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOK = 0.25  # seconds between two looks at a node that is starting
STOP_SECONDS = 8.0  # until a node that was asked to end is killed; Ray's own patience is shorter
ORPHANED = 15.0  # seconds that a worker waits to be stopped with its head, which is then what failed
STARTS = 3  # how often a head is started at the most: Ray's agents have 15 seconds, which a busy host may not give them
_LAST_LINES = 20
# What the processes of a job on this cluster would take for their own stage. The marks by which an attempt's processes
# are found again stay.
_STAGES_OWN = (context.STAGE_FILE, context.EVENTS_URI, context.PROCESS, context.LOGS_DIR, context.LEASE_URI)

_stop = threading.Event()


class NodeStartError(RuntimeError):
    """A Ray node did not start or did not join."""


class NodeEndedError(NodeStartError):
    """A Ray node ended before the nodes of its gang had joined."""


class NodeLostError(RuntimeError):
    """A Ray node has ended although nobody asked it to."""


class Node:
    """A ``ray start --block`` on this host.

    Args:
        arguments: Its command line's further words.
        drain: Seconds that it may take for running tasks when it is asked to end.
    """

    def __init__(self, arguments: list[str], *, drain: float = 0.0) -> None:
        self._drain = drain
        agent, agent_grpc, runtime_env, metrics = free_ports(4, EVERYWHERE)
        environment = {name: value for name, value in os.environ.items() if name not in _STAGES_OWN}
        environment.pop("RAY_ADDRESS", None)
        environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = f"{drain:g}"
        # Beside this process's own log: what it tells a person (run `ray stop`) does not fit here.
        self._log = Path(os.environ[context.LOGS_DIR], f"ray-{os.environ[context.PROCESS]}.log")
        log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
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
            *arguments,
        ]
        self._process = subprocess.Popen(
            reaper.command(argv), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        os.close(log)

    def last_lines(self) -> str:
        """Return the end of what it printed."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])

    def ended(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._process.poll()

    def wait(self) -> int | None:
        """Wait until it has ended, and return its exit code; None if this process was asked to stop before."""
        while not _stop.wait(LOOK):
            if (code := self._process.poll()) is not None:
                return code
        return None

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS + self._drain)
        except subprocess.TimeoutExpired:
            self._process.send_signal(reaper.KILL)
            self._process.wait()


def head(settings: Mapping[str, Any]) -> None:
    """Run the head, say when every node has joined, and stay."""
    ip, port = settings["ip"], settings["port"]
    # Short: sockets lie below it, and a socket's path has 107 bytes at the most.
    folder = tempfile.mkdtemp(prefix="rp-ray-")
    deadline = time.monotonic() + settings["start_timeout"]
    for number in range(1, STARTS + 1):
        dashboard, client = free_ports(2, EVERYWHERE)
        url = f"http://{ip}:{dashboard}"
        node = Node(
            [
                "--head",
                f"--port={port}",
                "--include-dashboard=true",
                f"--dashboard-host={ip}",
                f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}",
                f"--temp-dir={folder}",
                *_offer(settings),
            ]
        )
        try:
            _wait_for_nodes(settings, url, node, deadline)
            break
        except NodeEndedError as error:
            if number == STARTS:
                raise
            print(f"{error}\nstart {number + 1} of {STARTS}", flush=True)  # noqa: T201 - the stage's log
    if not _stop.is_set():
        process.writer().write("link", name="Ray dashboard", url=url)
        workers = len(settings["nodes"]) - 1
        address = {"address": f"{ip}:{port}", "dashboard_url": url, "client": f"ray://{ip}:{client}"}
        process.writer().write("ready", address={**address, "workers": workers})
        print(f"ready: a head and {workers} workers at {ip}:{port}, dashboard {url}", flush=True)  # noqa: T201
    code = node.wait()
    if code is not None:
        msg = (
            f"the cluster's head ended with exit code {code}: what Ray wrote is in {folder}/session_latest/logs, and "
            f"ray start printed:\n{node.last_lines()}"
        )
        raise NodeLostError(msg)
    node.stop()
    shutil.rmtree(folder, ignore_errors=True)


def worker(settings: Mapping[str, Any]) -> None:
    """Run a worker node, anew if it dies, and stay."""
    address, drain = settings["address"], settings.get("drain", 0.0)
    _wait_for_head(address, settings["start_timeout"])
    restarts = 0
    first = os.environ.get(context.PROCESS) == "worker-0"
    while not _stop.is_set():
        node = Node([f"--address={address}", *_offer(settings)], drain=drain)
        if restarts == 0 and first and settings.get("dashboard_url"):
            deadline = time.monotonic() + settings["start_timeout"]
            _wait_for_nodes(settings, settings["dashboard_url"], node, deadline)
            if not _stop.is_set():
                known = ("address", "dashboard_url", "client")
                said = {name: settings[name] for name in known if settings[name]}
                process.writer().write("ready", address={**said, "workers": len(settings["nodes"])})
        code = node.wait()
        if code is None:
            node.stop()
            return
        if not _answers(address) and not _stop.wait(ORPHANED):
            msg = f"the cluster's head at {address} is gone"
            raise NodeLostError(msg)
        restarts += 1
        if restarts > settings["max_restarts"]:
            msg = (
                f"this node ended with exit code {code}, after {restarts - 1} restarts (max_restarts); ray start "
                f"printed:\n{node.last_lines()}"
            )
            raise NodeLostError(msg)
        print(f"the node ended with exit code {code}: restart {restarts} of {settings['max_restarts']}", flush=True)  # noqa: T201
        _stop.wait(min(2.0**restarts, 30.0))


def _offer(settings: Mapping[str, Any]) -> list[str]:
    words = [
        f"--node-ip-address={settings['ip']}",
        f"--node-name={_node_name(settings, os.environ.get(context.PROCESS, 'node'))}",
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


def _node_name(settings: Mapping[str, Any], name: str) -> str:
    return f"{settings['attempt']}-{name}"


def _wait_for_head(address: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _answers(address) and not _stop.wait(LOOK):
        if time.monotonic() > deadline:
            msg = f"nothing answered at the head's address {address} within {timeout:g} s"
            raise NodeStartError(msg)


def _wait_for_nodes(settings: Mapping[str, Any], url: str, node: Node, deadline: float) -> None:
    """Return when every node of this gang has joined, or this process is asked to stop."""
    wanted = {_node_name(settings, name) for name in settings["nodes"]}
    while not _stop.wait(LOOK):
        if (code := node.ended()) is not None:
            msg = f"ray start ended with exit code {code}; it printed:\n{node.last_lines()}"
            raise NodeEndedError(msg)
        missing = sorted(wanted - _joined(url))
        if not missing:
            return
        if time.monotonic() > deadline:
            names = ", ".join(name.removeprefix(f"{settings['attempt']}-") for name in missing)
            msg = (
                f"{len(wanted) - len(missing)} of {len(wanted)} nodes joined within {settings['start_timeout']:g} s, "
                f"without {names}: look at their logs, or raise start_timeout"
            )
            raise NodeStartError(msg)


def _joined(url: str) -> set[str]:
    """Return the names of the nodes that the dashboard says are alive; none while it does not answer."""
    request = urllib.request.Request(f"{url}/nodes?view=summary")  # noqa: S310 - http(s), checked with the job
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - likewise
            found = json.load(answer)["data"]["summary"]
        return {node["raylet"]["nodeName"] for node in found if node["raylet"].get("state") == "ALIVE"}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def main(argv: list[str]) -> int:
    """Run one node of the gang."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop.set())
    run = {"head": head, "worker": worker}[argv[0]]
    settings = json.loads(argv[1])
    name = os.environ.get(context.PROCESS, f"{argv[0]}-0")
    return process.run(lambda: run(settings), name=name, primary=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
