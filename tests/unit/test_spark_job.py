"""Spark jobs as data: what they take, what they compile to, what their failures mean. No Spark is started."""

from __future__ import annotations

import json
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from rallypoint import Function, Jar, Module, Resources, Script, SparkJob
from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark import environment, java, progress, properties
from rallypoint.frameworks.spark.causes import DriverLostError, JarFailedError, causes
from rallypoint.frameworks.spark.failures import FAILURE_RULES
from rallypoint.frameworks.spark.s3a import S3A
from rallypoint.spec.failure import FailureRule, Kind
from rallypoint.stages.failure_table import classify
from rallypoint.worker import context, process
from rallypoint.worker.events import EventWriter

JAR = Jar("/jars/app.jar", "com.example.Main", ("--day", "2026-11-24"))
CLUSTER = {
    "master": "spark://127.0.0.1:7077",
    "service": {"store": "file:///s", "stage": ["d", "r", "cluster"], "attempt": 1, "lease": 900.0},
}


def settings(job):
    (role,) = job.roles()
    return json.loads(role.argv[3])


# What a job compiles to -----------------------------------------------------------------------------------------------


def test_a_job_is_one_driver_process_that_is_given_its_settings_as_json():
    (role,) = SparkJob(Script("/jobs/etl.py", ("--day", "1"))).roles()
    assert role.argv[:3] == ("${rallypoint:python}", "-m", "rallypoint.frameworks.spark.driver")
    assert role.argv[4:] == ("script", "/jobs/etl.py", "--day", "1")
    assert settings(SparkJob("/jobs/etl.py")) == {
        "master": "local[*]",
        "deploy_mode": "client",
        "connect_timeout": 60.0,
    }


def test_cluster_mode_is_another_driver_with_the_same_settings():
    (role,) = SparkJob(JAR, master="yarn", deploy_mode="cluster", queue="ml").roles()
    assert role.argv[2] == "rallypoint.frameworks.spark.cluster_mode"
    assert role.argv[4:] == ("jar", "/jars/app.jar", "com.example.Main", "--day", "2026-11-24")
    assert json.loads(role.argv[3])["conf"] == {"spark.yarn.queue": "ml"}


@pytest.mark.parametrize(
    ("option", "value", "name", "text"),
    [
        ("conf", {"spark.sql.shuffle.partitions": 8}, "spark.sql.shuffle.partitions", "8"),
        ("conf", {"spark.eventLog.enabled": True}, "spark.eventLog.enabled", "true"),
        ("name", "nightly", "spark.app.name", "nightly"),
        ("driver_memory", "2g", "spark.driver.memory", "2048m"),
        ("driver_memory", "1.5GiB", "spark.driver.memory", "1536m"),
        ("executor_memory", "900 mb", "spark.executor.memory", "900m"),
        ("driver_cores", 2, "spark.driver.cores", "2"),
        ("executor_cores", "3", "spark.executor.cores", "3"),
        ("num_executors", 4, "spark.executor.instances", "4"),
        ("total_executor_cores", 8, "spark.cores.max", "8"),
        ("packages", "g:a:1,g:b:2", "spark.jars.packages", "g:a:1,g:b:2"),
        ("exclude_packages", ["g:c"], "spark.jars.excludes", "g:c"),
        ("repositories", ["https://maven.example.com"], "spark.jars.repositories", "https://maven.example.com"),
        ("jars", ["/a.jar", "/b.jar"], "spark.jars", "/a.jar,/b.jar"),
        ("py_files", ["/lib.zip"], "spark.submit.pyFiles", "/lib.zip"),
        ("files", "/a.txt, /b.txt", "spark.files", "/a.txt,/b.txt"),
        ("archives", ["/env.tar.gz#env"], "spark.archives", "/env.tar.gz#env"),
        ("driver_class_path", "/etc/hadoop", "spark.driver.extraClassPath", "/etc/hadoop"),
        ("queue", "ml", "spark.yarn.queue", "ml"),
        ("hive", True, "spark.sql.catalogImplementation", "hive"),
        ("ticket_cache", True, "spark.kerberos.renewal.credentials", "ccache"),
    ],
)
def test_an_option_is_a_property(option, value, name, text):
    assert settings(SparkJob("/jobs/etl.py", **{option: value}))["conf"][name] == text


