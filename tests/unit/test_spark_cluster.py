"""Temporary clusters and Connect servers of Spark, as data."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark import daemon
from rallypoint.frameworks.spark.cluster import SparkCluster, SparkWorkers
from rallypoint.frameworks.spark.connect_server import SparkConnectServer
from rallypoint.frameworks.spark.environment import FileMissingError
from rallypoint.frameworks.spark.installation import Installation
from rallypoint.frameworks.spark.java import JavaMissingError
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.frameworks.spark.master_watch import MasterWatch
from rallypoint.spec.entry import Script
from rallypoint.spec.service import services_of

REF = {"store": "file:///store", "stage": ["d", "r", "cluster"], "attempt": 1, "lease": 900}
CLUSTER = {
    "master": "spark://127.0.0.1:7077", "ui": "http://127.0.0.1:8080", "rest": "http://127.0.0.1:6066",
    "service": REF, "uses": [],
}  # fmt: skip


def settings(role):
    return json.loads(role.argv[-1])


def test_a_cluster_is_a_master_and_its_workers():
    gang = SparkCluster(workers=3, cores_per_worker=2, memory_per_worker="2GiB", lease=60).plan()
    assert [(role.name, role.replicas) for role in gang.roles] == [("master", 1), ("worker", 3)]
    assert (gang.service, gang.lease, gang.stall_timeout) == (True, 60, None)
    master, worker = gang.roles
    assert master.ports == ("master", "ui", "rest")
    assert settings(master)["wanted"] == ["worker-0", "worker-1", "worker-2"]
    assert (settings(worker)["cores"], settings(worker)["memory"]) == (2, 2048)
    assert (worker.resources.cpus, worker.resources.memory_bytes) == (2, (2048 + 512) << 20)


def test_workers_and_servers_keep_the_cluster_that_they_use():
    refs = services_of(CLUSTER, job="x")
    assert SparkWorkers(cluster=CLUSTER).services() == refs
    assert SparkConnectServer(master=CLUSTER).services() == refs
    assert SparkJob(Script("/a.py"), master=CLUSTER).services() == refs
    permanent = {"master": "spark://spark.example.org:7077", "ui": "https://spark.example.org"}
    assert SparkWorkers(cluster=permanent).services() == ()
    assert SparkConnectServer(master=permanent).services() == ()


def test_a_connect_server_takes_what_its_master_needs():
    (role,) = SparkConnectServer(master=CLUSTER, driver_memory="2g", total_executor_cores=2).plan().roles
    assert settings(role)["options"] == {
        "spark.master": "spark://127.0.0.1:7077", "spark.driver.memory": "2048m", "spark.cores.max": "2",
    }  # fmt: skip
    (local,) = SparkConnectServer(master="local[3]").roles()
    assert local.resources.cpus == 3
    assert SparkConnectServer().roles()[0].resources.cpus is None


def test_a_secret_is_in_no_command_line():
    gang = SparkCluster(
        conf={"spark.authenticate": True}, secret_conf={"spark.authenticate.secret": "S"},
        secrets={"S": "hunter2"}, rest=False,
    ).plan()  # fmt: skip
    assert "hunter2" not in json.dumps(gang.to_json())
    assert settings(gang.roles[0])["secret_conf"] == {"spark.authenticate.secret": "S"}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SparkCluster(workers=0), "workers"),
        (lambda: SparkCluster(workers=1.5), "workers"),
        (lambda: SparkCluster(cores_per_worker=0), "cores_per_worker"),
        (lambda: SparkCluster(memory_per_worker="lots"), "memory_per_worker"),
        (lambda: SparkCluster(memory_per_worker="100MiB"), "memory_per_worker"),
        (lambda: SparkCluster(daemon_memory="1MiB"), "daemon_memory"),
        (lambda: SparkCluster(start_timeout=0), "start_timeout"),
        (lambda: SparkCluster(max_restarts=-1), "max_restarts"),
        (lambda: SparkCluster(lease=0), "lease"),
        (lambda: SparkCluster(rest="yes"), "rest"),
        (lambda: SparkCluster(conf={"workers": 1}), "conf"),
        (lambda: SparkCluster(conf={"spark.master.rest.port": 1}), "conf"),
        (lambda: SparkCluster(conf={"spark.authenticate.secret": "hunter2"}), "conf"),
        (lambda: SparkCluster(conf={"spark.authenticate": True}), "rest"),
        (lambda: SparkCluster(secret_conf={"spark.authenticate.secret": "S"}), "secret_conf"),
        (lambda: SparkCluster(spark_home="spark"), "spark_home"),
        (lambda: SparkWorkers(cluster={}), "cluster"),
        (lambda: SparkWorkers(cluster="spark://a:7077"), "cluster"),
        (lambda: SparkWorkers(cluster={**CLUSTER, "ui": "here"}), "cluster"),
        (lambda: SparkWorkers(cluster={**CLUSTER, "service": 1}), "cluster"),
        (lambda: SparkConnectServer(master="sc://a"), "master"),
        (lambda: SparkConnectServer(driver_memory=""), "driver_memory"),
        (lambda: SparkConnectServer(conf={"spark.driver.memory": "1g"}), "conf"),
        (lambda: SparkConnectServer(conf={"spark.connect.grpc.binding.port": 1}), "conf"),
        (lambda: SparkConnectServer(packages="delta"), "packages"),
    ],
)
def test_bad_input_is_answered_when_the_job_is_made(make, name):
    with pytest.raises(InvalidJobError, match=name) as caught:
        make()
    assert "expected" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_host_without_spark_or_java_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(FileMissingError, match="bin/spark-class"):
        Installation(str(tmp_path))
    for folder in ("bin", "jars"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "spark-class").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaMissingError, match="install it"):
        Installation(str(tmp_path))


def test_a_file_of_properties_is_for_this_user_alone(tmp_path):
    path = tmp_path / "daemon.properties"
    daemon.write_properties(path, {"spark.authenticate.secret": "a b\\c"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "spark.authenticate.secret=a b\\\\c\n"


def test_a_master_is_lost_when_it_has_answered_and_no_longer_does():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        watch = MasterWatch(f"spark://127.0.0.1:{listening.getsockname()[1]}", patience=0.2, look_every=0.02)
        listening.settimeout(10)

        def accept():
            listening.accept()[0].close()

        answered = threading.Thread(target=accept)
        answered.start()
        found = []
        looking = threading.Thread(target=lambda: found.append(watch.lost()))
        looking.start()
        answered.join(10)
    looking.join(10)
    assert found == [True]


def test_a_master_that_never_answered_is_not_lost_but_unreachable():
    watch = MasterWatch("spark://127.0.0.1:9", patience=0.0, look_every=0.01)
    looking = threading.Thread(target=watch.lost, daemon=True)
    looking.start()
    looking.join(0.3)
    assert looking.is_alive()
    watch.close()
    looking.join(10)
    assert not looking.is_alive()
