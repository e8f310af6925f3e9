"""The job that runs code with a connected Ray, and what every job with a Ray driver shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rallypoint.frameworks.ray.address import EXPECTED, as_address, is_client
from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.job import Job
from rallypoint.spec.service import SERVICE, as_object

_CLIENT_FIX = (
    "over Ray Client the driver's connection is the job's life and Train and Tune are not supported: give the GCS "
    'address ("host:6379"), or run the job inside of the cluster with the launcher ray_jobs and address="auto"'
)


@dataclass(frozen=True, kw_only=True)
class RayDriverJob(Job):
    """A job with one process: a driver that is connected to Ray, and whose tasks and actors Ray runs.

    Args:
        address: None for a local Ray that is made for the attempt and gone with it (of the size that `resources` says,
            all cores by default), ``"auto"`` for the cluster that the driver's host belongs to, the ``"host:port"`` of
            a cluster's GCS to whose nodes the driver's host belongs, or the result of a RayCluster stage.
        dashboard: Whether a local Ray has a dashboard, which costs some 150 MB and a second.
        connect_timeout: Seconds to wait for a cluster.
    """

    requires: ClassVar[tuple[str, ...]] = ("ray",)

    address: str | Mapping[str, Any] | None = None
    dashboard: bool = True
    connect_timeout: float = 60.0

    def __post_init__(self) -> None:
        given = self.address
        cluster = as_object(given)
        if cluster is not None and SERVICE in cluster and cluster not in self.uses:
            object.__setattr__(self, "uses", (*self.uses, cluster))
        super().__post_init__()
        if is_client(cluster.get("address") if cluster is not None else given):
            raise self.invalid("address", given, EXPECTED, _CLIENT_FIX)
        try:
            where = as_address(given)
        except ValueError as error:
            raise self.invalid("address", given, EXPECTED, f"it is {error}") from error
        if where and has_macro(where):
            raise self.invalid("address", where, "text without ${rallypoint:…}")
        if not _is_number(self.connect_timeout) or self.connect_timeout <= 0:
            raise self.invalid("connect_timeout", self.connect_timeout, "seconds above 0")
        if not isinstance(self.dashboard, bool):
            raise self.invalid("dashboard", self.dashboard, "True or False")

    def settings(self) -> dict[str, Any]:
        """Return what the driver has to know, as a JSON object; no secret is in it."""
        where = as_address(self.address)
        found: dict[str, Any] = {"job": self.kind, "connect_timeout": self.connect_timeout}
        found["env"] = sorted({*self.env, *self.secrets})  # names: the values are in the driver's environment
        if where is not None:
            return {**found, "address": where}
        asked = self.resources
        local = {"cpus": asked.cpus, "gpus": asked.gpus, "memory": asked.memory_bytes, "dashboard": self.dashboard}
        return {**found, "local": {**local, "least_cpus": self.least_cpus()}}

    def least_cpus(self) -> float:
        """Return how many CPUs Ray needs at the least for this job."""
        return 1.0

    def roles(self) -> tuple[Role, ...]:
        """Return one role of one process: the driver."""
        settings = json.dumps(self.settings(), sort_keys=True)
        argv = (Macro.PYTHON, "-m", "rallypoint.frameworks.ray.driver", settings, *self.code.command())
        return (Role(name="driver", argv=argv, env=dict(self.env), resources=self.resources),)

    # Values that a template may have rendered to text ----------------------------------------------------------------

    def whole(self, name: str, least: int, *, none: bool = False) -> int | None:
        """Return a whole number of at least `least`; text that is one is taken too."""
        value: object = getattr(self, name)
        if none and (value is None or value in {"", "None"}):
            return None
        text = str(value).strip()
        if isinstance(value, bool) or not text.lstrip("-").isdigit() or int(text) < least:
            expected = f"a whole number, {least} or more" + (", or None" if none else "")
            raise self.invalid(name, value, expected)
        return int(text)

    def seconds(self, name: str, *, none: bool = False) -> float | None:
        """Return a number of seconds above 0; text that is one is taken too."""
        value: Any = getattr(self, name)
        if none and (value is None or value in {"", "None"}):
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if isinstance(value, bool) or not 0 < number < float("inf"):
            raise self.invalid(name, value, "seconds above 0" + (", or None" if none else ""))
        return number

    def amounts(self, name: str) -> dict[str, float]:
        """Return amounts of resources by Ray's names of them."""
        value: object = getattr(self, name)
        expected = 'amounts by resource, such as {"CPU": 1, "GPU": 0.5}'
        if not isinstance(value, Mapping):
            raise self.invalid(name, value, expected)
        found = {}
        for resource, amount in value.items():
            if not isinstance(resource, str) or not resource or not _is_number(amount) or amount < 0:
                raise self.invalid(name, {resource: amount}, expected)
            # Ray knows "CPU" and "cpu" as two resources, and nothing has the second.
            found[resource.upper() if resource.lower() in {"cpu", "gpu"} else resource] = float(amount)
        return found


@dataclass(frozen=True, kw_only=True)
class RayJob(RayDriverJob):
    """A script, module or function that runs with Ray initialised: its tasks and actors run where `address` says.

    The code calls ``ray.remote``, ``ray.data`` and so on without ``ray.init()``; a script's own ``ray.init()`` needs
    ``ignore_reinit_error=True``, and then finds the same Ray. It ends when the entry does, and with it what it left in
    Ray. To run the driver itself inside of a cluster, use the launcher ``ray_jobs`` and ``address="auto"``.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "ray"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
