"""Temporary Spark standalone clusters: a gang that stays, for the stages of one pipeline run to share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark.failures import FAILURE_RULES
from rallypoint.frameworks.spark.options import WrongOptionError, conf_of, secret_conf_of
from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.resources import Resources
from rallypoint.spec.service_job import ServiceJob

if TYPE_CHECKING:
    from rallypoint.spec.failure import FailureRule
    from rallypoint.spec.service import ServiceRef

_DRIVER = "rallypoint.frameworks.spark.cluster_driver"
_MIB = 1 << 20
_LEAST_MEMORY = 512 * _MIB  # bytes: Spark's smallest executor has 450 MiB
_MASTER = re.compile(r"^spark://[^\s/:,]+:\d{1,5}(,[^\s/:,]+:\d{1,5})*$")
# What this module says itself, so that the address and the names of the workers are true.
_OWN = re.compile(
    r"^spark\.(master\.(rest\.(enabled|port|host)|ui\.port)|worker\.(ui\.port|idPattern)|port\.maxRetries)$"
)


@dataclass(frozen=True, kw_only=True)
class SparkDaemons(ServiceJob):
    """What every service of Spark shares.

    Args:
        conf: Spark properties of its daemons, such as ``{"spark.worker.cleanup.enabled": True}``. No secrets: they are
            shown by ``rallypoint plan``.
        secret_conf: The names of `secrets` by Spark property, such as ``{"spark.authenticate.secret": "SECRET"}``. The
            values reach Spark in a file that nobody else can read.
        start_timeout: Seconds until it has to be ready.
        spark_home: Spark's folder on the hosts of the gang; None for the one of the ``pyspark`` package of the job's
            Python.
        java_home: Java's folder there; None for the environment's ``JAVA_HOME``, or the ``java`` on the path.

    Raises:
        InvalidJobError: A value is wrong.
    """

    own_rules: ClassVar[tuple[FailureRule, ...]] = FAILURE_RULES

    conf: Mapping[str, Any] = field(default_factory=dict)
    secret_conf: Mapping[str, str] = field(default_factory=dict)
    start_timeout: float = 120.0
    spark_home: str | None = None
    java_home: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._properties():
            if _OWN.match(name):
                raise self.invalid("conf", name, "properties that this service does not choose itself")
        for name in self.secret_conf.values():
            if name not in self.secrets:
                raise self.invalid("secret_conf", name, "the name of one of secrets=", fix="add its value there")
        timeout: object = self.start_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise self.invalid("start_timeout", timeout, "seconds above 0")
        for name in ("spark_home", "java_home"):
            path: object = getattr(self, name)
            if path is not None and (not isinstance(path, str) or not path.startswith("/") or has_macro(path)):
                raise self.invalid(name, path, "an absolute path on the hosts of the gang, or None")

    def _properties(self) -> dict[str, str]:
        """Return the properties that may be shown, and the names of variables for the others, by property."""
        checked = "conf"
        try:
            public = conf_of(self.conf, {})
            checked = "secret_conf"
            return {**public, **secret_conf_of(self.secret_conf)}
        except WrongOptionError as error:
            raise self.invalid(checked, error.got, error.expected, error.fix) from error

    def _role(self, name: str, settings: Mapping[str, Any], **more: Any) -> Role:
        shared = {
            "host": Macro.ADDRESS,
            "conf": conf_of(self.conf, {}),
            "secret_conf": dict(self.secret_conf),
            "start_timeout": self.start_timeout,
            "spark_home": self.spark_home,
            "java_home": self.java_home,
        }
        argv = (Macro.PYTHON, "-m", self._driver(), name, json.dumps({**shared, **settings}, sort_keys=True))
        return Role(name=name, argv=argv, env=dict(self.env), **more)

    def _driver(self) -> str:
        return _DRIVER

    def _mebibytes(self, name: str, least: int) -> int:
        value = getattr(self, name)
        expected = f'"{least // _MIB}MiB" or more: bytes, or a size such as "16GiB"'
        try:
            found = Resources(memory=value).memory_bytes
        except InvalidJobError:
            raise self.invalid(name, value, expected) from None
        if found is None or found < least:
            raise self.invalid(name, value, expected)
        return found // _MIB


@dataclass(frozen=True, kw_only=True)
class SparkNodes(SparkDaemons):
    """What `SparkCluster` and `SparkWorkers` share: equal workers.

    Args:
        workers: How many workers.
        cores_per_worker: Cores that each offers to executors.
        memory_per_worker: Memory that each offers to executors: bytes, or text such as ``"16GiB"``.
        daemon_memory: Heap of the master and of each worker themselves, which run no tasks.
        max_restarts: How often each worker that died is started anew; the cluster goes on without it meanwhile.

    The other parameters are those of `SparkDaemons` and `ServiceJob`.

    Raises:
        InvalidJobError: A value is wrong.
    """

    workers: int = 1
    cores_per_worker: int = 1
    memory_per_worker: str | int = "1GiB"
    daemon_memory: str | int = "512MiB"
    max_restarts: int = 3
    resources: Resources = field(default_factory=Resources, init=False, repr=False)  # follows from the above

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "cores_per_worker"):
            self._check_number(name, 1)
        self._check_number("max_restarts", 0)
        self._mebibytes("memory_per_worker", _LEAST_MEMORY)
        self._mebibytes("daemon_memory", 128 * _MIB)

    def roles(self) -> tuple[Role, ...]:
        """Return the processes that this job compiles to."""
        raise NotImplementedError  # pragma: no cover - a base only

    def _shared(self) -> dict[str, Any]:
        return {"attempt": Macro.ATTEMPT, "daemon_memory": self._mebibytes("daemon_memory", 0)}

    def _worker(self, settings: Mapping[str, Any]) -> Role:
        memory = self._mebibytes("memory_per_worker", 0)
        offer = {"cores": self.cores_per_worker, "memory": memory, "max_restarts": self.max_restarts}
        whole = (memory + self._mebibytes("daemon_memory", 0)) * _MIB
        asked = Resources(cpus=self.cores_per_worker, memory=whole)
        return self._role("worker", {**self._shared(), **offer, **settings}, replicas=self.workers, resources=asked)

    def _names(self) -> list[str]:
        return [f"worker-{number}" for number in range(self.workers)]


@dataclass(frozen=True, kw_only=True)
class SparkCluster(SparkNodes):
    """A temporary Spark standalone cluster: one master and workers.

    Its stage ends when every worker has joined, with the address object ``{"master": "spark://host:port", "ui":
    "http://…", "rest": "http://…", "workers": n, …}``. Give that object to the jobs that run on it (``master=`` of
    Spark jobs, ``uses=`` of any other): whoever waits for them keeps the cluster alive.

    A worker that dies is started anew; when the master dies, the cluster is lost and its stage has failed. Logs and
    work folders of executors lie in the attempt's folder; their temporary files are removed when the cluster is
    stopped. As every standalone cluster without authentication, it runs code for whoever reaches its ports: on this
    machine it listens on 127.0.0.1 only.

    Args:
        workers: How many workers.
        rest: Whether the master takes applications over REST, which ``deploy_mode="cluster"`` needs.

    The other parameters are those of `SparkNodes`, `SparkDaemons` and `ServiceJob`.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "spark-cluster"
    requires: ClassVar[tuple[str, ...]] = ()  # its driver looks for Spark itself: `spark_home` needs no package

    workers: int = 2
    rest: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rest, bool):
            raise self.invalid("rest", self.rest, "True or False")
        known = self._properties()
        if self.rest and known.get("spark.authenticate") == "true" and not known.get("spark.master.rest.filters"):
            fix = "anybody could submit over REST: set rest=False, or guard it with spark.master.rest.filters"
            raise self.invalid("rest", True, "False where spark.authenticate is true", fix)

    def roles(self) -> tuple[Role, ...]:
        """Return the master and the workers."""
        ports = ("master", "ui", "rest")
        settings = {
            "port": Macro.port("master"),
            "ui": Macro.port("ui"),
            "rest": Macro.port("rest"),
            "wanted": self._names(),
        }
        if not self.rest:
            settings["rest"] = ""
        memory = Resources(memory=self._mebibytes("daemon_memory", 0) * _MIB)
        master = self._role("master", {**self._shared(), **settings}, ports=ports, resources=memory)
        return (master, self._worker({"address": f"spark://{Macro.HOST}:{Macro.port('master')}"}))


