"""Connections of Airflow's own apache-spark provider, as options of a Spark job: they work unchanged.

The provider's hooks are asked for what they know: how host, port and extra of the types ``spark`` and ``spark_connect``
become a master or a server's URL. The keytab and the token of a connection become secrets of the job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.log import mask_secret

from rallypoint.errors import InvalidJobError

if TYPE_CHECKING:
    from airflow.sdk import Connection

SPARK, SPARK_CONNECT = "spark", "spark_connect"
KEYTAB = "RP_SPARK_KEYTAB"  # the variable of the job with the connection's keytab
TOKEN = "SPARK_CONNECT_AUTHENTICATE_TOKEN"  # noqa: S105 - the name of the variable that Spark's client reads
_ELSEWHERE = "kept by the job"  # stands for the keytab, which the hook would write to a file that others can read


@dataclass(frozen=True)
class SparkConnection:
    """What a connection says.

    Args:
        options: Options of a `rallypoint.SparkJob`.
        secrets: Values by the variable that the job gets.
    """

    options: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)


def read(conn_id: str, *, deploy_mode: str | None = None, conf: Any = None) -> SparkConnection:
    """Return what a connection says of where a job runs.

    Args:
        conn_id: A connection of the type ``spark`` (or one made from a URI such as ``k8s://…``) or ``spark_connect``.
        deploy_mode: The task's own, which comes before the connection's.
        conf: The task's own properties, of which the hook reads the namespace.

    Raises:
        AirflowNotFoundException: There is no such connection; the provider's operator would take YARN instead.
        InvalidJobError: The provider is not installed, or the connection is wrong.
    """
    connection = BaseHook.get_connection(conn_id)
    if connection.conn_type == SPARK_CONNECT:
        return _of_connect(connection)
    return _of_spark(connection, deploy_mode=deploy_mode, conf=conf if isinstance(conf, dict) else None)


def _of_spark(connection: Connection, *, deploy_mode: str | None, conf: dict[str, Any] | None) -> SparkConnection:
    try:
        from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook  # noqa: PLC0415 - optional
    except ImportError as error:
        raise _not_installed(connection, error) from error
    hook: Any = SparkSubmitHook.__new__(SparkSubmitHook)
    try:
        hook.__init__(conn_id=connection.conn_id, conf=conf, deploy_mode=deploy_mode, keytab=_ELSEWHERE)
    except ValueError as error:
        expected = f"a connection that the apache-spark provider takes ({error})"
        raise InvalidJobError("SparkOperator", "spark_conn_id", got=connection.conn_id, expected=expected) from error
    except (RuntimeError, NameError):
        # For a Kubernetes master it wants Kubernetes' provider, which only its own look at pods needs; by then it has
        # read the connection.
        if "_connection" not in vars(hook):
            raise
    known: dict[str, Any] = hook._connection  # noqa: SLF001 - as the provider's operator does: there is no other way
    extra = connection.extra_dejson
    options = {name: known.get(name) for name in ("master", "queue", "deploy_mode", "principal")}
    manager = known.get("rest_endpoint") or extra.get("yarn_resourcemanager_webapp_address")
    options |= {"resource_manager": manager if known.get("deploy_mode") == "cluster" else None}
    if namespace := known.get("namespace"):
        options["conf"] = {"spark.kubernetes.namespace": namespace}
    secrets = {}
    if keytab := extra.get("keytab"):
        mask_secret(keytab)
        secrets[KEYTAB] = keytab
        options["keytab_secret"] = KEYTAB
    return SparkConnection({name: value for name, value in options.items() if value}, secrets)


def _of_connect(connection: Connection) -> SparkConnection:
    try:
        from airflow.providers.apache.spark.hooks.spark_connect import SparkConnectHook  # noqa: PLC0415 - optional
    except ImportError as error:
        raise _not_installed(connection, error) from error
    url, *parameters = SparkConnectHook(conn_id=connection.conn_id).get_connection_url().split(";")
    shown = [word for word in parameters if not word.startswith("token=")]
    secrets = {TOKEN: connection.password} if connection.password else {}
    if connection.password:
        mask_secret(connection.password)
    return SparkConnection({"connect": ";".join([url, *shown])}, secrets)


def _not_installed(connection: Connection, error: ImportError) -> InvalidJobError:
    expected = "apache-airflow-providers-apache-spark, whose connection it is: install it, or give master= or connect="
    got = f"the connection {connection.conn_id!r} without that provider ({error})"
    return InvalidJobError("SparkOperator", "spark_conn_id", got=got, expected=expected)
