"""Temporary Spark Connect servers: Spark's driver as a service, whose clients need neither Java nor Spark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.frameworks.spark.cluster import SparkDaemons
from rallypoint.frameworks.spark.options import (
    WrongOptionError,
    count_of,
    is_local,
    list_of,
    master_of,
    memory_of,
    packages_of,
)
from rallypoint.spec.gang import Macro, Role
from rallypoint.spec.resources import Resources
from rallypoint.spec.service import as_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rallypoint.spec.service import ServiceRef

_OWNED = {
    "spark.master": "master",
    "spark.driver.memory": "driver_memory",
    "spark.executor.memory": "executor_memory",
    "spark.executor.cores": "executor_cores",
    "spark.cores.max": "total_executor_cores",
    "spark.jars": "jars",
    "spark.jars.packages": "packages",
}


@dataclass(frozen=True, kw_only=True)
class SparkConnectServer(SparkDaemons):
    """A temporary Spark Connect server: one Spark application that many clients share.

    Its stage ends when the server answers, with the address object ``{"remote": "sc://host:port", "ui": "http://…",
    …}``. Give ``remote`` to the Spark jobs that use it (``connect=``), and the object to their ``uses``.

    Whoever reaches its port runs code as this user. On this machine it listens on 127.0.0.1; elsewhere give it, and
    its clients, the same secret ``SPARK_CONNECT_AUTHENTICATE_TOKEN``.

    Args:
        master: What runs its tasks: ``"local[*]"`` (the default), a master's URL, or a SparkCluster's result, which
            lives on as long as this service.
        driver_memory: The server's heap, such as ``"2g"``.
        executor_memory: Each executor's heap.
        executor_cores: Each executor's cores.
        total_executor_cores: Cores in all, on a standalone cluster: without it, an application takes every free one.
        packages: Maven coordinates, ``"group:artifact:version"``.
        jars: Jars for driver and executors.

    The other parameters are those of `SparkDaemons` and `ServiceJob`.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "spark-connect"
    requires: ClassVar[tuple[str, ...]] = ()

    master: str | Mapping[str, Any] | None = None
    driver_memory: str = "1g"
    executor_memory: str | None = None
    executor_cores: int | str | None = None
    total_executor_cores: int | str | None = None
    packages: str | Sequence[str] = ()
    jars: str | Sequence[str] = ()
    resources: Resources = field(default_factory=Resources, init=False, repr=False)  # follows from the above

    def __post_init__(self) -> None:
        cluster = as_object(self.master)
        if cluster is not None:
            object.__setattr__(self, "master", cluster)
        super().__post_init__()
        if not self._read("driver_memory", memory_of):
            raise self.invalid("driver_memory", self.driver_memory, 'a size with its unit, such as "2g"')
        for name in self._properties():
            if name in _OWNED:
                raise self.invalid("conf", name, f"it as {_OWNED[name]}=")
            if name.startswith("spark.connect.grpc.binding.") or name == "spark.ui.port":
                raise self.invalid("conf", name, "properties that this service does not choose itself")
        self._options()

    def services(self) -> tuple[ServiceRef, ...]:
        """Return the cluster that it runs on, if it is a temporary one, and what else this uses."""
        return self._services_with("master")

    def roles(self) -> tuple[Role, ...]:
        """Return one role of one process: the server."""
        ports = ("connect", "ui")
        settings = {"options": self._options(), "port": Macro.port("connect"), "ui": Macro.port("ui")}
        return (self._role("server", settings, ports=ports, resources=self._asked()),)

    def _driver(self) -> str:
        return "rallypoint.frameworks.spark.connect_driver"

    def _options(self) -> dict[str, str]:
        readers: dict[str, tuple[str, Callable[[object], Any]]] = {
            "master": ("spark.master", master_of),
            "driver_memory": ("spark.driver.memory", memory_of),
            "executor_memory": ("spark.executor.memory", memory_of),
            "executor_cores": ("spark.executor.cores", count_of),
            "total_executor_cores": ("spark.cores.max", count_of),
            "packages": ("spark.jars.packages", lambda value: ",".join(packages_of(value))),
            "jars": ("spark.jars", lambda value: ",".join(list_of(value))),
        }
        found = {key: self._read(name, reader) for name, (key, reader) in readers.items()}
        return {key: str(value) for key, value in found.items() if value not in (None, "")}

    def _read(self, name: str, reader: Callable[[object], Any]) -> Any:
        try:
            return reader(getattr(self, name))
        except WrongOptionError as error:
            raise self.invalid(name, error.got, error.expected, error.fix) from error

    def _asked(self) -> Resources:
        """Return what the server asks of its host; a local one's cores are those of its master's URL."""
        found = self._options()
        cores = found["spark.master"].removeprefix("local[").partition("]")[0].partition(",")[0]
        cpus = int(cores) if is_local(found["spark.master"]) and cores.isdigit() and int(cores) else None
        return Resources(cpus=cpus, memory=int(found["spark.driver.memory"].rstrip("m")) << 20)
