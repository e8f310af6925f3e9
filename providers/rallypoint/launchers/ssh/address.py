"""Which hosts a launcher has, and how they are reached: its URI, a file of hosts, and the options beside them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from rallypoint.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = "ssh://user@host1,host2?root=/var/lib/rallypoint/runs"
LOST_AFTER = 60.0  # seconds
_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9._-]+)@)?(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?"
)
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUERY = ("root", "python", "hosts", "known_hosts", "lost_after")


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host.

    Args:
        name: What it is called, and where it is connected to unless `connect` says otherwise.
        connect: The name or address that is connected to.
        user: The user there; the launcher's, or that of the SSH configuration, by default.
        port: Its SSH port; that of the SSH configuration, or 22, by default.
        address: Its address as the other hosts reach it; that of the SSH connection by default.
        python: Its interpreter; the launcher's by default.
        env: Variables of the environment of every process there, such as ``NCCL_SOCKET_IFNAME``. No secrets.
    """

    name: str
    connect: str = ""
    user: str | None = None
    port: int | None = None
    address: str | None = None
    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: object = self.env
        env = {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {"": ""}
        if not all(map(_ENV.fullmatch, env)):
            raise _wrong(f"env of the host {self.name}", given, "names of variables with their values")
        object.__setattr__(self, "env", env)
        for name in ("connect", "user", "address", "python"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise _wrong(f"{name} of the host {self.name}", value, "text")
        if self.port is not None and self.port not in range(1, 1 << 16):
            raise _wrong(f"port of the host {self.name}", self.port, "a port")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A launcher's hosts, without any secret: what its URI says.

    Args:
        hosts: The hosts, in order.
        root: The folder of the run folders on every host; each orchestrator needs its own.
        python: The interpreter on the hosts.
        known_hosts: The file of the hosts' keys; ``~/.ssh/known_hosts`` by default.
        lost_after: Seconds without an answer after which a host counts as lost.
        hosts_file: The file that the hosts, or more about them, came from.
        in_uri: Whether the URI names the hosts.
    """

    hosts: tuple[Host, ...]
    root: str
    python: str = "python3"
    known_hosts: str | None = None
    lost_after: float = LOST_AFTER
    hosts_file: str | None = None
    in_uri: bool = True

    @classmethod
    def from_uri(cls, uri: str, more: Mapping[str, Any] | None = None) -> Address:
        """Return what a URI says.

        Args:
            uri: Such as ``ssh://user@host1,host2?root=/var/lib/rallypoint/runs``.
            more: More about hosts by their names, as a file of hosts has it.

        Raises:
            LaunchError: It is wrong, or its file of hosts is.
        """
        parts = urlsplit(uri)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := query.keys() - set(_QUERY):
            raise _wrong(min(unknown), query[min(unknown)], f"one of {', '.join(_QUERY)}")
        if parts.scheme != "ssh":
            raise _wrong("scheme", parts.scheme, "ssh")
        if parts.path.strip("/"):
            raise _wrong("path", parts.path, "none: the folder is root=")
        root = query.get("root", "")
        if not root.startswith("/"):
            raise _wrong(
                "root", root, "the absolute path of a folder on the hosts that this orchestrator has for itself"
            )
        listed = [_host(text) for text in unquote(parts.netloc).split(",") if text]
        details = {**_file(query.get("hosts")), **(more or {})}
        names = [host.name for host in listed] or list(details)
        if not names:
            raise _wrong("hosts", uri, "at least one")
        if len(set(names)) != len(names):
            raise _wrong("hosts", ",".join(names), "every host once")
        by_name = {host.name: host for host in listed}
        lost_after = query.get("lost_after", str(LOST_AFTER))
        if not re.fullmatch(r"\d+(\.\d+)?", lost_after) or float(lost_after) <= 0:
            raise _wrong("lost_after", lost_after, "seconds above 0")
        return cls(
            hosts=tuple(_joined(by_name.get(name) or Host(name=name), details.get(name) or {}) for name in names),
            root=root.rstrip("/"),
            python=query.get("python") or "python3",
            known_hosts=query.get("known_hosts") or None,
            lost_after=float(lost_after),
            hosts_file=query.get("hosts") or None,
            in_uri=bool(listed),
        )

    @property
    def uri(self) -> str:
        """The URI that says the same."""
        names = ",".join(_text(host) for host in self.hosts) if self.in_uri else ""
        query = {
            "root": self.root,
            "python": self.python if self.python != "python3" else None,
            "hosts": self.hosts_file,
            "known_hosts": self.known_hosts,
            "lost_after": f"{self.lost_after:g}" if self.lost_after != LOST_AFTER else None,
        }
        given = {name: value for name, value in query.items() if value is not None}
        return f"ssh://{names}?{urlencode(given, safe='/', quote_via=quote)}"


@dataclass(frozen=True, kw_only=True)
class Access:
    """Credentials and settings of the connections; never part of a URI.

    Args:
        user: The user on hosts for which none is named.
        port: The port of hosts for which none is named.
        password: The password.
        client_keys: Files of private keys; those of the SSH agent and of ``~/.ssh`` by default.
        private_key: The text of a private key.
        passphrase: Of the private keys.
        host_keys: The hosts' keys as the text of a ``known_hosts`` file, instead of a file.
        verify_host_keys: Whether a host whose key is not known is refused, as it should be.
        config: Files of SSH's configuration; ``~/.ssh/config`` by default.
        connect_timeout: Seconds until a host that does not answer counts as not reached.
        hosts: More about hosts by their names, as a file of hosts has it.
    """

    user: str | None = None
    port: int | None = None
    password: str | None = field(default=None, repr=False)
    client_keys: tuple[str, ...] = ()
    private_key: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    host_keys: str | None = None
    verify_host_keys: bool = True
    config: tuple[str, ...] = ()
    connect_timeout: float = 10.0
    hosts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Access:
        """Return the options of a launcher as an object.

        Raises:
            LaunchError: One is not known.
        """
        known = {each.name for each in fields(cls)}
        if unknown := options.keys() - known:
            msg = f"got the option {min(unknown)!r} for an SSH launcher, expected one of {', '.join(sorted(known))}"
            raise LaunchError(msg)
        given = dict(options)
        for name in ("client_keys", "config"):
            if isinstance(value := given.get(name), str):
                given[name] = (value,)
            elif value is not None:
                given[name] = tuple(value)
        return cls(**given)


def _host(text: str) -> Host:
    match = _HOST.fullmatch(text)
    if not match:
        # The text may hold a password, which has no business there: it is not repeated.
        msg = f"got a wrong host in the URI of an SSH launcher, expected one such as {EXAMPLE}; a password is an option"
        raise LaunchError(msg)
    port = int(match["port"]) if match["port"] else None
    return Host(name=match["name"].strip("[]"), user=match["user"], port=port)


def _text(host: Host) -> str:
    name = f"[{host.name}]" if ":" in host.name else host.name
    user = f"{host.user}@" if host.user else ""
    return f"{user}{name}" + (f":{host.port}" if host.port else "")


def _file(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        with Path(path).open("rb") as file:
            value = tomllib.load(file)
    except (OSError, ValueError) as error:
        msg = f"the file of hosts {path} cannot be read ({error}): expected TOML with a table for each host"
        raise LaunchError(msg) from error
    return value


def _joined(host: Host, more: Mapping[str, Any]) -> Host:
    known = {each.name for each in fields(Host)} - {"name"}
    if not isinstance(more, dict) or more.keys() - known:
        wrong = min(more.keys() - known) if isinstance(more, dict) else more
        raise _wrong(f"host {host.name}", wrong, f"a table of {', '.join(sorted(known))}")
    own = {name: value for name in ("user", "port") if (value := getattr(host, name)) is not None}
    return Host(**{"name": host.name, **more, **own})


def _wrong(name: str, got: object, expected: str) -> LaunchError:
    return LaunchError(f"got the {name} {got!r} of an SSH launcher, expected {expected}; a whole URI is {EXAMPLE}")
