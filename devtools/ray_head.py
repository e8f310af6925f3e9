"""A private Ray cluster on this machine, as a context manager: a head, and nodes that come and go.

Each node is a real ``ray start`` process, so that a node can be added while a job runs, and killed as machines die.
Every process of a node carries a mark in its environment (a driver of a job inherits it, too): that is how all of them
are found again after any crash. Run as a script, this module is the guard that ends a cluster whose owner died.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from airflow_processes import free_ports, is_alive, tail, wait_gone

MARK = "RALLYPOINT_RAY_NODE"  # "<cluster>/<node>", in the environment of every process of a node
_START_SECONDS = 120
_STOP_SECONDS = 15
_KILL_SECONDS = 10
_TRIES = 3  # a port that was free may be taken before Ray binds it
_OBJECT_STORE = 200 << 20  # bytes
_QUIET = {
    "PYTHONUNBUFFERED": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayNode:
    """One node of a `RayHead`'s cluster.

    Attributes:
        name: How this module calls it, such as ``node-1``.
        node_id: Ray's id of the node.
    """

    def __init__(self, cluster: "RayHead", name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.node_id = ""
        self._cluster = cluster
        self._process = process

    @property
    def alive(self) -> bool:
        """Whether the node's own process runs."""
        return self._process.poll() is None

    @property
    def processes(self) -> list[psutil.Process]:
        """The living processes of the node, with those that jobs started there."""
        return marked(f"{self._cluster.id}/{self.name}")

    def kill(self) -> None:
        """Kill everything of the node at once, as a machine dies."""
        kill_all(f"{self._cluster.id}/{self.name}")
        self._process.wait()

    def stop(self) -> None:
        """End the node as ``ray stop`` does: SIGTERM, and SIGKILL for what is left."""
        seen = self.processes
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        wait_gone(seen, 1)  # workers end by themselves once their raylet is gone
        kill_all(f"{self._cluster.id}/{self.name}", seen=seen)


