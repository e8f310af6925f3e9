"""Names a running service, such as a temporary cluster: which attempt it is, and how long its lease lasts.

A service's address object is JSON: what its job reported when it was ready, and beside it ``service``, the reference
of the service, and ``uses``, those of the services that it builds on. It travels by XCom or as a flow's variable to the
stages that use the service; whoever waits for one of them renews these leases.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from rallypoint.errors import InvalidJobError

DEFAULT_LEASE = 900.0  # seconds
SERVICE = "service"  # the keys of an address object
USES = "uses"
_EXPECTED = "the address object that a service's stage returned, such as a RayCluster's result"


@dataclass(frozen=True, kw_only=True)
class ServiceRef:
    """A service that was started as an attempt of a stage.

    Args:
        store: The URI of the store with its record.
        stage: The key of its stage, part by part.
        attempt: The number of the attempt.
        lease: Seconds after which it ends if its lease was not renewed; None if it has none.
    """

    store: str
    stage: tuple[str, ...]
    attempt: int
    lease: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the reference as a JSON object."""
        return {**asdict(self), "stage": list(self.stage)}

    @classmethod
    def from_json(cls, value: Any) -> ServiceRef:
        """Return the reference that `to_json` described.

        Raises:
            ValueError: It is none.
        """
        given: Any = dict(value) if isinstance(value, Mapping) else {}
        store, stage, attempt, lease = (given.get(name) for name in ("store", "stage", "attempt", "lease"))
        named = isinstance(stage, list | tuple) and bool(stage) and all(isinstance(p, str) and p for p in stage)
        counted = isinstance(attempt, int) and not isinstance(attempt, bool) and attempt > 0
        timed = lease is None or (isinstance(lease, int | float) and not isinstance(lease, bool) and lease > 0)
        if not (isinstance(store, str) and named and counted and timed):
            msg = f"got the reference {str(value)[:200]!r}, expected a service's store, stage, attempt and lease"
            raise ValueError(msg)
        return cls(store=store, stage=tuple(stage), attempt=attempt, lease=lease)


def services_of(address: object, *, job: str, name: str = USES) -> tuple[ServiceRef, ...]:
    """Return the service of an address object, and after it those that it builds on.

    Args:
        address: The object.
        job: The job that was given it, for the error.
        name: The job's parameter.

    Raises:
        InvalidJobError: It is no address object.
    """
    if not isinstance(address, Mapping) or SERVICE not in address:
        raise InvalidJobError(job, name, got=address, expected=_EXPECTED)
    try:
        others = [ServiceRef.from_json(each) for each in address.get(USES, ())]
        return (ServiceRef.from_json(address[SERVICE]), *others)
    except (TypeError, ValueError) as error:
        raise InvalidJobError(job, name, got=address, expected=f"{_EXPECTED} ({error})") from error


def as_object(value: object) -> Mapping[str, Any] | None:
    """Return an address object, also one that a template rendered to text; None for anything else."""
    found = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError):
                found = read(value)
                break
    return found if isinstance(found, Mapping) else None
