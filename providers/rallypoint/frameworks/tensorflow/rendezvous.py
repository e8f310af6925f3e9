"""How the processes of a gang find each other before TensorFlow connects them, and how their end is agreed on.

TensorFlow wants every address in advance and waits without a word for a process that never comes. Here each process
takes a free port of its own host and tells the first one, which answers all when the last has come, or says who is
missing. The connection stays: over it the first process says that the work is over, and its end is noticed.

JSON lines over TCP::

    member   {"attempt": …, "name": "worker-1", "host": …, "address": "10.0.0.5:40123"}
    leader   {"members": {"worker-1": {"host": …, "address": …}, …}}   or {"missing": […]}, {"refused": …}
    member   {"ready": true}          its server, if it is one, takes requests
    leader   {"go": true}             or {"missing": […]}
    member   {"done": true}           its part of the work is done
    leader   {"over": true}           all of those whose work counts are done

Like TensorFlow's own servers this is neither encrypted nor authenticated: the network between the processes has to be
trusted. The attempt's id keeps out what is left of an older attempt. Standard library only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.tensorflow.cluster import Member

if TYPE_CHECKING:
    from collections.abc import Container, Sequence, Sized

_SLACK = 10.0  # seconds that a member waits longer than the leader, whose answer says more
_LATE = 2.0  # times the timeout that a member waits for an answer: the leader may have started later
_MAX_LINE = 1 << 20  # bytes
_PAUSE = 0.1  # seconds between two tries to reach the leader


class JoinTimeoutError(TimeoutError):
    """A process of the gang did not come in time."""


class LeaderLostError(ConnectionError):
    """The process that leads the gang ended without saying that the work is over."""


class Leader:
    """Waits for every process of the gang, in threads of the first one.

    Args:
        endpoint: ``host:port`` to listen at.
        attempt: The attempt's id.
        members: The names of all processes.
        deciding: The names of those whose work counts: when they are done, all is over.
        timeout: Seconds in which the others have to come once the first of the members, this process, has. So a host on
            which everything starts slowly is no failure.
    """

    def __init__(
        self, endpoint: str, *, attempt: str, members: Sequence[str], deciding: Sequence[str], timeout: float
    ) -> None:
        self._host = _split(endpoint)[0]
        self._attempt, self._members, self._deciding = attempt, tuple(members), frozenset(deciding)
        self._timeout = timeout
        self._join_by: float | None = None
        self._joined: dict[str, dict[str, str]] = {}
        self._ready: set[str] = set()
        self._done: set[str] = set()
        self._changed = threading.Condition()
        self._listener = _listen(endpoint)
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, name="rendezvous", daemon=True).start()

    def close(self) -> None:
        """Listen no longer, and return when everybody has been told that it is over, which it has to be."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        deadline = time.monotonic() + _SLACK
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="rendezvous-member", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        line = _Line(connection)
        with connection, contextlib.suppress(OSError, ValueError):
            name = self._welcome(line)
            if name is None:
                return
            all_joined = self._all(self._joined)
            line.send({"members": self._reached()} if all_joined else self._missing(self._joined))
            if line.receive() != {"ready": True}:
                return
            with self._changed:
                self._ready.add(name)
                self._changed.notify_all()
            line.send({"go": True} if self._all(self._ready, longer=self._timeout) else self._missing(self._ready))
            threading.Thread(target=self._listen_for_end, args=(name, line), daemon=True).start()
            with self._changed:
                self._changed.wait_for(lambda: self._deciding <= self._done)
            line.send({"over": True})
            line.wait_for_end()

    def _welcome(self, line: _Line) -> str | None:
        """Take in who has come; return the name, or None for one that does not belong here."""
        said = line.receive() or {}
        name = str(said.get("name"))
        with self._changed:
            if said.get("attempt") != self._attempt or name not in self._members:
                refused = f"this is the rendezvous of {self._attempt}, with {', '.join(self._members)}"
            elif name in self._joined:
                refused = f"there is a {name} already"
            else:
                self._joined[name] = {key: str(said[key]) for key in ("host", "address")}
                if name == self._members[0]:
                    self._join_by = time.monotonic() + self._timeout
                self._changed.notify_all()
                return name
        line.send({"refused": refused})
        return None

    def _all(self, those: Sized, *, longer: float = 0.0) -> bool:
        """Wait until those are all; return whether they are in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._join_by is not None)
            left = max(0.0, (self._join_by or 0.0) + longer - time.monotonic())
            return self._changed.wait_for(lambda: len(those) == len(self._members), left)

    def _reached(self) -> dict[str, dict[str, str]]:
        """Return where all are, in the gang's order: a place in TensorFlow's list of addresses says who is there."""
        return as_all_reach({name: self._joined[name] for name in self._members}, self._host)

    def _missing(self, those: Container[str]) -> dict[str, list[str]]:
        return {"missing": [name for name in self._members if name not in those]}

    def _listen_for_end(self, name: str, line: _Line) -> None:
        said = None
        with contextlib.suppress(OSError, ValueError):
            said = line.receive()
        with self._changed:
            if said == {"done": True}:
                self._done.add(name)
                self._changed.notify_all()
            elif not self._deciding <= self._done:
                text = f"rallypoint: {name} ({self._joined[name]['address']}) is lost"
                print(text, file=sys.stderr, flush=True)  # noqa: T201 - the leader's log


class Membership:
    """This process's place at the rendezvous.

    Args:
        endpoint: ``host:port`` of the leader.
        attempt: The attempt's id.
        name: This process's name.
        leader: The leader's name.
        timeout: Seconds in which the leader has to be there.
    """

    def __init__(self, endpoint: str, *, attempt: str, name: str, leader: str, timeout: float) -> None:
        self._endpoint, self._attempt, self._name, self._leader = endpoint, attempt, name, leader
        self._timeout = timeout
        self.over = False
        self._port: socket.socket | None = None
        self._line: _Line | None = None

    def join(self) -> dict[str, Member]:
        """Return where all processes are, when all have come.

        This process's own port stays reserved until `release`: TensorFlow, which is told to share ports
        (``TF_GRPC_REUSE_PORT``), can take it and nobody else.

        Raises:
            JoinTimeoutError: A process did not come; the message says which.
        """
        connection = self._connect()
        self._line = _Line(connection)
        self._port = _reserved_port()
        here = connection.getsockname()[0]
        address = f"[{here}]:{_number(self._port)}" if ":" in here else f"{here}:{_number(self._port)}"
        hello = {"attempt": self._attempt, "name": self._name, "host": socket.gethostname(), "address": address}
        members = self._ask(hello, "join")["members"]
        return {name: Member(address=each["address"], host=each["host"]) for name, each in members.items()}

    def ready(self) -> None:
        """Return when all processes are ready to be connected.

        Raises:
            JoinTimeoutError: One is not; the message says which.
        """
        self._ask({"ready": True}, "get ready")

    def release(self) -> None:
        """Give up the reserved port, which TensorFlow has taken by now."""
        if self._port is not None:
            self._port.close()

    def done(self) -> None:
        """Say that this process's part is done."""
        self._connected.send({"done": True})

    def wait_over(self) -> None:
        """Return when all is over.

        Raises:
            LeaderLostError: The leader ended without saying so.
        """
        said = None
        with contextlib.suppress(OSError):
            said = self._connected.receive()
        if said != {"over": True}:
            msg = f"{self._leader} ended before the work was over: its own failure says why"
            raise LeaderLostError(msg)
        self.over = True

    def close(self) -> None:
        """Leave, which is how the leader knows that its last word has arrived."""
        if self._line is not None:
            self._line.close()

    @property
    def _connected(self) -> _Line:
        if self._line is None:
            msg = f"{self._name} asked something of the rendezvous before it joined"
            raise RuntimeError(msg)
        return self._line

    def _connect(self) -> socket.socket:
        host, port = _split(self._endpoint)
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection = _connected_to_another(host, port)
            except OSError as error:
                if time.monotonic() > deadline:
                    msg = (
                        f"{self._leader} did not open the rendezvous at {self._endpoint} within {self._timeout:g} s "
                        f"({error}): see its log; raise join_timeout= if it only starts slowly"
                    )
                    raise JoinTimeoutError(msg) from error
                time.sleep(_PAUSE)
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return connection

    def _ask(self, question: dict[str, Any], what: str) -> dict[str, Any]:
        line = self._connected
        try:
            line.send(question)
            answer = line.receive(_LATE * self._timeout + _SLACK)
        except TimeoutError as error:
            msg = (
                f"{self._leader} did not answer at the rendezvous {self._endpoint} within "
                f"{_LATE * self._timeout + _SLACK:g} s: see its log, and whether it is stopped"
            )
            raise JoinTimeoutError(msg) from error
        except ConnectionError:
            answer = None
        if answer is None:
            msg = f"{self._leader} ended at the rendezvous: its own failure says why"
            raise LeaderLostError(msg)
        if "missing" in answer:  # none, if the last one came in the moment of the answer
            missing = answer["missing"] or ["a process"]
            msg = (
                f"{', '.join(missing)} did not {what} within {self._timeout:g} s: see the log of each, and whether its "
                f"host is up and reaches {self._endpoint}; raise join_timeout= if it only starts slowly"
            )
            raise JoinTimeoutError(msg)
        if refused := answer.get("refused"):
            msg = f"{self._name} was refused at {self._endpoint}: {refused}"
            raise RuntimeError(msg)
        return answer


