"""The base of jobs that stay: a temporary cluster is started once, used by several stages, and stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from rallypoint.spec.entry import Entry, Module
from rallypoint.spec.job import Job, digest
from rallypoint.spec.service import DEFAULT_LEASE, SERVICE, services_of

if TYPE_CHECKING:
    from rallypoint.spec.gang import Gang
    from rallypoint.spec.service import ServiceRef


@dataclass(frozen=True, kw_only=True)
class ServiceJob(Job):
    """A job whose gang is a service: its stage ends with the service's address while the gang goes on.

    Who waits for the service to be ready, or for a stage that names it in ``uses``, renews its lease. When nobody has
    for `lease` seconds, because the orchestrator died, its supervisor ends it. So the time between two stages that use
    a service (a queue, a retry's delay) has to be shorter than the lease.

    Args:
        lease: Seconds; None for a service that stays until it is stopped, whatever happens to the orchestrator.

    Raises:
        InvalidJobError: A value is wrong.
    """

    # A service runs no code of the user's. This names it in records and logs.
    entry: Entry = field(default=Module("rallypoint.service"), init=False, repr=False)
    stall_timeout: float | None = field(default=None, init=False, repr=False)  # an idle service is silent
    lease: float | None = DEFAULT_LEASE

    def __post_init__(self) -> None:
        super().__post_init__()
        lease: Any = self.lease
        if lease is not None and (isinstance(lease, bool) or not isinstance(lease, int | float) or lease < 1):
            raise self.invalid("lease", lease, "seconds, 1 or more, or None to stay until it is stopped")

    def plan(self) -> Gang:
        """Return the gang: every command line, without starting or importing anything."""
        return replace(super().plan(), service=True, lease=self.lease)

    def fingerprint(self) -> dict[str, str]:
        """Return what makes two attempts the same service: its parameters, unlike a job's.

        A cleared service of another size is a new one, which has to be told from one that its users were cleared with.
        """
        base = {each.name for each in fields(ServiceJob)}
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in base}
        values = {**own, "resources": self.resources.to_json(), "env": dict(self.env), "python": self.python}
        return {"entry": f"service {self.kind}", **{name: digest(value) for name, value in values.items()}}

    def _services_with(self, name: str) -> tuple[ServiceRef, ...]:
        """Return the service whose address object a parameter holds, if it does, and what else this uses."""
        given = getattr(self, name)
        own: tuple[ServiceRef, ...] = ()
        if isinstance(given, Mapping) and SERVICE in given:
            own = services_of(given, job=type(self).__name__, name=name)
        return tuple(dict.fromkeys((*own, *super().services())))

    def _check_number(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.invalid(name, value, f"a whole number, {least} or more")