def test_a_local_spark_is_of_the_size_that_the_resources_say():
    small = SparkJob("/jobs/etl.py", resources=Resources(cpus=2, memory="4GiB"))
    assert settings(small)["master"] == "local[2]"
    assert settings(small)["conf"]["spark.driver.memory"] == "2457m"
    own = SparkJob("/jobs/etl.py", master="local[3]", driver_memory="1g", resources=Resources(cpus=2, memory="4GiB"))
    assert (settings(own)["master"], settings(own)["conf"]["spark.driver.memory"]) == ("local[3]", "1024m")
    remote = SparkJob("/jobs/etl.py", master="yarn", resources=Resources(cpus=2, memory="4GiB"))
    assert "conf" not in settings(remote)


def test_a_clusters_address_object_is_a_master_and_keeps_its_lease():
    for given in (CLUSTER, json.dumps(CLUSTER), str(CLUSTER)):
        job = SparkJob("/jobs/etl.py", master=given)
        assert settings(job)["master"] == "spark://127.0.0.1:7077"
        assert [service.stage for service in job.services()] == [("d", "r", "cluster")]


def test_a_connect_servers_address_object_is_taken_too():
    job = SparkJob("/jobs/etl.py", connect={"remote": "sc://127.0.0.1:15002", "service": CLUSTER["service"]})
    assert settings(job)["connect"] == "sc://127.0.0.1:15002"
    assert "master" not in settings(job)
    assert len(job.services()) == 1


def test_secrets_are_named_in_the_plan_and_never_shown():
    job = SparkJob(
        "/jobs/etl.py",
        secrets={"STORE_KEY": "hunter2"},
        secret_conf={"spark.hadoop.fs.s3a.bucket.b.secret.key": "STORE_KEY"},
        s3a=S3A(access_key="AKIA", secret_key="hunter3", endpoint="https://minio:9000"),
        packages="org.apache.hadoop:hadoop-aws:3.5.0",
    )
    gang = job.plan()
    text = json.dumps(gang.to_json()) + repr(job) + json.dumps(job.fingerprint())
    assert "hunter" not in text
    assert {secret.reveal() for secret in gang.secrets.values()} == {"hunter2", "AKIA", "hunter3"}
    wanted = settings(job)["secret_conf"]
    assert wanted["spark.hadoop.fs.s3a.bucket.b.secret.key"] == "STORE_KEY"
    assert set(wanted.values()) == set(gang.secrets)


def test_a_distribution_brings_its_own_pyspark():
    job = SparkJob("/jobs/etl.py", spark_home="/opt/spark", java_home="/opt/java")
    assert job.plan().requires == ()
    assert job.roles()[0].env == {"SPARK_HOME": "/opt/spark", "JAVA_HOME": "/opt/java"}
    assert SparkJob("/jobs/etl.py").plan().requires == ("pyspark",)


def test_a_jar_has_the_class_and_its_arguments_in_its_fingerprint():
    assert SparkJob(JAR).fingerprint()["entry"] == "jar /jars/app.jar com.example.Main"
    assert SparkJob(JAR).fingerprint() != SparkJob(Jar("/jars/app.jar", "com.example.Main")).fingerprint()


def test_jobs_without_a_jvm_take_no_jar():
    from rallypoint import PythonJob

    with pytest.raises(InvalidJobError, match=r"PythonJob\(entry=…\): got Jar.*expected Script or Module or Function"):
        PythonJob(JAR)


