"""Spark in a DAG file: what it is told, and what connections of the apache-spark provider give the job."""

from __future__ import annotations

import base64
import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from airflow.sdk import BaseHook, Connection, task
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.serialization.serialized_objects import DagSerialization

from rallypoint import Jar, SparkJob
from rallypoint.airflow.links import SparkHistoryLink, SparkUILink
from rallypoint.airflow.operators import SparkOperator
from rallypoint.errors import InvalidJobError
from rallypoint.spec.job import Job

EXAMPLES = Path(__file__).resolve().parents[3] / "dags/examples"
KEYTAB = base64.b64encode(b"a keytab").decode()


def spark(host, *, conn_id="cluster", conn_type="spark", port=None, extra=None, **more):
    return Connection(conn_id=conn_id, conn_type=conn_type, host=host, port=port, extra=json.dumps(extra or {}), **more)


@pytest.fixture
def connect(monkeypatch):
    """Has hooks find connections, as the tasks of a run do."""

    def known(*connections):
        table = {connection.conn_id: connection for connection in connections}

        def get(_cls, conn_id):
            if conn_id not in table:
                raise AirflowNotFoundException(conn_id)
            return table[conn_id]

        monkeypatch.setattr(BaseHook, "get_connection", classmethod(get))

    return known


def operator(**options):
    code = {"python_callable": print} if "jar" not in options and "script" not in options else {}
    return SparkOperator(task_id="etl", **{**code, **options})


def settings(job):
    (role,) = job.roles()
    return json.loads(role.argv[3])


# What a DAG file is told ----------------------------------------------------------------------------------------------


def test_every_option_of_the_job_is_one_of_the_operators():
    own = {each.name for each in fields(SparkJob)} - {each.name for each in fields(Job)}
    names = set(inspect.signature(SparkOperator.__init__).parameters)
    # `queue` is the queue of Airflow's executor.
    assert own - {"queue"} <= names
    assert "yarn_queue" in names


def test_a_jar_needs_its_class_and_is_one_way_of_four():
    job = operator(jar="/jars/app.jar", main_class="com.example.Main", args=["--n", 1]).job()
    assert job.code == Jar("/jars/app.jar", "com.example.Main", ("--n", "1"))
    with pytest.raises(InvalidJobError, match="both of jar= and main_class="):
        operator(jar="/jars/app.jar")
    with pytest.raises(InvalidJobError, match="exactly one of script=, module=, python_callable= and jar="):
        operator(jar="/jars/app.jar", main_class="M", script="etl.py")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"master": "mesos://h:5050"}, "master"),
        ({"conf": {"spark.authenticate.secret": "hunter2"}}, "secret_conf="),
        ({"packages": ["hadoop-aws"]}, "group:artifact:version"),
        ({"executor_memory": "lots"}, "a size with its unit"),
        ({"connect": "sc://h:1", "hive": True}, "nothing beside connect="),
    ],
)
def test_a_wrong_option_is_an_import_error_of_the_dag_file(options, words):
    with pytest.raises(InvalidJobError, match=words):
        operator(**options)


def test_what_a_template_says_is_checked_when_it_is_rendered():
    operator(
        master="{{ var.value.master }}",
        conf={"spark.sql.shuffle.partitions": "{{ params.n }}", "spark.x": 1},
        packages=["{{ params.package }}"],
        deploy_mode="cluster",
        jar="{{ params.jar }}",
        main_class="M",
    )
    made = operator(master="{{ var.value.master }}")
    made.job_options = {"master": "mesos://h"}
    with pytest.raises(InvalidJobError, match="master"):
        made.job()


def test_the_result_of_a_cluster_task_is_a_master():
    made = operator(master="{{ ti.xcom_pull('cluster') }}")
    address = {"master": "spark://127.0.0.1:7077", "ui": "http://127.0.0.1:8080"}
    for rendered in (address, str(address), json.dumps(address)):
        made.job_options = {"master": rendered}
        assert settings(made.job())["master"] == "spark://127.0.0.1:7077"


