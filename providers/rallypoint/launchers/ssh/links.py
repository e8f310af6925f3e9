"""One multiplexed SSH connection per host and event loop, with the launcher's agent at its other end.

Every stage of a triggerer shares it: a status is one small frame there and one back. A host that does not answer is
tried again in the background, ever more rarely; who asks meanwhile is told at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.ssh.bootstrap import agent_zip, command, digest
from rallypoint.launchers.ssh.frames import HEAD, MARK, frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    import asyncssh

    from rallypoint.launchers.ssh.address import Access, Host

ANSWER = 5.0  # seconds that a status may take before the host counts as silent for this look
LONG = 90.0  # seconds that anything else may take
KEEPALIVE = 5.0  # seconds; after three without an answer the connection is given up
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0  # seconds between two tries to connect
_LONGEST_WORDS = 64 << 10  # bytes that a shell's start-up files may print before the agent


class UnreachableError(LaunchError):
    """A host does not answer."""


class _DroppedError(UnreachableError):
    """The connection ended before the answer came."""


@dataclass(frozen=True)
class Endpoint:
    """A host as one launcher reaches it; what tells its connections from others.

    Args:
        host: The host.
        root: The folder of the run folders there.
        python: The interpreter there.
        known_hosts: The file of the hosts' keys.
        access: Credentials.
        ambient: Whether keys and configuration of this process's user may be used.
    """

    host: Host
    root: str
    python: str
    known_hosts: str | None
    access: Access
    ambient: bool = True

    @property
    def key(self) -> str:
        """What tells it from others; no secret can be read from it."""
        whole = (self, self.access.password, self.access.private_key, self.access.passphrase)
        return hashlib.sha256(repr(whole).encode()).hexdigest()


class Link:
    """The connection to one host from one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.peer = ""  # the address at the other end
        self.about: dict[str, Any] = {}
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._numbers = itertools.count(1)
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._pause, self._next_try = _FIRST_PAUSE, 0.0
        self._why = ""
        self._suspect = False  # an answer did not come in time, and the connection has not said that it ended

    @property
    def name(self) -> str:
        """The host's name."""
        return self.endpoint.host.name

    @property
    def address(self) -> str:
        """The host's address as the other hosts reach it."""
        return self.endpoint.host.address or self.peer or self.endpoint.host.connect or self.name

    async def call(
        self, op: str, data: bytes = b"", *, within: float = LONG, patient: bool = True, **values: Any
    ) -> tuple[dict[str, Any], bytes]:
        """Ask the agent.

        Args:
            op: A method of `rallypoint.launchers.ssh.agent.Agent`.
            data: Bytes for it.
            within: Seconds that the answer may take, a connection included.
            patient: Whether to try to connect now, even if that has just failed.
            values: Arguments for it.

        Raises:
            UnreachableError: The host did not answer.
            PreflightError: The agent says that it cannot be done, now or later.
            LaunchError: The agent says that it could not be done.
        """
        try:
            async with asyncio.timeout(within):
                if patient and self._suspect:
                    await self._drop("it was silent")  # what is patient does not wait for a connection that is dead
                try:
                    found, more = await self._ask(op, data, values, patient=patient)
                except _DroppedError:
                    if not patient:
                        raise
                    found, more = await self._ask(op, data, values, patient=True)  # anew: a request may come twice
        except TimeoutError:
            self._suspect = self._process is not None
            raise self._unreachable(self._why or f"no answer within {within:g} s") from None
        except OSError as error:
            raise self._unreachable(str(error)) from error
        self._suspect = False
        if "failed" in found:
            kind = PreflightError if found["fatal"] else LaunchError
            raise kind(f"{self.name}: {found['failed']}")
        return found, more

    async def _ask(
        self, op: str, data: bytes, values: Mapping[str, Any], *, patient: bool
    ) -> tuple[dict[str, Any], bytes]:
        await self._open(patient=patient)
        process = self._process
        if process is None:
            raise self._unreachable(self._why)
        number = next(self._numbers)
        answer: asyncio.Future[tuple[dict[str, Any], bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            process.stdin.write(frame({**values, "op": op, "id": number}, data))
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """End the connection; what runs on the host goes on."""
        for task in (self._opening, self._reading):
            if task is not None and not task.done():
                task.cancel()
        connection, self._connection, self._process = self._connection, None, None
        if connection is not None:
            connection.close()
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(2):
                    await connection.wait_closed()

    async def _open(self, *, patient: bool) -> None:
        """Return when there is a connection, or the try that runs has failed."""
        if self._process is not None:
            return
        if self._opening is None or self._opening.done():
            if not patient and time.monotonic() < self._next_try:
                raise self._unreachable(self._why)
            self._opening = asyncio.create_task(self._connect())
        await asyncio.shield(self._opening)

    async def _connect(self) -> None:
        import asyncssh  # noqa: PLC0415 - heavy, and an extra

        try:
            async with asyncio.timeout(self.endpoint.access.connect_timeout * 2):
                await self._connect_once()
        except (OSError, asyncssh.Error, TimeoutError, asyncio.IncompleteReadError, LaunchError, ValueError) as error:
            await self._drop(_words(error, self.endpoint))
            self._next_try = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            if isinstance(error, PreflightError):
                raise
        else:
            self._pause, self._why = _FIRST_PAUSE, ""

    async def _connect_once(self) -> None:
        connection = self._connection = await _connected(self.endpoint)
        self.peer = str((connection.get_extra_info("peername") or ("",))[0])
        process = await connection.create_process(command(self.endpoint.python), encoding=None)
        said = b""
        while MARK not in said:
            part = await process.stdout.read(1 << 12)
            said += part
            if not part or len(said) > _LONGEST_WORDS:
                error = (await process.stderr.read(2_000)).decode(errors="replace").strip()
                words = (error or said.decode(errors="replace")).strip()[-500:]
                msg = f"{self.name}: {self.endpoint.python} could not be started there: {words or 'it said nothing'}"
                raise LaunchError(msg)
        reader = _Reader(process.stdout, said.partition(MARK)[2])
        hello = {"root": self.endpoint.root, "digest": digest(), "env": dict(self.endpoint.host.env)}
        process.stdin.write(frame(hello))
        while True:
            found, _ = await reader.frame()
            if "failed" in found:
                msg = f"{self.name}: {found['failed']}"
                raise PreflightError(msg)
            if found.get("send"):
                process.stdin.write(frame({}, agent_zip()))
                continue
            break
        self._reading = asyncio.create_task(self._read(process, reader))
        self._process = process

    async def _read(self, process: asyncssh.SSHClientProcess[bytes], reader: _Reader) -> None:
        """Hand the agent's answers to those who wait for them, until the connection ends."""
        import asyncssh  # noqa: PLC0415 - heavy, and an extra

        why = "the connection ended"
        try:
            while True:
                found, data = await reader.frame()
                waiter = self._waiting.get(found.pop("id"))
                if waiter is not None and not waiter.done():
                    waiter.set_result((found, data))
        except asyncio.IncompleteReadError:
            words = process.stderr.get_extra_info("exit_status")
            why = f"the agent ended ({words})" if words else why
        except (OSError, asyncssh.Error, ValueError) as error:
            why = str(error) or why
        finally:
            if self._process is process:
                await self._drop(why)

    async def _drop(self, why: str) -> None:
        self._why, self._process, self._suspect = why, None, False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(_DroppedError(str(self._unreachable(why))))

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(f"{self.name} does not answer" + (f": {why}" if why else ""))


class _Reader:
    """Reads frames from a stream of which the first bytes are here already."""

    def __init__(self, stream: asyncssh.SSHReader[bytes], first: bytes) -> None:
        self._stream, self._first = stream, first

    async def frame(self) -> tuple[dict[str, Any], bytes]:
        text, data = HEAD.unpack(await self._read(HEAD.size))
        body = await self._read(text + data)
        return json.loads(body[:text]), body[text:]

    async def _read(self, size: int) -> bytes:
        have, self._first = self._first[:size], self._first[size:]
        return have + (await self._stream.readexactly(size - len(have)) if size > len(have) else b"")


async def _connected(endpoint: Endpoint) -> asyncssh.SSHClientConnection:
    try:
        import asyncssh  # noqa: PLC0415 - heavy, and an extra
    except ImportError:
        msg = "an ssh:// launcher needs asyncssh: install rallypoint[ssh] where the orchestrator runs"
        raise PreflightError(msg) from None
    chatter = logging.getLogger("asyncssh")
    if chatter.level == logging.NOTSET:  # at INFO, a task's level, it tells of every connection and its key exchange
        chatter.setLevel(logging.WARNING)
    host, access = endpoint.host, endpoint.access
    given: dict[str, Any] = {
        "port": host.port or access.port,
        "username": host.user or access.user,
        "password": access.password,
        "passphrase": access.passphrase,
        "client_keys": _keys(access),
        "config": list(access.config) or None,
    }
    # What is not given is not passed on: then SSH's configuration says it.
    options = {name: value for name, value in given.items() if value}
    if not endpoint.ambient:
        options = {"client_keys": None, "agent_path": None, "config": None, **options}
    if not access.verify_host_keys:
        options["known_hosts"] = None
    elif access.host_keys:
        options["known_hosts"] = asyncssh.import_known_hosts(access.host_keys)
    elif endpoint.known_hosts:
        options["known_hosts"] = endpoint.known_hosts
    return await asyncssh.connect(
        host.connect or host.name,
        connect_timeout=access.connect_timeout,
        login_timeout=access.connect_timeout,
        keepalive_interval=KEEPALIVE,
        keepalive_count_max=3,
        **options,
    )


def _keys(access: Access) -> list[Any]:
    import asyncssh  # noqa: PLC0415 - heavy, and an extra

    text = [asyncssh.import_private_key(access.private_key, access.passphrase)] if access.private_key else []
    return [*access.client_keys, *text]


def _words(error: BaseException, endpoint: Endpoint) -> str:
    import asyncssh  # noqa: PLC0415 - heavy, and an extra

    if isinstance(error, LaunchError):
        return str(error).removeprefix(f"{endpoint.host.name}: ")
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        where = endpoint.known_hosts or "~/.ssh/known_hosts"
        return f"its host key is not the one in {where}: add it there once you have compared it"
    if isinstance(error, asyncssh.PermissionDenied):
        return "it refuses the user or key"
    if isinstance(error, TimeoutError):
        return f"no connection within {endpoint.access.connect_timeout * 2:g} s"
    return str(error) or type(error).__name__


@dataclass
class _Loop:
    """What one event loop holds."""

    links: dict[str, Link] = field(default_factory=dict)
    holders: dict[str, AsyncGenerator[Link, None]] = field(default_factory=dict)


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


async def link_of(endpoint: Endpoint) -> Link:
    """Return the running loop's link to a host."""
    held = _loops.setdefault(asyncio.get_running_loop(), _Loop())
    key = endpoint.key
    if key not in held.links:
        link = held.links[key] = Link(endpoint)
        # A loop that is shut down closes its asynchronous generators, and this one then closes the connection. No
        # launcher is closed by hand, so nothing else would.
        holder = held.holders[key] = _hold(link, lambda: held.links.pop(key, None))
        await anext(holder)
    return held.links[key]


async def _hold(link: Link, forget: Callable[[], object]) -> AsyncGenerator[Link, None]:
    try:
        yield link
    finally:
        forget()
        await link.close()