# What it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"master": "spark//h:7077"}, r'master=…\): got .*expected "local\[\*\]" or another'),
        ({"master": "spark://h"}, "master"),
        ({"master": "sc://h:15002"}, r"give a Spark Connect server with connect="),
        ({"master": {"ui": "http://h"}}, "or the result of a SparkCluster stage"),
        ({"master": "mesos://h:5050"}, "master"),
        ({"deploy_mode": "here"}, '"client" or "cluster"'),
        ({"deploy_mode": "cluster"}, r'expected "client" with the master local\[\*\]'),
        ({"deploy_mode": "cluster", "master": "spark://h:7077"}, "standalone clusters run the drivers of jars alone"),
        ({"connect": "h:15002"}, 'expected "sc://host:port"'),
        ({"connect": "sc://h:15002/;token=hunter2"}, "give it as the secret SPARK_CONNECT_AUTHENTICATE_TOKEN"),
        ({"connect": "sc://h:15002", "master": "yarn"}, "expected nothing beside connect="),
        ({"connect": "sc://h:15002", "driver_memory": "2g"}, r"driver_memory=…\).*nothing beside connect="),
        ({"connect": "sc://h:15002", "hive": True}, r"hive=…\).*nothing beside connect="),
        ({"connect": "sc://h:15002", "packages": "g:a:1"}, r"packages=…\).*nothing beside connect="),
        ({"conf": {"sql.shuffle.partitions": 8}}, 'a property whose name starts with "spark."'),
        ({"conf": {"fs.s3a.endpoint": "h"}}, 'write "spark.hadoop.fs.s3a.endpoint"'),
        ({"conf": {"spark.x": None}}, "text, a number or a boolean"),
        ({"conf": {"spark.x": "${rallypoint:run_dir}"}}, "without NUL and"),
        ({"conf": {"spark.executor.memory": "2g"}}, "expected it as executor_memory="),
        ({"conf": {"spark.master": "yarn"}}, "expected it as master="),
        ({"conf": ["spark.x"]}, "values by property"),
        ({"driver_memory": "2048"}, "a size with its unit"),
        ({"driver_memory": "256m"}, 'at least "450m"'),
        ({"executor_memory": 2}, "a size with its unit"),
        ({"executor_cores": 0}, "a whole number, 1 or more"),
        ({"num_executors": "two"}, "a whole number, 1 or more"),
        ({"packages": "hadoop-aws"}, '"group:artifact:version"'),
        ({"packages": ["/a.jar"]}, "files go into jars="),
        ({"exclude_packages": "g"}, '"group:artifact"'),
        ({"jars": ["/a,b.jar"]}, "a text without commas"),
        ({"jars": 3}, "a list of texts"),
        ({"keytab": "/k"}, "the principal of the keytab"),
        ({"keytab": "/k", "principal": "p", "proxy_user": "u"}, "Spark takes one of them"),
        ({"keytab": "/k", "keytab_secret": "K", "principal": "p"}, "one of keytab= and keytab_secret="),
        ({"name": "two\nlines"}, "one line of text"),
        ({"history_server": "history:18080"}, '"http://host:port"'),
        ({"hive": "yes"}, "True, False or a Hive"),
        ({"connect_timeout": 0}, "seconds above 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_to_do(options, words):
    with pytest.raises(InvalidJobError, match=words) as refused:
        SparkJob("/jobs/etl.py", **options)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "spark.authenticate.secret",
        "spark.ssl.keyStorePassword",
        "spark.hadoop.fs.s3a.access.key",
        "spark.hadoop.fs.s3a.session.token",
        "spark.hadoop.fs.azure.account.key.data.dfs.core.windows.net",
        "spark.hadoop.javax.jdo.option.ConnectionPassword",
        "spark.openlineage.transport.auth.apiKey",
    ],
)
def test_a_secret_in_conf_is_refused_without_repeating_it(name):
    with pytest.raises(InvalidJobError, match="secret_conf= says which property gets it") as refused:
        SparkJob("/jobs/etl.py", conf={name: "hunter2"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "spark.kubernetes.driver.secrets.store-token",
        "spark.hadoop.fs.s3a.aws.credentials.provider",
        "spark.kubernetes.authenticate.oauthTokenFile",
        "spark.hadoop.fs.s3a.endpoint",
    ],
)
def test_names_that_only_look_like_secrets_are_properties(name):
    assert settings(SparkJob("/jobs/etl.py", conf={name: "x"}))["conf"] == {name: "x"}


@pytest.mark.parametrize("entry", [Module("jobs.etl"), Function(print)])
def test_what_the_cluster_cannot_run_is_refused_in_cluster_mode(entry):
    with pytest.raises(InvalidJobError, match='expected a Script or a Jar with deploy_mode="cluster"'):
        SparkJob(entry, master="yarn", deploy_mode="cluster")


def test_a_secret_that_is_not_among_the_others_is_told_before_anything_is_launched():
    other = {"secrets": {"OTHER": "x"}}
    with pytest.raises(InvalidJobError, match=r"secret_conf=…\): got 'KEY', expected the name of a variable in"):
        SparkJob("/jobs/etl.py", secret_conf={"spark.authenticate.secret": "KEY"}, **other).plan()
    with pytest.raises(InvalidJobError, match=r"keytab_secret=…\)"):
        SparkJob("/jobs/etl.py", principal="p", keytab_secret="K", **other).plan()


