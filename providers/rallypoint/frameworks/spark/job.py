"""The job that runs code with a Spark session, with Spark's driver inside of the job, or sent to the cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.frameworks.spark import options
from rallypoint.frameworks.spark.failures import FAILURE_RULES
from rallypoint.frameworks.spark.hive import CATALOG, Hive
from rallypoint.frameworks.spark.s3a import S3A
from rallypoint.spec.entry import Function, Jar, Module, Script
from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.job import Job
from rallypoint.spec.service import SERVICE, as_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rallypoint.spec.failure import FailureRule
    from rallypoint.spec.gang import Gang

CLIENT, CLUSTER = "client", "cluster"
# Which property an option of the job sets, and how its value is read.
_SIZES = {"driver_memory": "spark.driver.memory", "executor_memory": "spark.executor.memory"}
_COUNTS = {
    "driver_cores": "spark.driver.cores",
    "executor_cores": "spark.executor.cores",
    "num_executors": "spark.executor.instances",
    "total_executor_cores": "spark.cores.max",
}
_LISTS = {
    "exclude_packages": "spark.jars.excludes",
    "repositories": "spark.jars.repositories",
    "jars": "spark.jars",
    "py_files": "spark.submit.pyFiles",
    "files": "spark.files",
    "archives": "spark.archives",
    "packages": "spark.jars.packages",
}
_TEXTS = {
    "name": "spark.app.name",
    "queue": "spark.yarn.queue",
    "principal": "spark.kerberos.principal",
    "keytab": "spark.kerberos.keytab",
    "driver_class_path": "spark.driver.extraClassPath",
}
_OWNED = {
    **{name: option for option, name in (_SIZES | _COUNTS | _LISTS | _TEXTS).items()},
    "spark.master": "master",
    "spark.submit.deployMode": "deploy_mode",
    "spark.remote": "connect",
    CATALOG: "hive",
}
_OTHER_TEXTS = (
    "properties_file", "proxy_user", "keytab_secret", "history_server", "resource_manager", "spark_home", "java_home",
)  # fmt: skip
# What only a Spark driver in the job, or one that is submitted, can do anything with.
_NOT_WITH_CONNECT = (
    *_SIZES, *_COUNTS, "packages", "exclude_packages", "repositories", "queue", "principal", "keytab",
    "driver_class_path", "properties_file", "proxy_user", "keytab_secret", "history_server", "resource_manager",
    "spark_home", "java_home", "hive", "s3a", "ticket_cache",
)  # fmt: skip
_DRIVERS = {CLIENT: "rallypoint.frameworks.spark.driver", CLUSTER: "rallypoint.frameworks.spark.cluster_mode"}
_HEAP_SHARE = 0.6  # of a local Spark's memory; Python, its workers and the JVM's own take the rest


@dataclass(frozen=True, kw_only=True)
class SparkJob(Job):
    """A script, module, function or jar that runs with Spark.

    In client mode the job's process is Spark's driver. A function gets the session through a parameter called
    ``spark``; a script or module calls ``SparkSession.builder.getOrCreate()``, and needs to set nothing on it. A jar
    is run by ``spark-submit``.

    Args:
        entry: The code, or a `Jar` with its main class.
        master: ``"local[*]"`` (the default; of the size that `resources` says), ``"spark://host:port"``, ``"yarn"``,
            ``"k8s://https://host:port"``, or the result of a SparkCluster stage.
        deploy_mode: ``"client"`` for a driver in the job; ``"cluster"`` to submit a script or jar to the cluster, which
            runs the driver, and to follow it there.
        connect: The ``"sc://host:port"`` of a Spark Connect server, or the result of a SparkConnectServer stage,
            instead of a master. The job's Python then needs only ``pyspark-client``, and no Java.
        name: The application's name; the stage's by default.
        conf: Spark properties, without secrets.
        secret_conf: For a Spark property with a secret value, the name of the variable in `secrets` that holds it. It
            reaches Spark by a file that only this user can read, and its UI hides it.
        properties_file: A file of properties on the job's host; `conf` comes before it, ``spark-defaults.conf`` after.
        packages: Maven coordinates, ``"group:artifact:version"``.
        exclude_packages: Dependencies of `packages` to leave out, ``"group:artifact"``.
        repositories: Maven repositories beside Maven Central.
        jars: Jars for driver and executors. Lists may also be text with commas, as spark-submit takes them.
        py_files: Python files, zips and eggs for driver and executors.
        files: Files for the executors' working folders.
        archives: Archives that are unpacked there; ``"environment.tar.gz#environment"`` names the folder.
        driver_class_path: Entries of the driver's class path.
        driver_memory: The driver's heap, such as ``"2g"``. For a local Spark it follows from `resources` by default.
        driver_cores: The driver's cores in cluster mode.
        executor_memory: Each executor's heap.
        executor_cores: Each executor's cores.
        num_executors: How many executors, on YARN and Kubernetes.
        total_executor_cores: Cores in all, on a standalone cluster.
        queue: YARN's queue.
        principal: A Kerberos principal.
        keytab: The path of its keytab on the job's host.
        keytab_secret: Instead of `keytab`, the name of the variable in `secrets` that holds it in base64.
        ticket_cache: Whether to log in with Kerberos' ticket cache instead of a keytab.
        proxy_user: The user to impersonate.
        hive: Whether tables are those of a Hive metastore: True for an embedded one below the stage's folder, or the
            settings of another (`Hive`).
        s3a: How ``s3a://`` paths are reached. Hadoop's connector for them is not part of Spark: add it with `packages`.
        history_server: The address of a Spark history server, for a link that outlives the application.
        resource_manager: The REST API of the cluster in cluster mode: YARN's ``http://rm:8088``, or that of a
            standalone master's submission server, ``http://master:6066``.
        spark_home: A Spark distribution on the job's host; by default the one in the ``pyspark`` package, or that of
            the variable ``SPARK_HOME``.
        java_home: The Java to run it with; by default ``JAVA_HOME``, then ``java`` on the path.
        connect_timeout: Seconds to wait until a standalone master or a Connect server can be reached.

    Raises:
        InvalidJobError: A value is wrong; the message says which, and what it takes.
    """

    kind: ClassVar[str] = "spark"
    own_rules: ClassVar[tuple[FailureRule, ...]] = FAILURE_RULES
    requires: ClassVar[tuple[str, ...]] = ("pyspark",)
    entries: ClassVar[tuple[type, ...]] = (Script, Module, Function, Jar)

    master: str | Mapping[str, Any] | None = None
    deploy_mode: str = CLIENT
    connect: str | Mapping[str, Any] | None = None
    name: str | None = None
    conf: Mapping[str, Any] = field(default_factory=dict)
    secret_conf: Mapping[str, str] = field(default_factory=dict)
    properties_file: str | None = None
    packages: str | Sequence[str] = ()
    exclude_packages: str | Sequence[str] = ()
    repositories: str | Sequence[str] = ()
    jars: str | Sequence[str] = ()
    py_files: str | Sequence[str] = ()
    files: str | Sequence[str] = ()
    archives: str | Sequence[str] = ()
    driver_class_path: str | None = None
    driver_memory: str | None = None
    driver_cores: int | str | None = None
    executor_memory: str | None = None
    executor_cores: int | str | None = None
    num_executors: int | str | None = None
    total_executor_cores: int | str | None = None
    queue: str | None = None
    principal: str | None = None
    keytab: str | None = None
    keytab_secret: str | None = None
    ticket_cache: bool = False
    proxy_user: str | None = None
    hive: bool | Hive = False
    s3a: S3A | None = None
    history_server: str | None = None
    resource_manager: str | None = None
    spark_home: str | None = None
    java_home: str | None = None
    connect_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("master", "connect"):
            found = as_object(getattr(self, name))
            if found is not None:
                object.__setattr__(self, name, found)
                if SERVICE in found and found not in self.uses:
                    object.__setattr__(self, "uses", (*self.uses, found))
        super().__post_init__()
        self._check_texts()
        self._check_kerberos()
        if self._read("connect", options.connect_of):
            self._check_connect()
        self._check_mode(self._read("master", options.master_of))
        self.properties()
        self.secret_properties()

    def properties(self) -> dict[str, str]:
        """Return the Spark properties that the job sets, as text; no secret is in them.

        Raises:
            InvalidJobError: A value is wrong.
        """
        found: dict[str, str] = self._read("conf", lambda value: options.conf_of(value, _OWNED))
        for name, key in _SIZES.items():
            found |= _given(key, self._read(name, options.memory_of))
        for name, key in _COUNTS.items():
            found |= _given(key, self._read(name, options.count_of))
        readers: dict[str, Callable[[object], list[str]]] = {
            "packages": options.packages_of,
            "exclude_packages": options.exclusions_of,
        }
        for name, key in _LISTS.items():
            found |= _given(key, ",".join(self._read(name, readers.get(name, options.list_of))))
        for name, key in _TEXTS.items():
            found |= _given(key, getattr(self, name))
        if self.hive:
            found = (self.hive if isinstance(self.hive, Hive) else Hive()).conf() | found
        if self.ticket_cache:
            found["spark.kerberos.renewal.credentials"] = "ccache"
        return {**self.s3a.conf(), **found} if self.s3a else found

    def secret_properties(self) -> dict[str, str]:
        """Return, for each property with a secret value, the variable that holds it.

        Raises:
            InvalidJobError: One is no property, or no variable's name.
        """
        own: dict[str, str] = self._read("secret_conf", options.secret_conf_of)
        return {**self.s3a.secret_conf(), **own} if self.s3a else own

    def settings(self) -> dict[str, Any]:
        """Return what the driver has to know, as a JSON object; no secret is in it."""
        connect = self._read("connect", options.connect_of)
        master = None if connect else self._read("master", options.master_of)
        conf = self.properties()
        if master is not None and options.is_local(master):
            master, conf = self._sized(master, conf)
        found = {
            "master": master,
            "connect": connect,
            "deploy_mode": self.deploy_mode,
            "conf": conf,
            "secret_conf": self.secret_properties(),
            "connect_timeout": self.connect_timeout,
        }
        if self.deploy_mode == CLUSTER:
            found |= self._for_submission()
        texts = {name: getattr(self, name) for name in _OTHER_TEXTS if getattr(self, name)}
        return {name: value for name, value in (found | texts).items() if value not in (None, {})}

    def _for_submission(self) -> dict[str, Any]:
        """Return what only cluster mode has to know: the cluster's other addresses, and the names of variables."""
        known = as_object(self.master) or {}
        cluster = {name: known[name] for name in ("ui", "rest") if known.get(name)}
        return {"cluster": cluster, "env": sorted({*self.env, *self.secrets})}

    def roles(self) -> tuple[Role, ...]:
        """Return one role of one process: Spark's driver, or what submits it to the cluster and follows it."""
        settings = json.dumps(self.settings(), sort_keys=True)
        argv = (Macro.PYTHON, "-m", _DRIVERS[self.deploy_mode], settings, *self.code.command())
        env = dict(self.env)
        for variable, value in (("SPARK_HOME", self.spark_home), ("JAVA_HOME", self.java_home)):
            env |= _given(variable, value)
        return (Role(name="driver", argv=argv, env=env, resources=self.resources),)

    def plan(self) -> Gang:
        """Return the gang: every command line, without starting or importing anything.

        Raises:
            InvalidJobError: A property's secret is not among the job's variables, if there are any.
            InvalidEntryError: The entry's function or arguments cannot be pickled.
        """
        gang = super().plan()
        if self.s3a:
            gang = gang.with_more(secrets=self.s3a.secrets())
        self._check_secrets({*gang.secrets, *self.env})
        if self.spark_home:  # a distribution brings its own pyspark
            gang = replace(gang, requires=())
        if self.deploy_mode == CLUSTER:  # the script may be where only the cluster sees it
            gang = replace(gang, needs_files=())
        return gang

    def _check_secrets(self, known: set[str]) -> None:
        if not self.secrets:  # a plan that is only looked at may be without them; the driver tells what is missing
            return
        wanted = [("secret_conf", variable) for variable in self.secret_properties().values()]
        for name, variable in (*wanted, ("keytab_secret", self.keytab_secret)):
            if variable and variable not in known:
                raise self.invalid(name, variable, "the name of a variable in secrets=")

    # Checks -----------------------------------------------------------------------------------------------------------

    def _read(self, name: str, reader: Callable[[object], Any]) -> Any:
        try:
            return reader(getattr(self, name))
        except options.WrongOptionError as error:
            raise self.invalid(name, error.got, error.expected, error.fix) from error

    def _check_texts(self) -> None:
        for name in (*_TEXTS, *_OTHER_TEXTS, "deploy_mode"):
            text: object = getattr(self, name)
            if text is None or text == "":
                object.__setattr__(self, name, CLIENT if name == "deploy_mode" else None)
            elif not isinstance(text, str) or has_macro(text) or "\0" in text or "\n" in text:
                raise self.invalid(name, text, "one line of text without ${rallypoint:…}, or None")
        for name in ("history_server", "resource_manager"):
            url = getattr(self, name)
            if url and not url.startswith(("http://", "https://")):
                raise self.invalid(name, url, '"http://host:port" or "https://host:port"')
        if not isinstance(self.hive, bool | Hive):
            raise self.invalid("hive", self.hive, "True, False or a Hive")
        store: object = self.s3a
        if store is not None and not isinstance(store, S3A):
            raise self.invalid("s3a", store, "an S3A or None")
        if not isinstance(self.ticket_cache, bool):
            raise self.invalid("ticket_cache", self.ticket_cache, "True or False")
        timeout: object = self.connect_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            raise self.invalid("connect_timeout", timeout, "seconds above 0")

    def _check_kerberos(self) -> None:
        if self.keytab and self.keytab_secret:
            raise self.invalid("keytab_secret", self.keytab_secret, "one of keytab= and keytab_secret=")
        if (self.keytab or self.keytab_secret) and not self.principal:
            raise self.invalid("principal", None, "the principal of the keytab")
        if (self.keytab or self.keytab_secret) and (self.proxy_user or self.ticket_cache):
            other = "proxy_user" if self.proxy_user else "ticket_cache"
            raise self.invalid(other, getattr(self, other), "no keytab beside it", "Spark takes one of them")

    def _check_connect(self) -> None:
        if self.master not in (None, ""):
            raise self.invalid("master", self.master, "nothing beside connect=", "the server has its own master")
        if isinstance(self.code, Jar):
            raise self.invalid("entry", self.code, "Python code beside connect=", "a jar needs a driver: give master=")
        if self.deploy_mode != CLIENT:
            raise self.invalid("deploy_mode", self.deploy_mode, f'"{CLIENT}" beside connect=')
        for name in _NOT_WITH_CONNECT:
            if getattr(self, name) not in (None, "", (), [], False):
                fix = "the server that connect= names was started with its own"
                raise self.invalid(name, getattr(self, name), "nothing beside connect=", fix)

    def _check_mode(self, master: str) -> None:
        if self.deploy_mode not in _DRIVERS:
            raise self.invalid("deploy_mode", self.deploy_mode, f'"{CLIENT}" or "{CLUSTER}"')
        if self.deploy_mode == CLIENT:
            return
        if options.is_local(master):
            raise self.invalid("deploy_mode", CLUSTER, f'"{CLIENT}" with the master {master}')
        code = self.code
        if master.startswith("spark://") and not isinstance(code, Jar):
            fix = f'standalone clusters run the drivers of jars alone: use deploy_mode="{CLIENT}"'
            raise self.invalid("entry", code, f'a Jar with deploy_mode="{CLUSTER}" on a standalone cluster', fix)
        if master.startswith("spark://") and self.secret_properties():
            fix = "the driver has the secrets= of the job in its environment"
            expected = f'nothing with deploy_mode="{CLUSTER}" on a standalone cluster, which shows properties in argv'
            raise self.invalid("secret_conf", list(self.secret_properties()), expected, fix)
        if not isinstance(code, Jar | Script):
            fix = f'the driver runs on the cluster, where only Spark is: use deploy_mode="{CLIENT}"'
            raise self.invalid("entry", code, f'a Script or a Jar with deploy_mode="{CLUSTER}"', fix)

    def _sized(self, master: str, conf: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Return a local master of as many threads, and a driver of as much heap, as `resources` leaves room for."""
        if master == options.LOCAL and self.resources.cpus:
            master = f"local[{max(1, int(self.resources.cpus))}]"
        if self.resources.memory_bytes and "spark.driver.memory" not in conf:
            heap = int(self.resources.memory_bytes * _HEAP_SHARE) >> 20
            conf["spark.driver.memory"] = f"{max(options.LEAST_HEAP, heap)}m"
        return master, conf


def _given(key: str, value: object) -> dict[str, str]:
    return {} if value in (None, "") else {key: str(value)}