@dataclass(frozen=True, kw_only=True)
class SparkWorkers(SparkNodes):
    """Workers that join a Spark standalone cluster while it runs, for as long as this service does.

    Running applications get executors there at once, up to what they asked for. When it is stopped, Spark runs again
    elsewhere what still ran or lay there.

    Args:
        cluster: The address object of the cluster; `SparkCluster`'s result, or a dictionary with ``master`` and ``ui``
            of one that runs for ever.
        workers: How many workers.

    The other parameters are those of `SparkNodes`, `SparkDaemons` and `ServiceJob`. Its own address object is the
    cluster's, and keeps both alive.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "spark-workers"
    requires: ClassVar[tuple[str, ...]] = ()

    cluster: Mapping[str, Any]

    def __post_init__(self) -> None:
        given: object = self.cluster
        known = given if isinstance(given, Mapping) else {}
        master, page = known.get("master"), known.get("ui")
        wrong = not (isinstance(master, str) and _MASTER.match(master)) or has_macro(str(given))
        if wrong or not (isinstance(page, str) and page.startswith(("http://", "https://"))):
            expected = "a SparkCluster's result, or {'master': 'spark://host:port', 'ui': 'http://…'}"
            raise self.invalid("cluster", given, expected)
        super().__post_init__()

    def services(self) -> tuple[ServiceRef, ...]:
        """Return the cluster, if it is a temporary one, and what else this uses."""
        return self._services_with("cluster")

    def roles(self) -> tuple[Role, ...]:
        """Return one role: the workers."""
        known = {name: self.cluster[name] for name in ("master", "ui", "rest") if self.cluster.get(name)}
        return (self._worker({"address": known["master"], "cluster": known, "wanted": self._names()}),)