class _Line:
    """A connection that carries JSON lines."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(None)
        self._file = connection.makefile("rb")

    def send(self, value: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next object; None if the other side is gone.

        Raises:
            TimeoutError: Nothing came in time.
        """
        self._connection.settimeout(timeout)
        text = self._file.readline(_MAX_LINE)
        value = json.loads(text) if text.endswith(b"\n") else None
        return value if isinstance(value, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def wait_for_end(self) -> None:
        """Return when the other side has closed the connection, so that what was sent has arrived."""
        self._connection.shutdown(socket.SHUT_WR)
        self._connection.settimeout(_SLACK)
        while self._connection.recv(1 << 10):
            pass


def _connected_to_another(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=_PAUSE + 1)
    if connection.getsockname() == connection.getpeername():
        # Where nobody listens yet, a connection on one host may get the very port it goes to, and meet itself.
        connection.close()
        raise ConnectionRefusedError
    return connection


def as_all_reach(members: dict[str, dict[str, str]], leaders_host: str) -> dict[str, dict[str, str]]:
    """Return the members with addresses that hold on every host.

    Those on the leader's own host may have come over its loopback interface. Where others come from elsewhere, their
    address is the name by which these have reached the leader.

    Args:
        members: ``host`` and ``address`` by name.
        leaders_host: The host of the rendezvous, as all know it.
    """
    if all(_is_loopback(_split(each["address"])[0]) for each in members.values()):
        return members
    here = f"[{leaders_host}]" if ":" in leaders_host else leaders_host
    return {
        name: {**each, "address": f"{here}:{_split(each['address'])[1]}"}
        if _is_loopback(_split(each["address"])[0])
        else each
        for name, each in members.items()
    }


def interface(host: str, address: str | None) -> str:
    """Return where to listen as a host that the others know by a name: one address, or all interfaces as ``""``.

    Args:
        host: The name or the address.
        address: What it is on this host; None if it is nothing here.
    """
    if address is None:
        return ""
    # Many hosts know their own name as one of the loopback interface, where nobody else comes.
    return "" if _is_loopback(address) and not _is_loopback(host) else host


def _listen(endpoint: str) -> socket.socket:
    host, port = _split(endpoint)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((interface(host, str(found[0][4][0])), port), backlog=1024)
    except OSError:
        # The others know this host by a name or an address that it does not have itself, such as a service's.
        return socket.create_server((interface(host, None), port), backlog=1024)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _reserved_port() -> socket.socket:
    """Return a socket that holds a free port, on all interfaces as TensorFlow's servers do."""
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port.bind(("", 0))
    return port


def _number(port: socket.socket) -> int:
    return int(port.getsockname()[1])


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)
