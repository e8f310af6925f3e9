"""S3A settings: which property each becomes, that secrets are apart, and what is said without the connector."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.frameworks.spark.options import is_secret
from rallypoint.frameworks.spark.s3a import (
    PROVIDERS,
    S3A,
    S3AMissingError,
    hadoop_version,
    require_s3a,
    s3a_of_aws,
    s3a_of_aws_credentials,
)

KEY, SECRET, TOKEN = "AKIAEXAMPLE", "very-secret-key", "session-token"
ROLE = "arn:aws:iam::123456789012:role/reader"
FS = "spark.hadoop.fs.s3a."


def of_all(conf):
    return {name.removeprefix(FS): value for name, value in conf.items()}


# Properties -----------------------------------------------------------------------------------------------------------


def test_nothing_given_leaves_everything_to_hadoops_own_chain():
    settings = S3A()
    assert (settings.conf(), settings.secret_conf(), settings.secrets()) == ({}, {}, {})


def test_a_store_of_ones_own():
    settings = S3A(endpoint="http://minio:9000", path_style=True, ssl=False, access_key=KEY, secret_key=SECRET)
    assert of_all(settings.conf()) == {
        "endpoint": "http://minio:9000",
        "path.style.access": "true",
        "connection.ssl.enabled": "false",
        "aws.credentials.provider": PROVIDERS["keys"],
    }
    assert settings.secret_conf() == {f"{FS}access.key": "S3A_ACCESS_KEY", f"{FS}secret.key": "S3A_SECRET_KEY"}
    assert {name: secret.reveal() for name, secret in settings.secrets().items()} == {
        "S3A_ACCESS_KEY": KEY, "S3A_SECRET_KEY": SECRET,
    }  # fmt: skip


def test_temporary_keys_have_a_provider_of_their_own():
    settings = S3A(access_key=KEY, secret_key=SECRET, session_token=TOKEN)
    assert of_all(settings.conf()) == {"aws.credentials.provider": PROVIDERS["session"]}
    assert settings.secret_conf()[f"{FS}session.token"] == "S3A_SESSION_TOKEN"


def test_a_role_is_assumed_with_the_keys_or_with_what_the_hosts_have():
    role = {"role_arn": ROLE, "role_session": "nightly", "external_id": "x-1", "role_duration": "30m"}
    with_keys = of_all(S3A(access_key=KEY, secret_key=SECRET, region="eu-central-1", **role).conf())
    assert with_keys == {
        "endpoint.region": "eu-central-1",
        "aws.credentials.provider": PROVIDERS["role"],
        "assumed.role.arn": ROLE,
        "assumed.role.session.name": "nightly",
        "assumed.role.external.id": "x-1",
        "assumed.role.session.duration": "30m",
        "assumed.role.sts.endpoint.region": "eu-central-1",
        "assumed.role.credentials.provider": PROVIDERS["keys"],
    }
    without = of_all(S3A(**role).conf())
    assert without["assumed.role.credentials.provider"].split(",") == [
        PROVIDERS["environment"], PROVIDERS["web_identity"], PROVIDERS["instance"],
    ]  # fmt: skip


def test_settings_of_one_bucket_stand_beside_those_of_all():
    everywhere = S3A(access_key=KEY, secret_key=SECRET)
    there = S3A(bucket="our-data.eu", credentials="anonymous", region="eu-west-1", options={"connection.maximum": 9})
    keyed = S3A(bucket="our-data.eu", access_key=KEY, secret_key=SECRET)
    assert there.conf() == {
        f"{FS}bucket.our-data.eu.aws.credentials.provider": PROVIDERS["anonymous"],
        f"{FS}bucket.our-data.eu.endpoint.region": "eu-west-1",
        f"{FS}bucket.our-data.eu.connection.maximum": "9",
    }
    assert keyed.secret_conf()[f"{FS}bucket.our-data.eu.secret.key"] == "S3A_SECRET_KEY_OUR_DATA_EU"
    assert not keyed.secrets().keys() & everywhere.secrets().keys()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"access_key": KEY}, "secret_key"),
        ({"secret_key": SECRET}, "access_key"),
        ({"session_token": TOKEN}, "access_key"),
        ({"credentials": "keys"}, "credentials"),
        ({"credentials": "somehow"}, "credentials"),
        ({"credentials": "instance", "access_key": KEY, "secret_key": SECRET}, "credentials"),
        ({"endpoint": "https://user:very-secret-key@minio:9000"}, "endpoint"),
        ({"endpoint": "s3://bucket"}, "endpoint"),
        ({"role_arn": "reader"}, "role_arn"),
        ({"external_id": "x"}, "external_id"),
        ({"role_arn": ROLE, "role_duration": "a while"}, "role_duration"),
        ({"role_arn": ROLE, "sts_endpoint": "sts.eu-west-1.amazonaws.com"}, "sts_region"),
        ({"role_arn": ROLE, "access_key": KEY, "secret_key": SECRET, "session_token": TOKEN}, "session_token"),
        ({"bucket": "s3a://data"}, "bucket"),
        ({"options": {"secret.key": SECRET}}, "options"),
        ({"options": {"fs.s3a.threads.max": 2}}, "options"),
    ],
)
def test_a_wrong_value_is_named_and_no_secret_is_shown(given, field):
    with pytest.raises(InvalidJobError) as caught:
        S3A(**given)
    assert caught.value.field == field
    assert not any(secret in str(caught.value) for secret in (KEY, SECRET, TOKEN))


def test_no_secret_is_in_a_representation():
    assert not re.search(f"{KEY}|{SECRET}|{TOKEN}", repr(S3A(access_key=KEY, secret_key=SECRET, session_token=TOKEN)))


def test_a_job_takes_the_settings_and_plans_without_a_secret():
    settings = S3A(endpoint="http://minio:9000", access_key=KEY, secret_key=SECRET)
    job = SparkJob("train.py", conf=settings.conf(), secret_conf=settings.secret_conf(), secrets=settings.secrets())
    gang = job.plan()
    assert f"{FS}endpoint" in gang.roles[0].argv[3]
    assert "S3A_SECRET_KEY" in gang.secrets
    assert not re.search(f"{KEY}|{SECRET}", str(gang.to_json()) + repr(gang))
    assert all(is_secret(name) for name in settings.secret_conf())  # so Spark's properties take them from nowhere else


# Connections ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("login", "password", "extra", "expected"),
    [
        (None, None, {}, {}),
        (None, None, {"region_name": "us-east-2"}, {"endpoint.region": "us-east-2"}),
        (
            KEY, SECRET, {"endpoint_url": "http://minio:9000"},
            {
                "endpoint": "http://minio:9000", "path.style.access": "true",
                "aws.credentials.provider": PROVIDERS["keys"],
            },
        ),
        (
            KEY, SECRET, {"service_config": {"s3": {"endpoint_url": "https://s3.eu-west-1.amazonaws.com"}}},
            {"endpoint": "https://s3.eu-west-1.amazonaws.com", "aws.credentials.provider": PROVIDERS["keys"]},
        ),
        (
            None, None,
            {"endpoint_url": "https://r2.example.com", "config_kwargs": {"s3": {"addressing_style": "virtual"}}},
            {"endpoint": "https://r2.example.com", "path.style.access": "false"},
        ),
        (
            None, None, {"config_kwargs": {"signature_version": "unsigned"}},
            {"aws.credentials.provider": PROVIDERS["anonymous"]},
        ),
        (
            None, None, {"profile_name": "data"},
            {"aws.credentials.provider": PROVIDERS["profile"], "auth.profile.name": "data"},
        ),
        (
            KEY, SECRET,
            {
                "role_arn": ROLE, "region_name": "eu-west-1",
                "assume_role_kwargs": {"ExternalId": "x", "DurationSeconds": 900},
            },
            {
                "endpoint.region": "eu-west-1", "aws.credentials.provider": PROVIDERS["role"], "assumed.role.arn": ROLE,
                "assumed.role.session.name": "rallypoint", "assumed.role.external.id": "x",
                "assumed.role.session.duration": "900s", "assumed.role.sts.endpoint.region": "eu-west-1",
                "assumed.role.credentials.provider": PROVIDERS["keys"],
            },
        ),
    ],
)  # fmt: skip
def test_an_aws_connection_is_read_as_airflow_documents_it(login, password, extra, expected):
    assert of_all(s3a_of_aws(login, password, extra).conf()) == expected


def test_a_connection_with_another_way_to_assume_a_role_is_refused():
    with pytest.raises(InvalidJobError, match="assume_role_method"):
        s3a_of_aws(None, None, {"role_arn": ROLE, "assume_role_method": "assume_role_with_saml"})


class Hidden:
    def __init__(self, value):
        self._value = value

    def get_secret_value(self):
        return self._value


def test_a_credentials_block_of_prefect_is_read_by_its_documented_fields():
    client = SimpleNamespace(endpoint_url="http://minio:9000", config=None)
    block = SimpleNamespace(
        aws_access_key_id=KEY,
        aws_secret_access_key=Hidden(SECRET),
        region_name="eu-west-1",
        aws_client_parameters=client,
    )
    expected = S3A(endpoint="http://minio:9000", path_style=True, region="eu-west-1", access_key=KEY, secret_key=SECRET)
    assert s3a_of_aws_credentials(block) == expected
    minio = SimpleNamespace(minio_root_user=KEY, minio_root_password=Hidden(SECRET), aws_client_parameters=client)
    assert s3a_of_aws_credentials(minio).secret_key == SECRET
    assert s3a_of_aws_credentials(SimpleNamespace(aws_client_parameters=None)) == S3A()


# The connector --------------------------------------------------------------------------------------------------------


@pytest.fixture
def spark_home(tmp_path, monkeypatch):
    for name in ("SPARK_DIST_CLASSPATH", "SPARK_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "hadoop-client-api-3.5.0.jar").touch()
    return tmp_path


def test_a_missing_connector_is_named_with_hadoops_own_version(spark_home):
    assert hadoop_version(str(spark_home)) == "3.5.0"
    with pytest.raises(S3AMissingError, match=r'packages=\["org\.apache\.hadoop:hadoop-aws:3\.5\.0"\]') as caught:
        require_s3a(S3A(region="eu-west-1").conf(), str(spark_home))
    rules = SparkJob("train.py").rules
    rule = next(
        rule for rule in rules if rule.matches(exception="", message=str(caught.value), signal=None, exit_code=None)
    )
    assert rule.kind.value == "user error"  # a retry cannot help


def test_settings_whose_values_are_all_secret_ask_for_it_too(spark_home):
    with pytest.raises(S3AMissingError):
        require_s3a({}, str(spark_home), also=[f"{FS}access.key"])


@pytest.mark.parametrize(
    "conf",
    [
        {"spark.jars.packages": "org.apache.hadoop:hadoop-aws:3.5.0"},
        {"spark.jars.packages": "org.apache.spark:spark-hadoop-cloud_2.13:4.2.0"},
        {"spark.jars": "/opt/hadoop-aws-3.5.0.jar,/opt/bundle.jar"},
        {"spark.driver.extraClassPath": "/opt/hadoop/*"},
    ],
)
def test_a_connector_may_come_in_each_of_sparks_ways(spark_home, conf):
    require_s3a(S3A(region="eu-west-1").conf() | conf, str(spark_home))


def test_a_connector_may_lie_in_the_distribution_or_in_its_defaults(spark_home):
    conf = S3A(region="eu-west-1").conf()
    (spark_home / "conf").mkdir()
    (spark_home / "conf" / "spark-defaults.conf").write_text("spark.jars.packages org.apache.hadoop:hadoop-aws:3.5.0\n")
    require_s3a(conf, str(spark_home))
    (spark_home / "conf" / "spark-defaults.conf").unlink()
    (spark_home / "jars" / "hadoop-aws-3.5.0.jar").touch()
    require_s3a(conf, str(spark_home))


def test_a_job_without_s3a_needs_none(spark_home):
    require_s3a({"spark.sql.shuffle.partitions": "8"}, str(spark_home))
