"""Temporary Dask clusters: a gang that stays, for the stages of one pipeline run to share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.cluster.rules import daemon_rules
from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.resources import Resources
from rallypoint.spec.service_job import ServiceJob

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.spec.failure import FailureRule

_DRIVER = "rallypoint.frameworks.dask.cluster_driver"


@dataclass(frozen=True, kw_only=True)
class DaskCluster(ServiceJob):
    """A temporary Dask cluster: one scheduler and workers.

    Its stage ends when every worker has joined, with the address object ``{"address": "tcp://host:port",
    "dashboard_url": "http://…", "workers": n, …}``. Give that object to the jobs that run on it (``cluster=`` of Dask
    jobs, ``uses=`` of any other): whoever waits for them keeps the cluster alive.

    A worker process that dies is started anew by Dask's nanny; when the scheduler dies, the cluster is lost and its
    stage has failed. As every Dask cluster without TLS, it runs code for whoever reaches its ports: on this machine it
    listens on 127.0.0.1 only.

    Args:
        workers: How many workers.
        threads_per_worker: Threads of each; more than one for tasks that release Python's interpreter lock.
        memory_per_worker: Memory above which each worker spills, pauses and is started anew: bytes, or text such as
            ``"16GiB"``; None is Dask's own choice, an equal part of the host's.
        start_timeout: Seconds until every worker has to have joined.

    The other parameters are those of `ServiceJob`.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "dask-cluster"
    requires: ClassVar[tuple[str, ...]] = ("dask", "distributed")
    own_rules: ClassVar[tuple[FailureRule, ...]] = daemon_rules("a process of the Dask cluster")

    workers: int = 2
    threads_per_worker: int = 1
    memory_per_worker: str | int | None = None
    start_timeout: float = 120.0
    resources: Resources = field(default_factory=Resources, init=False, repr=False)  # follows from the above

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "threads_per_worker"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise self.invalid(name, value, "a whole number, 1 or more")
        timeout: object = self.start_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise self.invalid("start_timeout", timeout, "seconds above 0")
        self._worker_resources()

    def roles(self) -> tuple[Role, ...]:
        """Return the scheduler and the workers."""
        port, asked = Macro.port("scheduler"), self._worker_resources()
        settings = {"workers": [f"worker-{number}" for number in range(self.workers)], "port": port}
        scheduler = self._role("scheduler", settings, ports=("scheduler",))
        offer = {"scheduler": f"tcp://{Macro.HOST}:{port}", "threads": self.threads_per_worker}
        worker = {**offer, "memory": asked.memory_bytes}
        return (scheduler, self._role("worker", worker, replicas=self.workers, resources=asked))

    def _worker_resources(self) -> Resources:
        try:
            return Resources(cpus=self.threads_per_worker, memory=self.memory_per_worker)
        except InvalidJobError:
            expected = 'bytes, a size such as "16GiB", or None'
            raise self.invalid("memory_per_worker", self.memory_per_worker, expected) from None

    def _role(self, name: str, settings: Mapping[str, Any], **more: Any) -> Role:
        words = {"host": Macro.ADDRESS, "start_timeout": self.start_timeout, **settings}
        argv = (Macro.PYTHON, "-m", _DRIVER, name, json.dumps(words, sort_keys=True))
        return Role(name=name, argv=argv, env=dict(self.env), **more)
