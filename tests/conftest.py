"""What the tests share."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import sys
import tempfile
import textwrap
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The JVMs of tests live for some seconds, in which an optimising compiler and a parallel collector cost more than they
# bring: a Spark application that runs for half a minute without them takes twice as long with them, on two busy cores.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
# How fast a machine is decides no test.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")

# Tests that share an engine share a process, the longest first, so that two processes end at about the same time.
_ENGINES = (
    ("airflow", ("tests/e2e/test_airflow", "tests/e2e/test_flights")),
    ("ray", ("tests/integration/ray/",)),
    ("prefect", ("tests/integration/prefect/", "tests/e2e/test_prefect")),
    ("spark", ("tests/integration/spark/",)),
    ("ssh", ("tests/integration/ssh/", "tests/e2e/test_hosts")),
    ("slurm", ("tests/integration/slurm/",)),
)
S3_KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing-secret-key", "region": "us-east-1"}


def _place(nodeid):
    """Return a test's turn, and what it shares a process with: its engine's tests, or those of its file."""
    path = nodeid.partition("::")[0]
    engines = ((number, name) for number, (name, starts) in enumerate(_ENGINES) if path.startswith(starts))
    return next(engines, (len(_ENGINES) + path.startswith("tests/unit/"), path))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _place(item.nodeid)[0])


def pytest_xdist_make_scheduler(config, log):
    """Distribute the tests among the processes of `make test`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByEngine(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _place(nodeid)[1]

    config.option.loadscopereorder = False
    return ByEngine(config, log)


@pytest.fixture(scope="session")
def s3_endpoint():
    """The address of a moto server, an S3 in memory on this machine; it has the bucket ``rallypoint-tests``."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=S3_KEYS["aws_access_key_id"],
        aws_secret_access_key=S3_KEYS["aws_secret_access_key"],
        region_name=S3_KEYS["region"],
    )
    client.create_bucket(Bucket="rallypoint-tests")
    yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def network():
    """Two hosts in network namespaces of this machine; a test that kills one starts it again."""
    from net_hosts import NetHosts, missing

    if why := missing():
        pytest.skip(f"NO HOSTS, SO NOTHING ABOUT SSH IS TESTED: {why}")
    with Path(tempfile.gettempdir(), "rallypoint-hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the network's addresses are the machine's
        with NetHosts(2) as hosts:
            yield hosts


@pytest.fixture
def s3_store_uri(s3_endpoint):
    """The URI of an empty prefix in a bucket, and the options that open it."""
    return f"s3://rallypoint-tests/{uuid.uuid4().hex}", {**S3_KEYS, "endpoint_url": s3_endpoint}


@pytest.fixture
def as_dag_file(tmp_path):
    """Loads code as Airflow loads a DAG file: by path, under a name that no other process can import."""
    loaded = []

    def load(code, name):
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(code))
        spec = importlib.util.spec_from_file_location(f"unusual_prefix_0a1b2c_{name}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _no_cloud_of_this_machine(monkeypatch):
    """No test sees the credentials or settings of who runs it."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
