"""Inside the job: one process of a temporary cluster's gang, and what it does whichever framework's the cluster is.

The *chief* is the one without which there is no cluster (Ray's head, Spark's master). The others join it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rallypoint.frameworks.cluster.addresses import answers, wait_for
from rallypoint.frameworks.cluster.daemon import LOOK, DaemonLostError, DaemonStartError
from rallypoint.worker import context, process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rallypoint.frameworks.cluster.daemon import Daemon

ORPHANED = 15.0  # seconds that a worker waits to be stopped with its chief, which is then what failed
_LONGEST_PAUSE = 30.0  # seconds before a restart
_FIRST_WORKER = "worker-0"

T = TypeVar("T")


@dataclass(frozen=True)
class Chief:
    """The process that the others join.

    Args:
        name: What the framework calls it, such as ``head``.
        addresses: Where it may answer, each ``host:port``; several where others stand by.
    """

    name: str
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        """Return its name with its address, for messages."""
        return f"{self.name} at {','.join(self.addresses)}"

    def answers(self) -> bool:
        """Return whether it does, at one of its addresses."""
        return any(answers(each) for each in self.addresses)


class Node:
    """This process.

    Args:
        settings: What its job tells it. Used here are ``start_timeout``, in seconds, and of a worker ``max_restarts``.
        name: Its name in the gang, such as ``worker-0``.
        member: What the framework calls one that joins, such as ``worker``.
    """

    def __init__(self, settings: Mapping[str, Any], name: str, member: str) -> None:
        self.settings = settings
        self.name = name
        self.stop = threading.Event()  # set when this process is asked to end
        self._member = member

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to end."""
        return self.stop.is_set()

    @property
    def first(self) -> bool:
        """Whether this is the worker that speaks for all of a gang that has no chief of its own."""
        return self.name == _FIRST_WORKER

    def deadline(self) -> float:
        """Return until when the gang has to be ready if it starts now, as `time.monotonic` tells it."""
        return time.monotonic() + float(self.settings["start_timeout"])

    def wait_for_chief(self, chief: Chief) -> None:
        """Return when the chief answers, or this process is asked to end.

        Raises:
            DaemonStartError: It does not in time.
        """
        seconds = self.settings["start_timeout"]
        if not wait_for(chief.addresses, seconds, stop=self.stop) and not self.stopping:
            where = ",".join(chief.addresses)
            msg = f"nothing answered at the {chief.name}'s address {where} within {seconds:g} s"
            raise DaemonStartError(msg)

    def wait_for_members(
        self, names: Sequence[str], joined: Callable[[], Mapping[str, T]], daemon: Daemon, *, deadline: float
    ) -> list[T]:
        """Return what is known of each member when all have joined; nothing if this process is asked to end before.

        Args:
            names: Those of the gang that have to join, by their names in it.
            joined: Returns who has, with what is known of each.
            daemon: This process's own, without which none of it comes to be.
            deadline: As `deadline` returned it.

        Raises:
            DaemonStartError: The daemon has ended, or not all have joined in time.
        """
        while not self.stop.wait(LOOK):
            if (code := daemon.ended()) is not None:
                msg = (
                    f"{daemon.called} ended with exit code {code} while the cluster was starting; it printed:\n"
                    f"{daemon.last_lines()}"
                )
                raise DaemonStartError(msg)
            known = joined()
            missing = sorted(set(names) - known.keys())
            if not missing:
                return [known[name] for name in names]
            if time.monotonic() > deadline:
                msg = (
                    f"{len(names) - len(missing)} of {len(names)} {self._member}s joined within "
                    f"{self.settings['start_timeout']:g} s, without {', '.join(missing)}: look at their logs, or raise "
                    "start_timeout"
                )
                raise DaemonStartError(msg)
        return []

    def hold(self, daemon: Daemon, what: str, *, logs: str | None = None) -> None:
        """Wait until this process is asked to end, and end the daemon then.

        Args:
            daemon: The daemon without which there is no service.
            what: What to call the service's part in the error.
            logs: A folder with what it wrote beside what it printed.

        Raises:
            DaemonLostError: It has ended before.
        """
        code = daemon.wait(self.stop)
        if code is not None:
            where = f"what it wrote is in {logs}, and " if logs else ""
            msg = f"{what} ended with exit code {code}; {where}{daemon.called} printed:\n{daemon.last_lines()}"
            raise DaemonLostError(msg)
        daemon.stop()

    def keep(
        self, start: Callable[[], Daemon], chief: Chief, *, started: Callable[[Daemon], None] | None = None
    ) -> None:
        """Keep a worker's daemon running until this process is asked to end: it is started anew when it has ended.

        Args:
            start: Starts it.
            chief: Whom it joins.
            started: Called once, after the first start.

        Raises:
            DaemonLostError: The chief is gone, or the daemon has ended too often.
        """
        most = self.settings["max_restarts"]
        restarts = 0
        while not self.stopping:
            daemon = start()
            if restarts == 0 and started is not None:
                started(daemon)
            code = daemon.wait(self.stop)
            if code is None:
                daemon.stop()
                return
            if not chief.answers() and not self.stop.wait(ORPHANED):
                msg = f"the cluster's {chief} is gone"
                raise DaemonLostError(msg)
            restarts += 1
            if restarts > most:
                msg = (
                    f"this {self._member} ended with exit code {code}, after {restarts - 1} restarts (max_restarts); "
                    f"{daemon.called} printed:\n{daemon.last_lines()}"
                )
                raise DaemonLostError(msg)
            print(f"the {self._member} ended with exit code {code}: restart {restarts} of {most}", flush=True)  # noqa: T201 - the stage's log
            self.stop.wait(min(2.0**restarts, _LONGEST_PAUSE))


def run(argv: Sequence[str], roles: Mapping[str, Callable[[Node], None]], *, member: str) -> int:
    """Run one process of the gang, and return its exit code. SIGTERM and SIGINT ask it to end.

    Args:
        argv: Its role, and its settings as JSON.
        roles: What each role does.
        member: What the framework calls one that joins, such as ``worker``.
    """
    role, settings = argv
    node = Node(json.loads(settings), os.environ.get(context.PROCESS, f"{role}-0"), member)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop.set())
    return process.run(lambda: roles[role](node), name=node.name, primary=False)