def test_a_plan_without_secrets_can_be_looked_at_and_the_driver_tells_what_is_missing():
    job = SparkJob("/jobs/etl.py", secret_conf={"spark.authenticate.secret": "KEY"})
    assert job.plan().secrets == {}
    with pytest.raises(environment.SecretMissingError, match=r"got no variable KEY for the property spark"):
        environment.secrets(settings(job))


# What the driver makes of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "",
        " leading and trailing ",
        "back\\slash",
        "two\nlines\r\tand a tab",
        "a=b:c#d!e",
        "Grüße 🚀",
        "\\u0041",
    ],
)
def test_a_property_is_read_as_it_was_written(value):
    text = properties.dump({"spark.a b:c=d": value})
    assert text.isascii()
    assert properties.parse(text.splitlines()) == {"spark.a b:c=d": value.strip()}


def test_a_properties_file_of_the_users_is_read_as_java_reads_it():
    lines = [
        "# a comment",
        "! another",
        "",
        "spark.a 1",
        "spark.b=2",
        "spark.c : 3",
        "spark.d = x,\\",
        "   y",
        "spark.e",
    ]
    assert properties.parse(lines) == {
        "spark.a": "1", "spark.b": "2", "spark.c": "3", "spark.d": "x,y", "spark.e": "",
    }  # fmt: skip


def test_the_file_with_the_secrets_is_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(context.RUN_DIR, str(tmp_path))
    path = properties.write_private({"spark.authenticate.secret": "hunter2"})
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert Path(path).parent == tmp_path
    properties.remove(path)
    properties.remove(path)
    assert list(tmp_path.iterdir()) == []


def test_the_ui_is_told_to_hide_every_secret_property():
    import re

    found = properties.with_secrets({"spark.a": "1"}, {"spark.hadoop.custom.pin": "1234"})
    regex = re.compile(found[properties.REDACTION].replace("(?i)", "", 1), re.IGNORECASE)
    assert regex.search("spark.hadoop.custom.pin")
    assert regex.search("custom.pin")  # as the UI's list of Hadoop's properties has it
    assert regex.search("spark.hadoop.fs.s3a.secret.key")
    assert not regex.search("spark.hadoop.custom.pinned")
    own = properties.with_secrets({properties.REDACTION: "(?i)pin"}, {"spark.x": "1"})
    assert own[properties.REDACTION].startswith("(?i)pin|")


def test_the_properties_of_a_driver_name_its_stage_and_its_files(tmp_path, monkeypatch):
    given = tmp_path / "spark.conf"
    given.write_text("spark.sql.shuffle.partitions 4\nspark.ui.port 4050\n")
    job = SparkJob("/jobs/etl.py", properties_file=str(given), conf={"spark.sql.shuffle.partitions": 8}, name="nightly")
    found = environment.complete(settings(job))
    assert found["spark.sql.shuffle.partitions"] == "8"
    assert found["spark.ui.port"] == "4050"
    assert (found["spark.app.name"], found["spark.master"]) == ("nightly", "local[*]")
    assert {"spark.rallypoint.stage", "spark.rallypoint.attempt", "spark.rallypoint.dataUri"} <= found.keys()


@pytest.mark.parametrize("option", ["jars", "py_files", "files", "archives", "properties_file"])
def test_a_file_that_is_not_on_this_host_is_named(option, tmp_path):
    with pytest.raises(environment.FileMissingError, match=rf"{tmp_path}/none, which is not on .*: correct the path"):
        environment.check_files(
            environment.complete(settings(SparkJob("/jobs/etl.py", **{option: f"{tmp_path}/none"})))
        )


def test_files_elsewhere_are_for_spark_to_find(tmp_path):
    (tmp_path / "a.jar").touch()
    environment.check_files({"spark.jars": f"hdfs://n/a.jar,local:/b.jar,{tmp_path}/*.jar,file://{tmp_path}/a.jar#x"})


def test_a_host_without_java_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(java.JavaMissingError, match=r"expected Java 17 or later.*java_home=.*connect="):
        environment.prepare(settings(SparkJob("/jobs/etl.py")))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(java.JavaMissingError, match=f"got JAVA_HOME={tmp_path}, in which there is no bin/java"):
        environment.prepare(settings(SparkJob("/jobs/etl.py")))


