"""A gang: what a job compiles to, roles × replicas of processes that live and die together.

Pure data, and the only place where frameworks and launchers meet. Some values are known only where a gang is placed
(its folder, a free port, a host's address); they stand as *macros*, ``${rallypoint:run_dir}``, until the launcher
fills them in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rallypoint.spec.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Mapping

_MACRO = re.compile(r"\$\{rallypoint:([a-z_]+(?:\.[a-z0-9_]+)?)\}")


class Macro:
    """The values that a launcher fills in."""

    PYTHON = "${rallypoint:python}"  # the interpreter of the job
    RUN_DIR = "${rallypoint:run_dir}"  # the folder of the attempt, where the shipped files are
    ATTEMPT = "${rallypoint:attempt}"  # the attempt's id
    REPLICA = "${rallypoint:replica}"  # the number of this replica in its role, from 0
    NODES = "${rallypoint:nodes}"  # the role's replicas as placed: "2", or "1:4" where replicas may come and go
    HOST = "${rallypoint:host}"  # the address of the gang's first process, as the others reach it
    ADDRESS = "${rallypoint:address}"  # the address of this process's own host, as the others reach it

    @staticmethod
    def port(name: str) -> str:
        """Return the macro of a free port on the first host; the role lists the name in its ``ports``."""
        return f"${{rallypoint:port.{name}}}"


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace every macro in `text`.

    Raises:
        KeyError: A macro has no value, so the gang cannot run on this launcher.
    """
    return _MACRO.sub(lambda match: values[match[1]], text)


def has_macro(text: str) -> bool:
    """Return whether `text` holds a macro, which user input may not."""
    return _MACRO.search(text) is not None


@dataclass(frozen=True)
class Secret:
    """A value that is given to a process's environment and shown nowhere else."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        """Return the value, at the last moment before a process gets it."""
        return self._value

    def __str__(self) -> str:
        return "***"


@dataclass(frozen=True, kw_only=True)
class Role:
    """Equal processes of a gang.

    Args:
        name: The role's name, such as ``agent``; a process is called ``agent-0``.
        argv: The command line, with macros.
        replicas: How many processes at the most.
        min_replicas: How many processes at the least; `replicas` by default, fewer for an elastic role.
        env: Environment variables, with macros. No secrets.
        ports: Names of the free ports that the role wants on the first host.
        resources: What each process asks of its host.
        may_lose: How many of its processes may fail while the rest of the gang goes on; 0 where all belong together.
    """

    name: str
    argv: tuple[str, ...]
    replicas: int = 1
    min_replicas: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    may_lose: int = 0

    @property
    def least(self) -> int:
        """How many processes have to run at the least."""
        return self.replicas if self.min_replicas is None else self.min_replicas

    @property
    def elastic(self) -> bool:
        """Whether its processes may come and go."""
        return self.least < self.replicas

    def to_json(self) -> dict[str, Any]:
        """Return the role as a JSON object."""
        return {
            "name": self.name,
            "argv": list(self.argv),
            "replicas": self.replicas,
            "min_replicas": self.least,
            "env": dict(self.env),
            "ports": list(self.ports),
            "resources": self.resources.to_json(),
            "may_lose": self.may_lose,
        }


@dataclass(frozen=True, kw_only=True)
class Gang:
    """Processes that live and die together: if one fails, the others are ended.

    Args:
        name: What the gang is called in logs and on clusters.
        roles: The processes.
        python: The interpreter of the job; None is the launcher's default.
        files: What is shipped to the attempt's folder, by relative path.
        secrets: Environment variables of every process that are written down nowhere.
        requires: Top-level modules that the job's Python must have.
        pickled_by: The Python minor version that pickled a function among the files, such as ``"3.11"``.
        needs_files: Paths that must exist where the gang runs, such as the user's script.
        stall_timeout: Seconds without an event or a line of output after which the gang counts as hung; None never.
        service: Whether it is to stay: it reports ``ready`` with its address instead of ending with a result.
        lease: Seconds after which a service ends by itself if nobody has renewed its lease; None never.
        options: What a launcher of a name is asked beside, as JSON: ``{"ray_jobs": {"runtime_env": {…}}}``. Others
            ignore it. No secrets.
    """

    name: str
    roles: tuple[Role, ...]
    python: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    pickled_by: str | None = None
    needs_files: tuple[str, ...] = ()
    stall_timeout: float | None = None
    service: bool = False
    lease: float | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_more(
        self,
        *,
        files: Mapping[str, bytes] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, Secret] | None = None,
    ) -> Gang:
        """Return the gang with further files, and further variables for every process."""
        return replace(
            self,
            files={**self.files, **(files or {})},
            secrets={**self.secrets, **(secrets or {})},
            roles=tuple(replace(role, env={**role.env, **(env or {})}) for role in self.roles),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the gang as a JSON object: names of secrets, sizes of files."""
        return {
            "v": 1,
            "name": self.name,
            "roles": [role.to_json() for role in self.roles],
            "python": self.python,
            "files": {name: len(data) for name, data in sorted(self.files.items())},
            "secrets": sorted(self.secrets),
            "requires": list(self.requires),
            "pickled_by": self.pickled_by,
            "needs_files": list(self.needs_files),
            "stall_timeout": self.stall_timeout,
            "service": self.service,
            "lease": self.lease,
            "options": {name: dict(asked) for name, asked in self.options.items()},
        }
