"""The base of every job: what to run, as data that can be printed, compared and planned."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.errors import InvalidJobError
from rallypoint.spec.entry import PYTHON_MINOR, Entry, Function, Module, Script, as_entry, canonical, project_folders
from rallypoint.spec.gang import Gang, Macro, Role, Secret, has_macro
from rallypoint.spec.resources import Resources
from rallypoint.spec.service import ServiceRef, services_of
from rallypoint.spec.shipment import ARCHIVE, archive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rallypoint.spec.failure import FailureRule

DEFAULT_STALL_TIMEOUT = 1800.0  # seconds
_RESERVED = "RALLYPOINT_"


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """What to run. Subclasses add what their framework takes, and `roles`.

    Args:
        entry: The user's code: a script's path, a function, or `Script`, `Module`, `Function` with arguments.
        params: JSON values that the code reads with ``stage().params``.
        env: Environment variables of every process. No secrets: they are shown by ``rallypoint plan``.
        secrets: Environment variables that appear in no file, log or command line.
        python: The interpreter to run the job with; None is the launcher's default. Nothing of Rallypoint has to be
            installed there.
        resources: What each process of the gang asks of its host.
        keep_checkpoints: How many checkpoints to keep.
        stall_timeout: Seconds without an event or a line of output from any process after which the gang counts as
            hung: its stacks are dumped, it is ended, and the attempt fails as retryable. None waits for ever.
        failure_rules: What failures of this job mean, before Rallypoint's own table (`stages.failure_table`) is asked.
        uses: The address objects of the services that this job uses, such as a `RayCluster`'s result. Their leases are
            renewed while this job is waited for.
        launcher_options: What a launcher of a name is asked beside, as JSON values:
            ``{"ray_jobs": {"runtime_env": {…}, "entrypoint_resources": {…}}}``. Other launchers ignore it.

    Raises:
        InvalidJobError: A value is wrong; the message says which, and what it takes.
    """

    kind: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    own_rules: ClassVar[tuple[FailureRule, ...]] = ()  # what its driver's errors mean
    entries: ClassVar[tuple[type, ...]] = (Script, Module, Function)  # the kinds of code that it takes

    entry: Entry | Callable[..., Any] | str | os.PathLike[str] = field(kw_only=False)
    params: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret | str] = field(default_factory=dict, repr=False)
    python: str | None = None
    resources: Resources = field(default_factory=Resources)
    keep_checkpoints: int = 3
    stall_timeout: float | None = DEFAULT_STALL_TIMEOUT
    failure_rules: Sequence[FailureRule] = ()
    uses: Sequence[Mapping[str, Any]] = ()
    launcher_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entry", as_entry(self.entry))
        if not isinstance(self.entry, self.entries):
            raise self.invalid("entry", self.entry, " or ".join(kind.__name__ for kind in self.entries))
        kept: object = self.keep_checkpoints
        if not isinstance(kept, int) or kept < 1:
            raise self.invalid("keep_checkpoints", kept, "1 or more, a whole number")
        stall: object = self.stall_timeout
        if stall is not None and (not isinstance(stall, int | float) or stall <= 0):
            raise self.invalid("stall_timeout", self.stall_timeout, "seconds above 0, or None to wait for ever")
        self._check_variables()
        try:
            json.dumps(dict(self.params))
        except (TypeError, ValueError) as error:
            raise self.invalid("params", self.params, f"JSON values ({error})") from error
        self.services()
        self._check_launcher_options()

    @property
    def rules(self) -> tuple[FailureRule, ...]:
        """What failures of this job mean, in the order in which they are asked: the user's come first."""
        return (*self.failure_rules, *self.own_rules)

    def _check_variables(self) -> None:
        for name in (*self.env, *self.secrets):
            if name.startswith(_RESERVED) or "=" in name or "\0" in name or not name:
                raise self.invalid("env", name, f"a variable's name that does not start with {_RESERVED}")
        values: dict[str, object] = dict(self.env)
        for name, text in values.items():
            if not isinstance(text, str) or has_macro(text) or "\0" in text:
                raise self.invalid("env", {name: text}, "text without NUL and without ${rallypoint:…}")
        for name, secret in self.secrets.items():
            if "\0" in (secret.reveal() if isinstance(secret, Secret) else secret):
                raise self.invalid("secrets", name, "a value without NUL")

    def _check_launcher_options(self) -> None:
        given: object = self.launcher_options
        expected = 'JSON values by option by launcher, such as {"ray_jobs": {"runtime_env": {}}}'
        if not isinstance(given, dict) or not all(isinstance(asked, dict) for asked in given.values()):
            raise self.invalid("launcher_options", given, expected)
        try:
            json.dumps(given)
        except (TypeError, ValueError) as error:
            raise self.invalid("launcher_options", given, f"{expected} ({error})") from error

    def invalid(self, name: str, got: object, expected: str, fix: str = "") -> InvalidJobError:
        """Return the error for one wrong parameter of this job."""
        return InvalidJobError(type(self).__name__, name, got=got, expected=expected, fix=fix)

    @property
    def code(self) -> Entry:
        """The entry, as `Script`, `Module` or `Function`."""
        return as_entry(self.entry)

    def services(self) -> tuple[ServiceRef, ...]:
        """Return the services that this job uses, and those that they build on, each once.

        Raises:
            InvalidJobError: One of `uses` is no address object.
        """
        given: object = self.uses
        if isinstance(given, str | dict) or not isinstance(given, list | tuple):
            raise self.invalid("uses", given, "a list of address objects, each what a service's stage returned")
        found = (ref for address in given for ref in services_of(address, job=type(self).__name__))
        return tuple(dict.fromkeys(found))

    @abstractmethod
    def roles(self) -> tuple[Role, ...]:
        """Return the processes that this job compiles to."""

    def plan(self) -> Gang:
        """Return the gang: every command line, without starting or importing anything.

        Raises:
            InvalidEntryError: The entry's function or arguments cannot be pickled.
        """
        code = self.code
        gang = Gang(
            name=self.kind,
            roles=self.roles(),
            python=self.python,
            files={ARCHIVE: archive(), **code.files()},
            secrets={
                name: value if isinstance(value, Secret) else Secret(value) for name, value in self.secrets.items()
            },
            requires=self.requires,
            pickled_by=PYTHON_MINOR if isinstance(code, Function) else None,
            needs_files=(code.path,) if isinstance(code, Script) else (),
            stall_timeout=self.stall_timeout,
            options=self.launcher_options,
        )
        path = [f"{Macro.RUN_DIR}/{ARCHIVE}", self.env.get("PYTHONPATH", "")]
        path += project_folders() if isinstance(code, Function) else ()
        return gang.with_more(env={"PYTHONPATH": os.pathsep.join(filter(None, path))})

    def fingerprint(self) -> dict[str, str]:
        """Return what makes two attempts the same work: the entry and its arguments, by name, as digests.

        Not in it, on purpose: the code itself, resources, world size, launcher, environment and time limits. Who
        fixes a bug in epoch 5, or gives the job more memory, and presses *Clear*, wants to go on.
        """
        code = self.code
        parts = {"entry": code.identity}
        parts |= {f"argument {name}": digest(value) for name, value in code.arguments().items()}
        return parts | {f"param {name}": digest(value) for name, value in self.params.items()}


def digest(value: Any) -> str:
    """Return a short name of a value that is different for different values."""
    return hashlib.sha256(canonical(value)).hexdigest()[:16]
