"""What the tests share."""

from __future__ import annotations

import logging
import uuid

import pytest

S3_KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing-secret-key", "region": "us-east-1"}


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


@pytest.fixture
def s3_store_uri(s3_endpoint):
    """The URI of an empty prefix in a bucket, and the options that open it."""
    return f"s3://rallypoint-tests/{uuid.uuid4().hex}", {**S3_KEYS, "endpoint_url": s3_endpoint}


@pytest.fixture(autouse=True)
def _no_cloud_of_this_machine(monkeypatch):
    """No test sees the credentials or settings of who runs it."""
    import os

    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
