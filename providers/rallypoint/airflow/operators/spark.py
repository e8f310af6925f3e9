"""Spark jobs as tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseHook, get_current_context
from airflow.sdk import conf as airflow_conf

from rallypoint.airflow import spark_connections
from rallypoint.airflow.links import SparkHistoryLink, SparkUILink, StageLink
from rallypoint.airflow.operators.base import StageOperator
from rallypoint.airflow.place import resolve_secrets
from rallypoint.airflow.rendering import is_rendered_later, rendered_object
from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark import options as rules
from rallypoint.frameworks.spark.hive import hive_of_connection
from rallypoint.frameworks.spark.job import CLUSTER, SparkJob
from rallypoint.frameworks.spark.s3a import S3A, s3a_of_aws
from rallypoint.spec.entry import Entry, Jar, Script

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow.sdk import BaseOperatorLink

    from rallypoint.frameworks.spark.hive import Hive

_LINEAGE = "RP_SPARK_LINEAGE_"  # variables of the job with what OpenLineage's transport needs


class SparkOperator(StageOperator):
    """Runs a script, module, function or jar with Spark as a stage.

    The parameters are those of `rallypoint.SparkJob`; everything else is `StageOperator`'s. What the task gives comes
    before what its connection says.

    Args:
        jar: A jar to run, instead of ``script``, ``module`` and ``python_callable``. Its arguments are ``args``.
        main_class: The jar's main class.
        spark_conn_id: A connection of the apache-spark provider, of type ``spark`` or ``spark_connect``, which says
            where the job runs. None for what `master` or `connect` says, a local Spark by default.
        conn_id: The same by the name that the provider's operators have for it.
        yarn_queue: YARN's queue; ``queue`` is that of Airflow's executor.
        aws_conn_id: A connection of type ``aws`` for ``s3a://`` paths, instead of `s3a`.
        hive_conn_id: A connection of type ``hive_metastore`` for the metastore of tables, instead of `hive`.
        openlineage_inject_parent_job_info: Whether Spark's OpenLineage listener learns which task runs it, as with the
            provider's operators.
        openlineage_inject_transport_info: Whether it learns where events go.
        **kwargs: `StageOperator`'s.

    Returns:
        The entry's JSON result, as XCom; None of a jar.
    """

    job_class: ClassVar[type[SparkJob]] = SparkJob
    ways: ClassVar[tuple[str, ...]] = (*StageOperator.ways, "jar")
    template_fields: Sequence[str] = (*StageOperator.template_fields, "jar", "main_class", "spark_conn_id")
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(), SparkUILink(), SparkHistoryLink())
    ui_color = "#f9e2d2"

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        jar: str | None = None,
        main_class: str | None = None,
        spark_conn_id: str | None = None,
        conn_id: str | None = None,
        aws_conn_id: str | None = None,
        hive_conn_id: str | None = None,
        master: Any = None,
        deploy_mode: str | None = None,
        connect: Any = None,
        name: str | None = None,
        conf: Mapping[str, Any] | None = None,
        secret_conf: Mapping[str, str] | None = None,
        properties_file: str | None = None,
        packages: str | Sequence[str] = (),
        exclude_packages: str | Sequence[str] = (),
        repositories: str | Sequence[str] = (),
        jars: str | Sequence[str] = (),
        py_files: str | Sequence[str] = (),
        files: str | Sequence[str] = (),
        archives: str | Sequence[str] = (),
        driver_class_path: str | None = None,
        driver_memory: str | None = None,
        driver_cores: int | str | None = None,
        executor_memory: str | None = None,
        executor_cores: int | str | None = None,
        num_executors: int | str | None = None,
        total_executor_cores: int | str | None = None,
        yarn_queue: str | None = None,
        principal: str | None = None,
        keytab: str | None = None,
        keytab_secret: str | None = None,
        ticket_cache: bool = False,
        proxy_user: str | None = None,
        hive: bool | Hive = False,
        s3a: S3A | None = None,
        history_server: str | None = None,
        resource_manager: str | None = None,
        spark_home: str | None = None,
        java_home: str | None = None,
        connect_timeout: float = 60.0,
        openlineage_inject_parent_job_info: bool = airflow_conf.getboolean(
            "openlineage", "spark_inject_parent_job_info", fallback=False
        ),
        openlineage_inject_transport_info: bool = airflow_conf.getboolean(
            "openlineage", "spark_inject_transport_info", fallback=False
        ),
        **kwargs: Any,
    ) -> None:
        options = {
            "master": master, "deploy_mode": deploy_mode, "connect": connect, "name": name, "conf": conf,
            "secret_conf": secret_conf, "properties_file": properties_file, "packages": packages,
            "exclude_packages": exclude_packages, "repositories": repositories, "jars": jars, "py_files": py_files,
            "files": files, "archives": archives, "driver_class_path": driver_class_path,
            "driver_memory": driver_memory, "driver_cores": driver_cores, "executor_memory": executor_memory,
            "executor_cores": executor_cores, "num_executors": num_executors,
            "total_executor_cores": total_executor_cores, "queue": yarn_queue, "principal": principal, "keytab": keytab,
            "keytab_secret": keytab_secret, "ticket_cache": ticket_cache, "proxy_user": proxy_user, "hive": hive,
            "s3a": s3a, "history_server": history_server, "resource_manager": resource_manager,
            "spark_home": spark_home, "java_home": java_home, "connect_timeout": connect_timeout,
        }  # fmt: skip
        self.jar = jar
        self.main_class = main_class
        self.spark_conn_id = spark_conn_id or conn_id
        self.aws_conn_id = aws_conn_id
        self.hive_conn_id = hive_conn_id
        self.openlineage_inject_parent_job_info = openlineage_inject_parent_job_info
        self.openlineage_inject_transport_info = openlineage_inject_transport_info
        given = {name: value for name, value in options.items() if value not in (None, (), False)}
        super().__init__(job_options={**given, **(kwargs.pop("job_options", None) or {})}, **kwargs)

    # What a DAG file's reader is told ----------------------------------------------------------------------------

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        name = type(self).__name__
        if (self.jar is None) != (self.main_class is None):
            missing = "jar" if self.jar is None else "main_class"
            raise InvalidJobError(name, missing, got=None, expected="both of jar= and main_class=, or neither")
        if self.aws_conn_id and "s3a" in self.job_options:
            raise InvalidJobError(name, "aws_conn_id", got=self.aws_conn_id, expected="one of aws_conn_id= and s3a=")
        if self.hive_conn_id and "hive" in self.job_options:
            raise InvalidJobError(
                name, "hive_conn_id", got=self.hive_conn_id, expected="one of hive_conn_id= and hive="
            )
        known = {key: value for key, value in options.items() if not is_rendered_later(value)}
        if "conf" in options:
            known["conf"] = {key: value for key, value in options["conf"].items() if not is_rendered_later(value)}
        if self.spark_conn_id or len(known) < len(self.job_options):
            # What the connection or a template says is not known yet.
            known |= {"principal": "later"} if {"keytab", "keytab_secret"} & known.keys() else {}
            if known.get("deploy_mode") == CLUSTER:
                known.setdefault("master", "yarn")
        self.job_class(
            Jar("later.jar", "Later") if self.jar else Script("checked-later.py"),
            keep_checkpoints=self.keep_checkpoints,
            stall_timeout=self.stall_timeout,
            env=env,
            **known,
        )

    # The job ------------------------------------------------------------------------------------------------------

    def job(self) -> SparkJob:
        """Return the job, from the rendered fields and the connections.

        Raises:
            InvalidJobError: A value is wrong, or a connection's.
            AirflowNotFoundException: There is no such connection.
        """
        own = dict(self.job_options)
        found = spark_connections.SparkConnection()
        if self.spark_conn_id:
            found = spark_connections.read(self.spark_conn_id, deploy_mode=own.get("deploy_mode"), conf=own.get("conf"))
        options = _joined(found.options, own)
        secrets = {**resolve_secrets(self.secrets), **found.secrets}
        if self.aws_conn_id:
            aws = BaseHook.get_connection(self.aws_conn_id)
            options["s3a"] = s3a_of_aws(aws.login, aws.password, aws.extra_dejson)
        if self.hive_conn_id:
            metastore = BaseHook.get_connection(self.hive_conn_id)
            options["hive"] = hive_of_connection(metastore.host, metastore.port, metastore.extra_dejson)
        lineage = self._lineage()
        hidden = {name: value for name, value in lineage.items() if rules.is_secret(name)}
        variables = {name: f"{_LINEAGE}{number}" for number, name in enumerate(sorted(hidden))}
        secrets |= {variables[name]: value for name, value in hidden.items()}
        options["secret_conf"] = variables | dict(options.get("secret_conf", {}))
        options["conf"] = {k: v for k, v in lineage.items() if k not in hidden} | dict(options.get("conf", {}))
        return self.job_class(
            self._entry(),
            params=self.job_params,
            env={key: str(value) for key, value in self.env.items()},
            secrets=secrets,
            python=self.python,
            resources=self.job_resources,
            keep_checkpoints=self.keep_checkpoints,
            stall_timeout=self.stall_timeout,
            failure_rules=self.failure_rules,
            uses=[rendered_object(each) for each in self.uses],
            **options,
        )

    def _entry(self) -> Entry:
        if self.jar is not None and self.main_class is not None:
            return Jar(self.jar, self.main_class, tuple(str(arg) for arg in self.args))
        return super()._entry()

    def _lineage(self) -> dict[str, str]:
        """Return the properties that the OpenLineage provider wants Spark's listener to have."""
        found: dict[str, str] = {}
        if not (self.openlineage_inject_parent_job_info or self.openlineage_inject_transport_info):
            return found
        from airflow.providers.common.compat.openlineage.utils import spark  # noqa: PLC0415 - optional

        context = get_current_context()
        if self.openlineage_inject_parent_job_info:
            found = spark.inject_parent_job_information_into_spark_properties(found, context)
        if self.openlineage_inject_transport_info:
            found = spark.inject_transport_information_into_spark_properties(found, context)
        return found


def _joined(connection: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a connection's options under the task's own; a task that says where it runs needs no place beside."""
    kept = dict(connection)
    if own.get("master") or own.get("connect"):
        kept = {name: value for name, value in kept.items() if name not in {"master", "connect"}}
    if own.get("keytab") or own.get("keytab_secret") or own.get("ticket_cache") or own.get("proxy_user"):
        kept.pop("keytab_secret", None)
    joined = {**kept, **own}
    if kept.get("conf"):
        joined["conf"] = {**kept["conf"], **own.get("conf", {})}
    return joined
