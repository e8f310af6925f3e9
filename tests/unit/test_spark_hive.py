"""Hive settings: a metastore service, an embedded metastore, and what a connection says."""

from __future__ import annotations

import pytest

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark.hive import Hive, hive_of_connection, with_defaults
from rallypoint.frameworks.spark.job import SparkJob

CATALOG = {"spark.sql.catalogImplementation": "hive"}
URIS = "spark.hadoop.hive.metastore.uris"


def test_a_metastore_service_with_its_warehouse_and_version():
    hive = Hive(
        metastore=["thrift://a:9083", "thrift://b:9083"], warehouse="hdfs:///warehouse", version="3.1.3", jars="maven",
        options={"hive.exec.dynamic.partition": True},
    )  # fmt: skip
    assert hive.conf() == {
        **CATALOG,
        URIS: "thrift://a:9083,thrift://b:9083",
        "spark.sql.warehouse.dir": "hdfs:///warehouse",
        "spark.sql.hive.metastore.version": "3.1.3",
        "spark.sql.hive.metastore.jars": "maven",
        "spark.hadoop.hive.exec.dynamic.partition": "true",
    }


def test_jars_by_path_and_kerberos():
    found = Hive(
        metastore="thrift://a:9083", version="2.3.9", jars=["/a/*", "/b/*"], kerberos_principal="hive/_HOST@X"
    ).conf()
    assert found["spark.sql.hive.metastore.jars"] == "path"
    assert found["spark.sql.hive.metastore.jars.path"] == "/a/*,/b/*"
    assert found["spark.hadoop.hive.metastore.kerberos.principal"] == "hive/_HOST@X"
    assert found["spark.hadoop.hive.metastore.sasl.enabled"] == "true"


def test_an_embedded_metastore_keeps_its_database_its_log_and_its_tables_in_one_folder():
    found = Hive(folder="/data/hive").conf()
    assert found["spark.sql.warehouse.dir"] == "file:///data/hive/warehouse"
    assert "databaseName=/data/hive/metastore_db;create=true" in found["spark.hadoop.javax.jdo.option.ConnectionURL"]
    assert found["spark.driver.defaultJavaOptions"] == "-Dderby.stream.error.file=/data/hive/derby.log"


def test_without_settings_the_metastore_is_embedded_below_the_stage():
    conf = SparkJob("etl.py", hive=True).properties()
    assert conf == CATALOG
    assert with_defaults(conf, "/stage/hive") == Hive(folder="/stage/hive").conf()


@pytest.mark.parametrize(
    "conf",
    [{}, Hive(metastore="thrift://a:9083").conf(), Hive(folder="/data").conf(), {URIS: "thrift://a:9083", **CATALOG}],
)
def test_a_metastore_that_is_named_stays(conf):
    assert with_defaults(conf, "/stage/hive") == conf


def test_the_jobs_own_properties_come_before_those_of_hive():
    job = SparkJob("etl.py", hive=Hive(folder="/data/hive"), conf={"spark.sql.warehouse.dir": "/elsewhere"})
    assert job.properties()["spark.sql.warehouse.dir"] == "/elsewhere"
    assert job.properties()["spark.sql.catalogImplementation"] == "hive"
    assert SparkJob("etl.py").properties() == {}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"metastore": "metastore:9083"}, "metastore"),
        ({"folder": "data/hive"}, "folder"),
        ({"folder": "/data;create=false"}, "folder"),
        ({"folder": "/data", "metastore": "thrift://a:9083"}, "folder"),
        ({"version": "3.1.3"}, "version"),
        ({"kerberos_principal": "hive/_HOST@X"}, "kerberos_principal"),
        ({"metastore": "thrift://a:9083", "jars": "maven"}, "version"),
        ({"options": {"javax.jdo.option.ConnectionPassword": "x"}}, "options"),
        ({"options": {"spark.hadoop.hive.x": 1}}, "options"),
    ],
)
def test_a_wrong_value_is_named(given, field):
    with pytest.raises(InvalidJobError) as caught:
        Hive(**given)
    assert caught.value.field == field


def test_a_job_takes_true_false_or_settings():
    with pytest.raises(InvalidJobError, match="hive"):
        SparkJob("etl.py", hive="thrift://a:9083")


@pytest.mark.parametrize(
    ("host", "port", "extra", "expected"),
    [
        ("metastore", None, {}, Hive(metastore=["thrift://metastore:9083"])),
        ("a,b:9084", 9085, {}, Hive(metastore=["thrift://a:9085", "thrift://b:9084"])),
        (
            "m", 1, {"warehouse": "s3a://w", "metastore_version": "3.1.3"},
            Hive(metastore=["thrift://m:1"], warehouse="s3a://w", version="3.1.3"),
        ),
        (
            "m", 9083, {"authMechanism": "GSSAPI", "kerberos_service_name": "hms", "realm": "X.ORG"},
            Hive(metastore=["thrift://m:9083"], kerberos_principal="hms/_HOST@X.ORG"),
        ),
    ],
)  # fmt: skip
def test_a_connection_names_a_metastore(host, port, extra, expected):
    assert hive_of_connection(host, port, extra) == expected


@pytest.mark.parametrize(("host", "extra"), [("", {}), ("m", {"authMechanism": "GSSAPI"})])
def test_a_connection_that_lacks_something_says_what(host, extra):
    with pytest.raises(InvalidJobError, match="in the "):
        hive_of_connection(host, None, extra)