@pytest.mark.parametrize(
    ("version", "spark", "too_old"),
    [
        ("1.8.0_412", "4.2.0", True),
        ("11.0.23", "4.0.0", True),
        ("17.0.15", "4.2.0", False),
        ("21.0.3", "4.2.0", False),
        ("11.0.23", "3.5.6", False),  # a distribution that `spark_home` names
    ],
)
def test_a_java_that_is_too_old_for_its_spark_is_told_before_spark_starts(tmp_path, version, spark, too_old):
    (tmp_path / "release").write_text(f'IMPLEMENTOR="Debian"\nJAVA_VERSION="{version}"\n')
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / f"spark-core_2.13-{spark}.jar").touch()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "java"
    program.touch()
    expected = pytest.raises(java.JavaMissingError, match=r"expected Java 17 or later, which Spark 4 needs")
    with expected if too_old else nullcontext():
        java.require_version(program, str(tmp_path))


def test_a_keytab_travels_as_a_secret_and_is_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(context.RUN_DIR, str(tmp_path))
    monkeypatch.setenv("KEYTAB", "a2V5dGFi")
    job = SparkJob("/jobs/etl.py", principal="me@EXAMPLE.COM", keytab_secret="KEYTAB")
    path = environment.complete(settings(job))["spark.kerberos.keytab"]
    assert Path(path).read_bytes() == b"keytab"
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    monkeypatch.setenv("KEYTAB", "hunter2!")
    with pytest.raises(environment.SecretMissingError) as refused:
        environment.complete(settings(job))
    assert "hunter2" not in str(refused.value)


def test_a_master_that_does_not_answer_is_named_with_what_to_do():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"spark://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(environment.MasterUnreachableError, match=f"got the Spark master {master}, at which nothing"):
        environment.prepare(settings(SparkJob("/jobs/etl.py", master=master, connect_timeout=0.1)))


# Progress -------------------------------------------------------------------------------------------------------------


def test_tasks_and_stages_are_counted_once_however_often_they_ran():
    jobs = [
        {"numTasks": 10, "numCompletedTasks": 12, "numCompletedIndices": 10, "numSkippedTasks": 0, "numFailedTasks": 3,
         "numCompletedStages": 2},
        {"numTasks": 8, "numCompletedTasks": 1, "numCompletedIndices": 1, "numSkippedTasks": 4, "numFailedTasks": 0,
         "numCompletedStages": 0},
    ]  # fmt: skip
    executors = [{"id": "driver", "isActive": True}, {"id": "0", "isActive": True}, {"id": "1", "isActive": False}]
    counts = progress.count(jobs, executors)
    assert counts == progress.Counts(done=11, total=14, failed=3, stages=2, executors=1)
    assert counts.metrics() == {"spark_stages": 2, "spark_executors": 1, "spark_failed_tasks": 3}


def test_the_progress_that_the_code_reports_itself_is_not_overwritten(tmp_path, monkeypatch):
    writer = EventWriter(f"file://{tmp_path}", "driver-0")
    monkeypatch.setattr(process, "_writer", writer)
    progress.report(1, 4, {"spark_stages": 1})
    writer.report({"auc": 0.7}, {"step": 1, "total": 3, "unit": "fold"})
    progress.report(2, 4, {"spark_stages": 2})
    writer.flush()
    events = [json.loads(line) for line in (tmp_path / "driver-0.jsonl").read_text().splitlines()]
    assert [(event["event"], event.get("unit"), event.get("step")) for event in events] == [
        ("progress", "task", 1),
        ("progress", "fold", 1),
        ("metrics", None, None),
    ]


# What failures mean ---------------------------------------------------------------------------------------------------

JVM = """An error occurred while calling o42.count.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 1 in stage 0.0 failed 4 times, most recent \
failure: Lost task 1.3 in stage 0.0 (TID 7) (10.0.0.7 executor 2): {cause}
\tat org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(DAGScheduler.scala:2856)

Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.abortStage(DAGScheduler.scala:2790)
Caused by: {root}
\t... 1 more
"""
WORKER = """org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/jobs/etl.py", line 3, in double
    raise ValueError("no such tail number")
ValueError: no such tail number
 SQLSTATE: 38000
"""


class Py4JError(Exception):
    __module__ = "py4j.protocol"


def told(text):
    (event,) = causes(Py4JError(text))
    return event


