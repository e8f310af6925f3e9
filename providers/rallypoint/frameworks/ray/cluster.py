"""Temporary Ray clusters: a gang that stays, for the stages of one pipeline run to share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.cluster.rules import daemon_rules
from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.resources import Resources
from rallypoint.spec.service_job import ServiceJob

if TYPE_CHECKING:
    from rallypoint.spec.failure import FailureRule
    from rallypoint.spec.service import ServiceRef

DASHBOARD = "Ray dashboard"  # the name of its link
_DRIVER = "rallypoint.frameworks.ray.cluster_driver"
_LEAST_STORE = 80 << 20  # bytes: Ray refuses a smaller object store
_ADDRESS = re.compile(r"^[^\s/:]+:\d+$")
_LABEL = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$")


@dataclass(frozen=True, kw_only=True)
class RayNodes(ServiceJob):
    """What `RayCluster` and `RayWorkers` share: equal worker nodes.

    Args:
        workers: How many worker nodes.
        cpus_per_worker: CPUs that each offers, as Ray counts them.
        gpus_per_worker: GPUs that each offers.
        memory: Memory that each offers to tasks that ask for it: bytes, or text such as ``"16GiB"``; None is Ray's
            own choice.
        object_store_memory: The size of each node's object store; None is Ray's own choice.
        custom_resources: Custom resources that each offers, such as ``{"fast_disk": 1}``.
        labels: Labels of each, which tasks select nodes by.
        start_timeout: Seconds until every node has to have joined.
        max_restarts: How often each worker node that died is started anew; the cluster goes on without it meanwhile.

    Raises:
        InvalidJobError: A value is wrong.
    """

    requires: ClassVar[tuple[str, ...]] = ("ray",)
    own_rules: ClassVar[tuple[FailureRule, ...]] = daemon_rules("a Ray node")

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0
    memory: str | int | None = None
    object_store_memory: str | int | None = None
    custom_resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    start_timeout: float = 180.0
    max_restarts: int = 3
    resources: Resources = field(default_factory=Resources, init=False, repr=False)  # follows from the above

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("cpus_per_worker", 0)
        self._check_number("gpus_per_worker", 0)
        self._check_number("max_restarts", 0)
        timeout: object = self.start_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            raise self.invalid("start_timeout", timeout, "seconds above 0")
        self._bytes("memory")
        store = self._bytes("object_store_memory")
        if store is not None and store < _LEAST_STORE:
            raise self.invalid("object_store_memory", self.object_store_memory, '"80MiB" or more, or None')
        for name, amount in dict[str, object](self.custom_resources).items():
            if not isinstance(amount, int | float) or isinstance(amount, bool) or amount <= 0 or has_macro(name):
                raise self.invalid("custom_resources", {name: amount}, "names with numbers above 0")
        for name, value in dict[str, object](self.labels).items():
            if not (_LABEL.match(name) and isinstance(value, str) and _LABEL.match(value)):
                raise self.invalid("labels", {name: value}, 'letters, digits, ".", "_", "-", "/" in names and values')

    def roles(self) -> tuple[Role, ...]:
        """Return the processes that this job compiles to."""
        raise NotImplementedError  # pragma: no cover - a base only

    def _worker(self, settings: Mapping[str, Any]) -> Role:
        shared = {
            "cpus": self.cpus_per_worker,
            "gpus": self.gpus_per_worker,
            "memory": self._bytes("memory"),
            "object_store_memory": self._bytes("object_store_memory"),
            "resources": dict(self.custom_resources),
            "labels": dict(self.labels),
            "max_restarts": self.max_restarts,
        }
        asked = Resources(cpus=self.cpus_per_worker or None, memory=self.memory, gpus=self.gpus_per_worker)
        return self._role("worker", {**shared, **settings}, replicas=self.workers, resources=asked)

    def _role(self, name: str, settings: Mapping[str, Any], **more: Any) -> Role:
        words = {"ip": Macro.ADDRESS, "attempt": Macro.ATTEMPT, "start_timeout": self.start_timeout, **settings}
        argv = (Macro.PYTHON, "-m", _DRIVER, name, json.dumps(words, sort_keys=True))
        return Role(name=name, argv=argv, env=dict(self.env), **more)

    def _bytes(self, name: str) -> int | None:
        try:
            return Resources(memory=getattr(self, name)).memory_bytes
        except InvalidJobError:
            raise self.invalid(name, getattr(self, name), 'bytes, a size such as "16GiB", or None') from None


@dataclass(frozen=True, kw_only=True)
class RayCluster(RayNodes):
    """A temporary Ray cluster: one head node and worker nodes.

    Its stage ends when every node has joined, with the address object ``{"address": "host:port", "dashboard_url":
    "http://…", "client": "ray://…", "workers": n, …}``. Give that object to the jobs that run on it (``cluster=`` of
    Ray jobs, ``uses=`` of any other): whoever waits for them keeps the cluster alive.

    The dashboard always runs, because it is also the Jobs API; it listens where the cluster does (on this machine:
    127.0.0.1). A worker node that dies is started anew; when the head dies, the cluster is lost. Ray's own files lie
    in a temporary folder of the head's host, which is removed when the cluster is stopped.

    Args:
        workers: How many worker nodes; 0 for a head that does the work.
        head_cpus: CPUs that the head offers to tasks. By default none run there.

    The other parameters are those of `RayNodes` and `ServiceJob`.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "ray-cluster"

    workers: int = 2
    head_cpus: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("workers", 0)
        self._check_number("head_cpus", 0)
        if not self.workers and not self.head_cpus:
            raise self.invalid("workers", 0, "1 or more", fix="or let the head work with head_cpus=")

    def roles(self) -> tuple[Role, ...]:
        """Return the head and, unless there are none, the workers."""
        settings = {
            "port": Macro.port("gcs"),
            "cpus": self.head_cpus,
            "gpus": 0,
            "object_store_memory": self._bytes("object_store_memory"),
            "nodes": ["head-0", *(f"worker-{number}" for number in range(self.workers))],
        }
        head = self._role("head", settings, ports=("gcs",), resources=Resources(cpus=self.head_cpus or None))
        if not self.workers:
            return (head,)
        return (head, self._worker({"address": f"{Macro.HOST}:{Macro.port('gcs')}"}))


