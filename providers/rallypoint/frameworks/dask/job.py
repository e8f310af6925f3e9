"""The job of Dask processing: one driver with a connected client."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.errors import InvalidJobError
from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.job import Job
from rallypoint.spec.service import SERVICE, as_object

if TYPE_CHECKING:
    from collections.abc import Mapping

_ADDRESS = re.compile(r"^(tcp|tls|ws|wss|ucx|inproc)://[^\s/]+(:\d+)?")
_CLASS = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")


@dataclass(frozen=True, kw_only=True)
class DaskClusterClass:
    """A Dask cluster that a class of Dask's makes for one attempt, and that is closed with it.

    Args:
        cls: The cluster class's dotted path, such as ``"dask_jobqueue.SLURMCluster"``.
        kwargs: Its keyword arguments, as JSON values.
        workers: How many workers to scale to.
        adaptive: The least and the most workers of an adaptive cluster, instead of `workers`.

    Raises:
        InvalidJobError: A value is wrong.
    """

    cls: str = "distributed.LocalCluster"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    adaptive: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not _CLASS.match(self.cls):
            raise InvalidJobError(
                "DaskClusterClass", "cls", got=self.cls, expected='a dotted path, "package.ClusterClass"'
            )
        if self.workers is not None and (self.adaptive or self.workers < 1):
            raise InvalidJobError(
                "DaskClusterClass", "workers", got=self.workers, expected="1 or more, without adaptive="
            )
        if self.adaptive and not 0 <= self.adaptive[0] <= self.adaptive[1]:
            raise InvalidJobError(
                "DaskClusterClass", "adaptive", got=self.adaptive, expected="(min, max), 0 ≤ min ≤ max"
            )
        try:
            text = json.dumps(dict(self.kwargs))
        except (TypeError, ValueError) as error:
            raise InvalidJobError("DaskClusterClass", "kwargs", got=self.kwargs, expected="JSON values") from error
        if has_macro(text):
            raise InvalidJobError(
                "DaskClusterClass", "kwargs", got=self.kwargs, expected="values without ${rallypoint:…}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the cluster as a JSON object."""
        return {"cls": self.cls, "kwargs": dict(self.kwargs), "workers": self.workers, "adaptive": self.adaptive}


@dataclass(frozen=True, kw_only=True)
class DaskJob(Job):
    """Dask processing: the entry runs with a connected client.

    A function gets it through a parameter called ``client``; a script or module calls ``Client()`` without arguments.

    Args:
        cluster: None for a `LocalCluster` of the size that `resources` says (all cores by default), the address of a
            running scheduler, the result of a `rallypoint.DaskCluster` stage, or a `DaskClusterClass` whose cluster is
            made for the attempt.
        connect_timeout: Seconds to wait for a scheduler.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "dask"
    requires: ClassVar[tuple[str, ...]] = ("dask", "distributed")

    cluster: str | Mapping[str, Any] | DaskClusterClass | None = None
    connect_timeout: float = 30.0

    def __post_init__(self) -> None:
        shared = as_object(self.cluster)
        if shared is not None and SERVICE in shared and shared not in self.uses:
            object.__setattr__(self, "uses", (*self.uses, shared))
        super().__post_init__()
        where = self._address()
        if where is not None and (not isinstance(where, str) or has_macro(where) or not _ADDRESS.match(where)):
            expected = (
                'a scheduler\'s address such as "tcp://10.0.0.5:8786", the result of a DaskCluster stage, a '
                "DaskClusterClass, or None"
            )
            raise self.invalid("cluster", self.cluster, expected)
        if self.connect_timeout <= 0:
            raise self.invalid("connect_timeout", self.connect_timeout, "seconds above 0")

    def _address(self) -> Any:
        """Return the address of a running scheduler as it was given; None for a cluster of this attempt's own."""
        if isinstance(self.cluster, DaskClusterClass):
            return None
        shared = as_object(self.cluster)
        return self.cluster if shared is None else shared.get("address", "")

    def roles(self) -> tuple[Role, ...]:
        """Return one role: the driver, which connects the client and runs the entry."""
        settings: dict[str, Any] = {"connect_timeout": self.connect_timeout}
        if (where := self._address()) is not None:
            settings["address"] = where
        elif isinstance(self.cluster, DaskClusterClass):
            settings["cluster"] = self.cluster.to_json()
        else:
            settings["local"] = {"cpus": self.resources.cpus, "memory": self.resources.memory_bytes}
        argv = (
            Macro.PYTHON,
            "-m",
            "rallypoint.frameworks.dask.driver",
            json.dumps(settings, sort_keys=True),
            *self.code.command(),
        )
        return (Role(name="driver", argv=argv, env=dict(self.env), resources=self.resources),)