class RayHead:
    """A Ray cluster on 127.0.0.1, with a dashboard, that lasts as long as the ``with`` block.

    Args:
        num_cpus: CPUs that the head offers, as Ray counts them.
        resources: Custom resources that the head offers.
        env: More environment variables for every process of the cluster, such as ``RAY_AUTH_MODE``.

    Attributes:
        id: What marks the cluster's processes.
        address: ``host:port`` of the GCS, as ``ray.init(address=…)`` takes it.
        dashboard_url: The address of the dashboard and of the Jobs API.
        client_url: The address of the Ray client server, ``ray://…``.
        folder: Ray's own files: sessions, logs, sockets.
    """

    def __init__(
        self,
        *,
        num_cpus: float = 4,
        resources: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.address = self.dashboard_url = self.client_url = ""
        self._offer = _offer(num_cpus, resources or {})
        self._env = dict(env or {})
        self.folder = Path()
        self._nodes: list[RayNode] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Short, because Ray's sockets lie below it and a socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="rp-ray-", dir="/tmp"))
        self._guard = subprocess.Popen(
            [sys.executable, __file__, "--guard", self.id, "--folder", str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def head(self) -> RayNode:
        """The head node; it can be killed and started anew with `start`."""
        return self._nodes[0]

    def start(self, *, same_ports: bool = False) -> None:
        """Start the head, again after it was killed: then it remembers nothing.

        Args:
            same_ports: Whether a new head takes the addresses of the one before.
        """
        for left in range(_TRIES - 1, -1, -1):
            if not same_ports:
                gcs, dashboard, client = free_ports(3)
                self.address, self.dashboard_url = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
                self.client_url = f"ray://127.0.0.1:{client}"
            arguments = [
                "--head",
                f"--port={self.address.rpartition(':')[2]}",
                "--include-dashboard=true",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard_url.rpartition(':')[2]}",
                f"--ray-client-server-port={self.client_url.rpartition(':')[2]}",
                f"--temp-dir={self.folder}",
                *self._offer,
            ]
            try:
                node = self._start_node(arguments, known=set())
            except RuntimeError:
                if not left:
                    raise
            else:
                self._nodes.insert(0, node)
                return

    def add_node(
        self, num_cpus: float = 2, *, resources: Mapping[str, float] | None = None, labels: str | None = None
    ) -> RayNode:
        """Start a further node of the cluster on this machine, and return it once the head knows it.

        Args:
            num_cpus: CPUs that it offers.
            resources: Custom resources that it offers.
            labels: Labels of the node, as ``ray start --labels`` takes them.
        """
        arguments = [f"--address={self.address}", *_offer(num_cpus, resources or {})]
        if labels:
            arguments.append(f"--labels={labels}")
        node = self._start_node(arguments, known=set(self.node_ids()))
        self._nodes.append(node)
        return node

    def node_ids(self) -> list[str]:
        """Return Ray's ids of the nodes that live as the head knows it."""
        found = self.get("/nodes?view=summary")["data"]["summary"]
        return [node["raylet"]["nodeId"] for node in found if node["raylet"].get("state") == "ALIVE"]

    def get(self, path: str, *, timeout: float = 10) -> Any:
        """Return the JSON that the dashboard answers at a path, asked with the token of the cluster if it has one."""
        request = urllib.request.Request(f"{self.dashboard_url}{path}")  # noqa: S310 - an http address made above
        if token := self._env.get("RAY_AUTH_TOKEN"):
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - likewise
            return json.load(answer)

    def stop(self) -> None:
        """End every process of the cluster and remove its files.

        Raises:
            TimeoutError: A process does not die of SIGKILL.
        """
        for node in reversed(self._nodes):
            node.stop()
        self._nodes.clear()
        kill_all(self.id)
        if self._guard and self._guard.stdin:
            self._guard.stdin.close()
            self._guard.wait(_STOP_SECONDS)
            self._guard = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def left(self) -> list[psutil.Process]:
        """Return the living processes of the cluster; none after `stop`."""
        return marked(self.id)

    def _start_node(self, arguments: Sequence[str], *, known: set[str]) -> RayNode:
        name = f"node-{uuid.uuid4().hex[:6]}"
        agent, agent_grpc, runtime_env, metrics = free_ports(4)
        log = self.folder / f"{name}.log"
        ray = Path(sys.executable).with_name("ray")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    str(ray),
                    "start",
                    "--block",
                    "--node-ip-address=127.0.0.1",
                    f"--object-store-memory={_OBJECT_STORE}",
                    f"--dashboard-agent-listen-port={agent}",
                    f"--dashboard-agent-grpc-port={agent_grpc}",
                    f"--runtime-env-agent-port={runtime_env}",
                    f"--metrics-export-port={metrics}",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    "--disable-usage-stats",
                    *arguments,
                ],
                env=self._environment() | {MARK: f"{self.id}/{name}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = RayNode(self, name, process)
        deadline = time.monotonic() + _START_SECONDS
        while not (new := self._new_node(known)):
            if process.poll() is not None or time.monotonic() > deadline:
                node.kill()
                raise RuntimeError(f"a Ray node did not start, its last lines:\n{tail(log, 40)}")
            time.sleep(0.1)
        node.node_id = new
        return node

    def _new_node(self, known: set[str]) -> str | None:
        """Return the id of a node that the head did not know; None while there is none or the head does not answer."""
        with contextlib.suppress(urllib.error.URLError, OSError, ValueError, KeyError):
            self.get("/api/version", timeout=2)
            return next((node for node in self.node_ids() if node not in known), None)
        return None

    def _environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        here = str(Path(sys.executable).parent)
        return clean | {"PATH": f"{here}{os.pathsep}{clean.get('PATH', os.defpath)}"} | _QUIET | self._env


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes of a cluster, or of one node.

    Ray's workers overwrite their environment with their title, so these are found as children of the marked ones.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            value = process.environ().get(MARK, "")
            if value == mark or value.startswith(f"{mark}/"):
                found |= {process, *process.children(recursive=True)}
    return [process for process in found if process.pid != os.getpid() and is_alive(process)]


def kill_all(mark: str, *, seen: Iterable[psutil.Process] = ()) -> None:
    """Kill every process of a cluster, or of one node, and wait for its end; also what was `seen` of it before.

    Raises:
        TimeoutError: A process does not die of SIGKILL.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    found = set(seen)
    while left := {process for process in found | set(marked(mark)) if is_alive(process)}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{left} still live {_KILL_SECONDS} s after SIGKILL, expected none of {mark}")
        found |= left
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(list(left), 1)


def _offer(num_cpus: float, resources: Mapping[str, float]) -> list[str]:
    return [f"--num-cpus={num_cpus:g}", "--num-gpus=0", f"--resources={json.dumps(dict(resources))}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="End a Ray cluster when the process that started it dies.")
    parser.add_argument("--guard", required=True, metavar="ID")
    parser.add_argument("--folder", required=True, type=Path)
    given = parser.parse_args()
    sys.stdin.buffer.read()  # until the owner closes it, or dies
    kill_all(given.guard)
    shutil.rmtree(given.folder, ignore_errors=True)
