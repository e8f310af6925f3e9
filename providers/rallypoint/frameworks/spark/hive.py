"""Settings of the Hive metastore that Spark keeps its tables in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from rallypoint.errors import InvalidJobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CATALOG = "spark.sql.catalogImplementation"
URIS = "spark.hadoop.hive.metastore.uris"
WAREHOUSE = "spark.sql.warehouse.dir"
_DATABASE = "spark.hadoop.javax.jdo.option.ConnectionURL"
_THRIFT = re.compile(r"^thrift://[^\s/,:]+:\d+$")
_FOLDER = re.compile(r"^[\w./@:+=~-]+$")  # it stands in the URL of a database, where others have a meaning
_OWN_METASTORE = (URIS, _DATABASE, "spark.hadoop.hive.metastore.client.factory.class")


@dataclass(frozen=True, kw_only=True)
class Hive:
    """Where the metastore and its tables are.

    With nothing given, the metastore is an embedded Derby database below the stage's own folder, and its tables lie
    beside it: they are for the attempts of one stage. With `folder`, stages on one host share them, one after another:
    one process at a time can open an embedded database. A metastore service has no such limit.

    Args:
        metastore: The address of a metastore service, ``"thrift://host:9083"``; several for one that is replicated.
        warehouse: The folder or URI of managed tables that are made; the metastore's own by default.
        folder: An absolute path for an embedded metastore and its warehouse.
        version: The version of a metastore service, such as ``"3.1.3"``, where it is not Spark's own.
        jars: Where its client's jars are: ``"builtin"``, ``"maven"``, or paths, which Spark reads as ``path``.
        kerberos_principal: The principal of a metastore service that asks for Kerberos.
        options: Further Hive settings by name, such as ``{"hive.exec.dynamic.partition.mode": "nonstrict"}``.

    Raises:
        InvalidJobError: A value is wrong.
    """

    metastore: str | Sequence[str] = ()
    warehouse: str | None = None
    folder: str | None = None
    version: str | None = None
    jars: str | Sequence[str] | None = None
    kerberos_principal: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for address in self.addresses:
            if not _THRIFT.match(address):
                raise self._wrong("metastore", address, '"thrift://host:9083", one or more')
        self._check_folder()
        for name in ("version", "kerberos_principal"):
            if getattr(self, name) and not self.addresses:
                raise self._wrong(name, getattr(self, name), "nothing without metastore=")
        if self.jars and not self.version:
            raise self._wrong("version", None, "the version of the metastore that jars= are for")
        for name in self.options:
            if name.startswith("spark.") or re.search(r"password|secret", name, re.IGNORECASE):
                raise self._wrong(
                    "options", name, "names of Hive's own settings without secrets; a job has secret_conf="
                )

    def _check_folder(self) -> None:
        if self.folder is None:
            return
        if self.addresses:
            raise self._wrong("folder", self.folder, "nothing beside metastore=: it is for an embedded one")
        if not self.folder.startswith("/") or not _FOLDER.match(self.folder):
            raise self._wrong("folder", self.folder, "an absolute path of letters, digits and ./@:+=~-")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of the metastore service; none for an embedded one."""
        given = self.metastore.split(",") if isinstance(self.metastore, str) else self.metastore
        return tuple(address.strip() for address in given if address.strip())

    def conf(self) -> dict[str, str]:
        """Return the Spark properties; those of an embedded metastore without a folder follow in the job."""
        found = {CATALOG: "hive"}
        if self.addresses:
            found[URIS] = ",".join(self.addresses)
        if self.folder is not None:
            found |= embedded(self.folder)
        if self.warehouse:
            found[WAREHOUSE] = self.warehouse
        if self.version:
            found["spark.sql.hive.metastore.version"] = self.version
        found |= self._jars()
        if self.kerberos_principal:
            found["spark.hadoop.hive.metastore.sasl.enabled"] = "true"
            found["spark.hadoop.hive.metastore.kerberos.principal"] = self.kerberos_principal
        for name, value in self.options.items():
            found[f"spark.hadoop.{name}"] = str(value).lower() if isinstance(value, bool) else str(value)
        return found

    def _jars(self) -> dict[str, str]:
        if not self.jars:
            return {}
        if isinstance(self.jars, str) and self.jars in {"builtin", "maven"}:
            return {"spark.sql.hive.metastore.jars": str(self.jars)}
        paths = self.jars if isinstance(self.jars, str) else ",".join(self.jars)
        return {"spark.sql.hive.metastore.jars": "path", "spark.sql.hive.metastore.jars.path": paths}

    def _wrong(self, name: str, got: object, expected: str) -> InvalidJobError:
        return InvalidJobError("Hive", name, got=got, expected=expected)


def hive_of_connection(host: str | None, port: int | None, extra: Mapping[str, Any]) -> Hive:
    """Return the metastore that a ``hive_metastore`` connection stands for, in the fields that Airflow documents.

    Args:
        host: The host, or several with commas.
        port: The port, 9083 by default.
        extra: The connection's JSON: ``authMechanism`` ``GSSAPI`` with ``kerberos_service_name`` (or ``principal``),
            and, beside Airflow's own, ``warehouse`` and ``metastore_version``.

    Raises:
        InvalidJobError: A field is wrong.
    """
    names = [name.strip() for name in (host or "").split(",") if name.strip()]
    if not names:
        raise InvalidJobError("Hive", "metastore", got=host, expected="a host in the connection")
    principal = extra.get("principal") or None
    if extra.get("authMechanism") == "GSSAPI" and principal is None:
        principal = (
            f"{extra.get('kerberos_service_name') or 'hive'}/_HOST@{extra['realm']}" if extra.get("realm") else None
        )
        if principal is None:
            expected = '"hive/_HOST@EXAMPLE.COM" as principal, or a realm, in the extra of a connection with GSSAPI'
            raise InvalidJobError("Hive", "kerberos_principal", got=None, expected=expected)
    bare = [name.removeprefix("thrift://") for name in names]
    return Hive(
        metastore=[f"thrift://{name}" if ":" in name else f"thrift://{name}:{port or 9083}" for name in bare],
        warehouse=extra.get("warehouse") or None,
        version=extra.get("metastore_version") or None,
        kerberos_principal=principal,
    )


def embedded(folder: str) -> dict[str, str]:
    """Return the properties of an embedded metastore in a folder.

    Args:
        folder: An absolute path. The database, its log and the warehouse get names in it.
    """
    place = PurePosixPath(folder)
    return {
        _DATABASE: f"jdbc:derby:;databaseName={place}/metastore_db;create=true",
        WAREHOUSE: f"file://{place}/warehouse",
        # The default options come before those that a job has, so both are there.
        "spark.driver.defaultJavaOptions": f"-Dderby.stream.error.file={place}/derby.log",
    }


def with_defaults(conf: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return properties with those of an embedded metastore, if they ask for Hive and name no metastore.

    Args:
        conf: Spark's properties.
        folder: The folder for it.
    """
    if conf.get(CATALOG) != "hive" or any(name in conf for name in _OWN_METASTORE):
        return dict(conf)
    if not _FOLDER.match(folder):
        expected = "a path of letters, digits and ./@:+=~- for the embedded metastore: say hive=Hive(folder=…)"
        raise InvalidJobError("SparkJob", "hive", got=folder, expected=expected)
    return embedded(folder) | dict(conf)