def test_the_decorator_fills_in_the_session_and_takes_the_options():
    @task.spark(master="local[2]", driver_memory="1g")
    def etl(spark, day: str) -> dict:
        return {"day": day}

    made = etl("2026-11-24").operator
    assert made.op_kwargs == {} or "spark" not in made.op_kwargs
    job = made.job()
    assert settings(job)["master"] == "local[2]"
    assert dict(job.code.kwargs) == {"day": "2026-11-24"}


def test_the_links_are_those_of_the_application():
    assert SparkUILink().name == "Spark UI"
    made = operator(history_server="http://history:18080")
    key = type("Key", (), {"dag_id": "d", "run_id": "r", "task_id": "etl", "map_index": -1})()
    assert SparkUILink().get_link(made, ti_key=key).endswith("/rallypoint/stages/d/r/etl/-1/links/Spark%20UI")
    assert SparkHistoryLink().get_link(made, ti_key=key).endswith("/links/Spark%20history")
    assert SparkHistoryLink().get_link(operator(), ti_key=key) == ""


@pytest.mark.parametrize("name", ["spark_operator", "spark_decorator"])
def test_reading_an_example_imports_no_spark(name):
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print([m for m in ('pyspark', 'py4j') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_secret_of_a_task_is_in_the_serialized_dag(monkeypatch):
    from airflow.sdk import DAG

    from rallypoint.frameworks.spark.s3a import S3A

    with DAG("d", schedule=None) as dag:
        operator(
            secrets={"KEY": "variable:key"},
            secret_conf={"spark.authenticate.secret": "KEY"},
            s3a=S3A(access_key="AKIA", secret_key="hunter2"),
        )
    assert "hunter2" not in json.dumps(DagSerialization.to_dict(dag), default=str)


# Connections ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "master"),
    [
        (spark("spark://spark-master", port=7077), "spark://spark-master:7077"),
        (spark("spark-master", port=7077), "spark://spark-master:7077"),
        (spark("yarn"), "yarn"),
        (spark("local[2]"), "local[2]"),
        (spark("spark://m1:7077,m2:7077"), "spark://m1:7077,m2:7077"),
        (spark("k8s://https://api", port=6443), "k8s://https://api:6443"),
    ],
)
def test_a_connection_of_the_provider_is_a_master(connect, connection, master):
    connect(connection)
    for name in ("spark_conn_id", "conn_id"):
        assert settings(operator(**{name: "cluster"}).job())["master"] == master


def test_the_fields_of_a_connection_become_options(connect, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    extra = {"queue": "ml", "namespace": "jobs", "principal": "me@EXAMPLE.COM", "keytab": KEYTAB}
    connect(spark("yarn", extra=extra))
    job = operator(spark_conn_id="cluster").job()
    found = settings(job)
    assert found["conf"] == {
        "spark.yarn.queue": "ml",
        "spark.kubernetes.namespace": "jobs",
        "spark.kerberos.principal": "me@EXAMPLE.COM",
    }
    assert [secret.reveal() for secret in job.plan().secrets.values()] == [KEYTAB]
    assert found["keytab_secret"] in job.plan().secrets
    # The provider's hook would have left the keytab in a file that others can read.
    assert list(tmp_path.iterdir()) == []
    assert KEYTAB not in json.dumps(job.plan().to_json())


def test_what_the_task_says_comes_before_the_connection(connect):
    connect(spark("yarn", extra={"queue": "ml", "namespace": "jobs", "deploy-mode": "cluster"}))
    made = operator(
        spark_conn_id="cluster",
        master="local[1]",
        yarn_queue="adhoc",
        deploy_mode="client",
        conf={"spark.kubernetes.namespace": "mine", "spark.x": 1},
    )
    found = settings(made.job())
    assert (found["master"], found["deploy_mode"]) == ("local[1]", "client")
    assert found["conf"] == {"spark.yarn.queue": "adhoc", "spark.kubernetes.namespace": "mine", "spark.x": "1"}


def test_cluster_mode_of_a_connection_has_its_managers_address(connect):
    connect(
        spark("spark://spark-master", port=7077, extra={"deploy-mode": "cluster", "rest-port": "16066"}),
        spark(
            "yarn",
            conn_id="hadoop",
            extra={"deploy-mode": "cluster", "yarn_resourcemanager_webapp_address": "http://rm:8088"},
        ),
    )
    jar = {"jar": "hdfs://n/app.jar", "main_class": "M"}
    job = operator(spark_conn_id="cluster", **jar).job()
    assert (job.deploy_mode, job.resource_manager) == ("cluster", "http://spark-master:16066")
    assert operator(spark_conn_id="hadoop", **jar).job().resource_manager == "http://rm:8088"


def test_a_connect_servers_connection_keeps_its_token_out_of_the_url(connect):
    connect(
        spark("spark-connect", conn_type="spark_connect", port=15002, login="me", password="hunter2",
              extra={"use_ssl": True}),
    )  # fmt: skip
    job = operator(spark_conn_id="cluster").job()
    assert settings(job)["connect"] == "sc://spark-connect:15002/;user_id=me;use_ssl=True"
    assert {name: secret.reveal() for name, secret in job.plan().secrets.items()} == {
        "SPARK_CONNECT_AUTHENTICATE_TOKEN": "hunter2"
    }
    assert "hunter2" not in json.dumps(job.plan().to_json())


def test_an_aws_connection_is_how_s3a_paths_are_reached(connect):
    extra = {"region_name": "eu-central-1", "endpoint_url": "https://minio:9000"}
    connect(Connection(conn_id="s3", conn_type="aws", login="AKIA", password="hunter2", extra=json.dumps(extra)))
    job = operator(aws_conn_id="s3").job()
    assert settings(job)["conf"]["spark.hadoop.fs.s3a.endpoint"] == "https://minio:9000"
    assert "hunter2" in {secret.reveal() for secret in job.plan().secrets.values()}
    assert "hunter2" not in json.dumps(job.plan().to_json())


def test_a_hive_metastore_connection_is_where_tables_are(connect):
    connect(Connection(conn_id="tables", conn_type="hive_metastore", host="metastore", port=9083))
    conf = settings(operator(hive_conn_id="tables").job())["conf"]
    assert conf["spark.sql.catalogImplementation"] == "hive"
    assert conf["spark.hadoop.hive.metastore.uris"] == "thrift://metastore:9083"
    with pytest.raises(InvalidJobError, match="one of hive_conn_id= and hive="):
        operator(hive_conn_id="tables", hive=True)


def test_a_connection_that_is_not_there_is_an_error_and_not_yarn(connect):
    connect()
    with pytest.raises(AirflowNotFoundException):
        operator(spark_conn_id="cluster").job()


def test_without_the_provider_the_error_names_it(connect, monkeypatch):
    connect(spark("yarn"))
    monkeypatch.setitem(sys.modules, "airflow.providers.apache.spark.hooks.spark_submit", None)
    with pytest.raises(InvalidJobError, match="apache-airflow-providers-apache-spark, whose connection it is"):
        operator(spark_conn_id="cluster").job()
    assert settings(operator(master="yarn").job())["master"] == "yarn"


def test_the_table_of_migration_has_every_option_of_the_providers_operator():
    from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

    table = (EXAMPLES.parents[1] / "docs/spark.md").read_text().partition("## From SparkSubmitOperator")[2]
    rows = [line.split("|") for line in table.partition("\n## ")[0].splitlines() if line.startswith("|")]
    there = set(re.findall(r"\w+", " ".join(row[1] for row in rows)))
    options = set(inspect.signature(SparkSubmitOperator.__init__).parameters) - {"self", "kwargs"}
    assert options - there == set()
    # What is "the same" is an option of the own operator.
    same = {name for row in rows if row[2].strip().startswith("the same") for name in re.findall(r"`(\w+)`", row[1])}
    assert same & options <= set(inspect.signature(SparkOperator.__init__).parameters)
