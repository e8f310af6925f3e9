"""Where a Slurm cluster is, and what jobs ask of it: ``slurm://partition?root=/shared/runs&account=physics``."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from rallypoint.errors import LaunchError
from rallypoint.launchers.ssh.address import Address as SSHAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEME, NAME = "slurm", "slurm"  # of the URI, and in a job's `launcher_options`
REQUEUE, WARNING = 10, 120
_PARTITION = re.compile(r"[A-Za-z0-9_.,-]{0,200}")
_WORD = re.compile(r"[^\s\x00-\x1f\x7f]{1,500}")  # what Slurm takes as a name or an expression of names
_TIME = re.compile(r"\d+|\d+:\d{2}(:\d{2})?|\d+-\d{1,2}(:\d{2}){0,2}")
_NODES = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_FLAG = re.compile(r"[a-z][a-z0-9-]{0,40}")
# What the launcher itself says to sbatch, or what would make a job that it does not find again.
_OWN = frozenset(
    {"array", "chdir", "cluster-constraint", "clusters", "comment", "error", "export", "export-file", "get-user-env"}
    | {"gid", "help", "input", "job-name", "kill-on-invalid-dep", "no-requeue", "nodes", "ntasks", "ntasks-per-node"}
    | {
        "open-mode",
        "output",
        "parsable",
        "partition",
        "quiet",
        "requeue",
        "signal",
        "test-only",
        "uid",
        "usage",
        "wait",
    }
    | {"wrap"}
)
# What says where a cluster is; the rest of the query is asked of Slurm.
PLACES = ("root", "conf", "login", "login_python", "known_hosts", "python")
_EXAMPLE = "slurm://gpu?root=/shared/rallypoint/runs&account=physics&time=12:00:00"
_MAX_RUNS = 1_000
_CLOCK = 3  # hours, minutes and seconds


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a job asks of Slurm, by the names of sbatch's own options.

    Args:
        account: Who pays for it.
        qos: Its quality of service.
        constraint: Features of the nodes, such as ``a100&nvlink``.
        gres: Generic resources of each node, such as ``gpu:a100:4``; by default the GPUs that the processes ask for.
        time: Its time limit, such as ``90`` (minutes), ``12:00:00`` or ``2-00:00:00``; the partition's by default.
        nodes: Nodes, ``"4"``, or ``"2-8"`` where the gang is elastic; by default one for each process, and an elastic
            gang's own range.
        reservation: A reservation to use.
        requeue: How often the job may go back into the queue and continue from its checkpoint: shortly before its time
            limit, after it was preempted, or when a node was lost. 0 ends the attempt each time, as a failure that the
            orchestrator retries at once.
        warning: Seconds before the time limit at which the processes get SIGTERM, and time to save their state.
        setup: A file that the batch script reads (``source``) on the first node, such as one that loads modules.
        sbatch: Further options of sbatch, each a text such as ``--licenses=matlab``, or one text of several.

    Raises:
        LaunchError: A value is wrong, or an option is the launcher's own.
    """

    account: str = ""
    qos: str = ""
    constraint: str = ""
    gres: str = ""
    time: str = ""
    nodes: str = ""
    reservation: str = ""
    requeue: int = REQUEUE
    warning: int = WARNING
    setup: str = ""
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("account", "qos", "constraint", "gres", "reservation"):
            if not isinstance(value := getattr(self, name), str) or (value and not _WORD.fullmatch(value)):
                raise _wrong(name, value, "a word without spaces")
        if self.time and not _TIME.fullmatch(self.time):
            raise _wrong("time", self.time, "minutes, hours:minutes:seconds or days-hours, such as 12:00:00")
        if self.nodes and not self.range_of_nodes:
            raise _wrong("nodes", self.nodes, 'a number, or a range such as "2-8"')
        if not 0 <= self.requeue <= _MAX_RUNS:
            raise _wrong("requeue", self.requeue, f"a number from 0 to {_MAX_RUNS}")
        if not 1 <= self.warning <= 65_535:  # noqa: PLR2004 - Slurm's own limit
            raise _wrong("warning", self.warning, "seconds from 1 to 65535")
        if self.setup and (not self.setup.startswith("/") or not self.setup.isprintable()):
            raise _wrong("setup", self.setup, "the absolute path of a file that the nodes see")
        for option in self.sbatch:
            _check_option(option)

    @property
    def range_of_nodes(self) -> tuple[int, int] | None:
        """The least and the largest number of nodes; None if that follows from the gang, or is no range."""
        match = _NODES.fullmatch(self.nodes)
        if not match:
            return None
        least, most = int(match[1]), int(match[2] or match[1])
        return (least, most) if 1 <= least <= most else None

    @property
    def limit(self) -> int | None:
        """The time limit in seconds; None if it is the partition's."""
        if not self.time:
            return None
        days, _, clock = self.time.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if days:  # days-hours:minutes:seconds
            hours, minutes, seconds = [*parts, 0, 0][:3]
        elif len(parts) == _CLOCK:  # hours:minutes:seconds
            hours, minutes, seconds = parts
        else:  # minutes:seconds
            hours, (minutes, seconds) = 0, [*parts, 0][:2]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def notice(self) -> int:
        """The seconds of the warning; half of the time where all of it would be less."""
        limit = self.limit
        return self.warning if limit is None or self.warning < limit else max(1, limit // 2)

    def with_options(self, options: Mapping[str, Any]) -> Ask:
        """Return this with other values for those that are named; a form holds numbers and lists as text.

        Raises:
            LaunchError: A name is not known, or a value is wrong.
        """
        known = {each.name: each.default for each in fields(self)}
        if unknown := options.keys() - known.keys():
            msg = f"got the option {min(unknown)!r} for a Slurm launcher, expected one of {', '.join(sorted(known))}"
            raise LaunchError(msg)
        given: dict[str, Any] = {}
        for name, value in options.items():
            if value is None or value == "":
                continue
            if name == "sbatch":
                given[name] = _options(value)
            elif isinstance(known[name], int):
                given[name] = _number(name, value)
            else:
                given[name] = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else value
        return replace(self, **given)


@dataclass(frozen=True, kw_only=True)
class Address:
    """A cluster, and where its nodes and this orchestrator share a folder.

    Args:
        root: The folder of the run folders; every node and every orchestrator's process sees it by this path.
        partition: The partition, or several with commas; empty for the cluster's default.
        conf: The path of ``slurm.conf``, where it is not the machine's own.
        login: The login node where Slurm's commands run and the folder is seen, such as ``user@login1:22``; empty for
            this machine.
        login_python: The interpreter there.
        known_hosts: The file of the login node's key; ``~/.ssh/known_hosts`` by default.
        python: The interpreter on the nodes.
        ask: What jobs ask of Slurm, unless they say otherwise.
    """

    root: str
    partition: str = ""
    conf: str = ""
    login: str = ""
    login_python: str = "python3"
    known_hosts: str = ""
    python: str = "python3"
    ask: Ask = field(default_factory=Ask)

    @classmethod
    def from_uri(cls, uri: str, options: Mapping[str, Any] | None = None) -> Address:
        """Return what a URI says.

        Args:
            uri: The URI.
            options: Further options, by the names of its query; they come first.

        Raises:
            LaunchError: It is none of a Slurm launcher.
        """
        parts = urlsplit(uri)
        query: dict[str, Any] = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        query |= {name: value for name, value in (options or {}).items() if value is not None and value != ""}
        where = {name: str(query.pop(name, "")) for name in PLACES}
        root, conf = where["root"], where["conf"]
        partition = unquote(parts.netloc)
        wrong = parts.scheme != SCHEME or parts.fragment or parts.path not in {"", "/"}
        if wrong or not _PARTITION.fullmatch(partition):
            msg = f"got the launcher {uri!r}, expected a partition and options, such as {_EXAMPLE}"
            raise LaunchError(msg)
        for name, path in (("root", root), ("conf", conf)):
            if (name == "root" and not path) or (path and not (path.startswith("/") and path.isprintable())):
                raise _wrong(name, path, f"an absolute path, as in {_EXAMPLE}")
        given = {**{name: value for name, value in where.items() if value}, "root": root.rstrip("/") or "/"}
        found = cls(**given, partition=partition, ask=Ask().with_options(query))
        if found.login_node and len(found.login_node.hosts) != 1:
            raise _wrong("login", found.login, "one host, such as user@login1:22")
        return found

    @property
    def login_node(self) -> SSHAddress | None:
        """The login node as the SSH launcher's address; None if there is none."""
        query = {"root": self.root, "python": self.login_python, "known_hosts": self.known_hosts}
        words = urlencode({name: value for name, value in query.items() if value})
        return SSHAddress.from_uri(f"ssh://{self.login}?{words}") if self.login else None

    @property
    def place(self) -> tuple[str, ...]:
        """What is equal for launchers whose attempts lie in the same place, and are reached in the same way."""
        return self.root, self.conf, self.login, self.login_python, self.known_hosts

    @property
    def uri(self) -> str:
        """The URI, always the same one for the same address and the same requests."""
        query: dict[str, str] = {"root": self.root}
        plain = {each.name: each.default for each in fields(self)}
        query |= {name: value for name in PLACES if name != "root" and (value := getattr(self, name)) != plain[name]}
        for each in fields(self.ask):
            value = getattr(self.ask, each.name)
            if value != each.default:
                query[each.name] = shlex.join(value) if isinstance(value, tuple) else str(value)
        return f"{SCHEME}://{quote(self.partition, safe=',')}?{urlencode(query, safe='/:,')}"

    @property
    def cluster(self) -> str:
        """What is equal for launchers that ask the same Slurm."""
        return f"{self.login} {self.conf}"


def _check_option(option: str) -> None:
    flag, _, value = option.removeprefix("--").partition("=")
    if not option.startswith("--") or not _FLAG.fullmatch(flag) or not value.isprintable():
        raise _wrong("sbatch", option, "a long option of sbatch, such as --licenses=matlab")
    if flag in _OWN:
        raise _wrong("sbatch", option, f"no option that the launcher itself gives; it gives --{flag}")


def _options(value: object) -> tuple[str, ...]:
    try:
        found = shlex.split(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
        raise _wrong("sbatch", value, "a list of long options, such as --licenses=matlab")
    return tuple(found)


def _number(name: str, value: object) -> int:
    if isinstance(value, bool) or not str(value).strip().isdigit():
        raise _wrong(name, value, "a whole number, 0 or more")
    return int(str(value))


def _wrong(name: str, value: object, expected: str) -> LaunchError:
    return LaunchError(
        f"got {name}={value!r} for a Slurm launcher, expected {expected}: correct the launcher's URI, the connection "
        "of the type 'slurm', or the job's launcher_options"
    )
