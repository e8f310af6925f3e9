"""What several unit tests share."""

from __future__ import annotations

import pytest

from rallypoint.frameworks.deploy.records import open_records


@pytest.fixture(params=["folder", "bucket"])
def records(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return open_records((tmp_path / "a store").as_uri())
    uri, options = request.getfixturevalue("s3_store_uri")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["aws_secret_access_key"])
    monkeypatch.setenv("AWS_REGION", options["region"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    return open_records(uri)