@dataclass(frozen=True, kw_only=True)
class RayWorkers(RayNodes):
    """Worker nodes that join a Ray cluster while it runs, for as long as this service does.

    Stopping it drains them: they take no new tasks, and end when they are idle or `drain` seconds are over. What still
    ran there then is run again elsewhere, as Ray's ``max_retries`` says.

    Args:
        cluster: The address object of the cluster; `RayCluster`'s result, or a dictionary with ``address`` and
            ``dashboard_url`` of one that runs for ever.
        workers: How many worker nodes.
        drain: Seconds that a node may take for the tasks that run there when it is stopped; 0 to stop at once.

    The other parameters are those of `RayNodes` and `ServiceJob`. Its own address object is the cluster's, and keeps
    both alive.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "ray-workers"

    cluster: Mapping[str, Any]
    drain: float = 10.0

    def __post_init__(self) -> None:
        given: object = self.cluster
        known = given if isinstance(given, Mapping) else {}
        address, dashboard = known.get("address"), known.get("dashboard_url")
        wrong = not (isinstance(address, str) and _ADDRESS.match(address)) or has_macro(str(given))
        if wrong or not (isinstance(dashboard, str) and dashboard.startswith(("http://", "https://"))):
            raise self.invalid(
                "cluster", given, "a RayCluster's result, or {'address': 'host:port', 'dashboard_url': …}"
            )
        super().__post_init__()
        self._check_number("workers", 1)
        drain: object = self.drain
        if isinstance(drain, bool) or not isinstance(drain, int | float) or not 0 <= drain <= 15:  # noqa: PLR2004
            raise self.invalid("drain", drain, "seconds from 0 to 15, which a stop leaves")

    def services(self) -> tuple[ServiceRef, ...]:
        """Return the cluster, if it is a temporary one, and what else this uses."""
        return self._services_with("cluster")

    def roles(self) -> tuple[Role, ...]:
        """Return one role: the workers."""
        settings = {
            "address": self.cluster["address"],
            "dashboard_url": self.cluster["dashboard_url"],
            "client": self.cluster.get("client"),
            "drain": self.drain,
            "nodes": [f"worker-{number}" for number in range(self.workers)],
        }
        return (self._worker(settings),)
