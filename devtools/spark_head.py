"""A temporary standalone cluster on this machine, started as a stage, and what it says of itself and its processes."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil

from rallypoint.frameworks.spark.cluster import SparkCluster
from rallypoint.stages.attempt import Request
from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rallypoint.stages.attempt import Started
    from rallypoint.stages.engine import Engine

INTERVAL = timedelta(seconds=0.2)
# What makes a cluster small: its own processes, and what it offers.
SMALL: dict[str, Any] = {
    "cores_per_worker": 2,
    "memory_per_worker": "1536MiB",
    "daemon_memory": "256MiB",
    "start_timeout": 240.0,
}
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    """A cluster that runs as a stage.

    Attributes:
        engine: Its stage's engine.
        started: Its attempt.
        address: Its address object.
    """

    engine: Engine
    started: Started
    address: dict[str, Any]

    @property
    def master(self) -> str:
        """The master's URL."""
        return str(self.address["master"])

    def state(self) -> dict[str, Any]:
        """Return what the master says of itself, its workers and applications."""
        return state_of(self.address)

    def workers(self) -> list[str]:
        """Return the ids of the living workers."""
        return sorted(each["id"] for each in self.state()["workers"] if each["state"] == "ALIVE")

    def applications(self) -> list[str]:
        """Return the ids of the running applications."""
        return [each["id"] for each in self.state()["activeapps"]]

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Return the living processes of the cluster and of what runs on it, whose command line holds a word."""
        handle = self.started.attempt.handle
        run_dir = str(handle.details["run_dir"]) if handle else ""
        return [each for each in processes_of(run_dir) if word in " ".join(command_line(each))]


def state_of(address: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a master says of itself, its workers and applications."""
    with urllib.request.urlopen(f"{address['ui']}/json/", timeout=30) as answer:  # noqa: S310 - a cluster's own
        state: dict[str, Any] = json.load(answer)
    return state


def processes_of(run_dir: str) -> list[psutil.Process]:
    """Return what lives of an attempt: its processes, and all below them."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(context.RUN_DIR) == run_dir:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for process in found if lives(process)]


def command_line(process: psutil.Process) -> list[str]:
    """Return a process's words; none once it is gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def lives(process: psutil.Process) -> bool:
    """Return whether a process runs, and has not merely not been buried yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def ready(engine: Engine, started: Started) -> dict[str, Any]:
    """Return the address object of a service.

    Raises:
        RuntimeError: It ended before; the message says how.
    """
    address = None
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        address = update.ready
        if update.outcome is not None:
            raise RuntimeError(update.outcome.failure.render() if update.outcome.failure else str(update.outcome))
    if address is None:
        raise RuntimeError(f"{started.attempt.record.id} is not ready, and has not ended")
    return dict(address)


async def start_cluster(engine: Engine, **options: Any) -> Running:
    """Start a cluster and return when it is ready."""
    started = await engine.start(SparkCluster(**{**SMALL, **options}), Request(owner="try-1"))
    return Running(engine, started, await ready(engine, started))


@contextmanager
def spark_cluster(engine: Engine, **options: Any) -> Iterator[Running]:
    """Run a cluster for as long as the ``with`` block lasts, and see that nothing of it outlives that.

    Args:
        engine: The engine of its stage.
        **options: Those of `rallypoint.SparkCluster`.

    Raises:
        RuntimeError: Processes of the cluster outlived it; they have been killed.
    """
    cluster = asyncio.run(start_cluster(engine, **options))
    try:
        yield cluster
    finally:
        lived = cluster.processes()
        number = cluster.started.attempt.record.number
        asyncio.run(engine.cancel(number, owner=None, why="nobody needs it any more"))
        psutil.wait_procs(lived, timeout=_STOP_SECONDS)
        left = [process for process in {*lived, *cluster.processes()} if lives(process)]
        for process in left:
            process.kill()
    if left:
        raise RuntimeError(f"processes of the Spark cluster outlived it: {left}")