def kind_of(event):
    return classify(
        FAILURE_RULES,
        exception=event.get("exception", ""), message=event.get("message", ""),
        signal=event.get("signal"), exit_code=event.get("exit_code"),
    )  # fmt: skip


def test_an_exception_in_a_python_worker_is_the_cause_with_its_traceback_and_host():
    event = told(JVM.format(cause=WORKER, root=WORKER))
    assert (event["exception"], event["message"], event["host"]) == ("ValueError", "no such tail number", "10.0.0.7")
    assert 'File "/jobs/etl.py", line 3, in double' in event["traceback"]
    assert "in the Python worker (task 1.3 of stage 0.0, executor 2 on 10.0.0.7):" in event["traceback"]
    assert "DAGScheduler" not in event["traceback"]


def test_javas_root_cause_names_the_failure():
    event = told(JVM.format(cause="java.io.IOException: torn", root="java.io.EOFException: end of file"))
    assert event["exception"] == "java.io.EOFException"
    assert event["message"].startswith("org.apache.spark.SparkException: Job aborted due to stage failure")
    assert event["message"].endswith("caused by java.io.EOFException: end of file")
    assert event["host"] == "10.0.0.7"


@pytest.mark.parametrize(
    ("text", "kind", "title"),
    [
        ("java.lang.OutOfMemoryError: Java heap space", Kind.RETRYABLE, "out of memory"),
        (
            "ExecutorLostFailure (executor 2 exited caused by one of the tasks) Reason: Command exited with code 137",
            Kind.RETRYABLE,
            "out of memory",
        ),
        (
            "org.apache.spark.SparkException: ExecutorLostFailure: Remote RPC client disassociated",
            Kind.RETRYABLE,
            "a Spark executor was lost",
        ),
        (
            "org.apache.spark.shuffle.FetchFailedException: connection reset",
            Kind.RETRYABLE,
            "shuffle data was lost",
        ),
        (
            "java.lang.ClassNotFoundException: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found",
            Kind.USER,
            "Spark has no connector for this file system",
        ),
        ("java.lang.ClassNotFoundException: com.example.Main", Kind.USER, "a class is missing on Spark's class path"),
        (
            "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)",
            Kind.RETRYABLE,
            "a Python worker of Spark was lost",
        ),
        (
            "org.apache.spark.SparkException: All masters are unresponsive! Giving up.",
            Kind.RETRYABLE,
            "the Spark master cannot be reached",
        ),
    ],
)
def test_what_java_says_is_classified(text, kind, title):
    rule = kind_of(told(JVM.format(cause=text, root=text)))
    assert (rule.kind, rule.name) == (kind, title)


def test_a_missing_s3a_connector_names_the_package_of_sparks_own_hadoop():
    pytest.importorskip("pyspark")
    text = "java.lang.ClassNotFoundException: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found"
    event = told(JVM.format(cause=text, root=f"java.lang.RuntimeException: {text}"))
    assert "org.apache.hadoop:hadoop-aws:" in event["message"]
    assert "packages=[" in event["message"]


def test_a_jar_that_failed_is_told_by_what_it_printed():
    output = (
        'INFO x\nException in thread "main" java.lang.IllegalStateException: no rows\n\tat com.example.Main.main(\n'
    )
    (event,) = causes(JarFailedError(1, output))
    assert (event["exception"], event["exit_code"]) == ("java.lang.IllegalStateException", 1)
    assert "no rows" in event["message"]
    (silent,) = causes(JarFailedError(-9, "INFO x\n"))
    assert (silent["exception"].rpartition(".")[2], silent["signal"]) == ("JarFailedError", "SIGKILL")


def test_a_driver_whose_jvm_was_killed_may_be_retried():
    (event,) = causes(DriverLostError(-9))
    rule = kind_of(event)
    assert (event["signal"], rule.kind, rule.name) == ("SIGKILL", Kind.RETRYABLE, "Spark's driver was lost")


def test_the_users_own_errors_are_left_alone():
    assert causes(ValueError("Caused by: java.lang.OutOfMemoryError: x")) == []


def test_a_jobs_own_rules_come_first():
    rule = FailureRule("ours", Kind.USER, "fix it", message="All masters")
    job = SparkJob("/jobs/etl.py", failure_rules=(rule,))
    assert job.rules == (rule, *FAILURE_RULES)
