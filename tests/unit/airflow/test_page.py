"""The stage's page: who may see it, and that what a job writes is shown inert."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from rallypoint.airflow import page
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger, Record
from rallypoint.stages.store import Store

ADDRESS = "/stages/d/r/t/-1"


@pytest.fixture
def hostile_stage(tmp_path, monkeypatch):
    """A stage whose job has written HTML and terminal escapes wherever it could."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    bad = "<script>alert(1)</script>\x1b[2J"
    events = [
        {"event": "opened", "process": "agent-0", "kind": "process", "host": bad, "pid": 1, "log": "../../etc/passwd"},
        {"event": "progress", "step": 1, "total": 2, "metrics": {bad: bad}},
        {"event": "artifact", "name": bad, "uri": bad, "bytes": 1},
        {"event": "link", "name": "Dask dashboard", "url": "javascript:alert(1)"},
        {"event": "link", "name": "Good", "url": "http://127.0.0.1:8787/status"},
    ]

    async def write() -> None:
        store = Store.open(tmp_path / "rallypoint")
        ledger = Ledger(store, StageKey(("d", "r", "t")))
        await ledger.claim(
            Record(
                number=1,
                id=ledger.key.attempt_id(1),
                generation=1,
                resumed=False,
                kind="torch",
                fingerprint={},
                launcher=f"local://{tmp_path}/runs",
                owner="x",
                why=bad,
            )
        )
        lines = "".join(json.dumps({"v": 1, "t": float(n), **event}) + "\n" for n, event in enumerate(events))
        await store.put(f"{ledger.events_prefix(1)}/agent-0.jsonl", lines.encode())

    asyncio.run(write())


@pytest.fixture
def reader(monkeypatch):
    """A client who may read the task's logs."""
    monkeypatch.setitem(page.app.dependency_overrides, page._ReadLogs.dependency, lambda: None)
    return get


def get(address: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(page.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(address)

    return asyncio.run(ask())


def test_nobody_sees_the_page_without_a_login(hostile_stage):
    assert get(ADDRESS).status_code == 401
    assert get(f"{ADDRESS}/links/Good").status_code == 401


def test_what_a_job_writes_is_shown_inert(hostile_stage, reader):
    text = reader(ADDRESS).text
    assert "agent-0" in text
    assert "<script>" not in text
    assert "javascript:" not in text
    assert "\x1b" not in text
    assert "root:" not in text


def test_a_link_goes_on_to_what_the_job_reported_and_nowhere_else(hostile_stage, reader):
    good = reader(f"{ADDRESS}/links/Good")
    assert (good.status_code, good.headers["location"]) == (307, "http://127.0.0.1:8787/status")
    assert reader(f"{ADDRESS}/links/Dask%20dashboard").status_code == 404


def test_a_stage_that_never_started_is_not_found(reader, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    answer = reader(ADDRESS)
    assert answer.status_code == 404
    assert "has no attempt" in answer.text


def test_no_script_could_run_on_the_page(hostile_stage, reader):
    assert "default-src 'none'" in reader(ADDRESS).headers["content-security-policy"]


def test_the_page_tells_nothing_about_other_connections(hostile_stage, reader, monkeypatch):
    extra = json.dumps({"store": "/somewhere/else"})
    monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({"conn_type": "postgres", "password": "hunter2", "extra": extra}))
    other, missing = reader(f"{ADDRESS}?conn=db"), reader(f"{ADDRESS}?conn=no")
    assert (other.status_code, missing.status_code) == (404, 404)
    assert other.text.replace("'db'", "'no'") == missing.text
    assert reader(f"{ADDRESS}/links/Good?conn=db").status_code == 404


def test_the_page_reads_a_connection_of_its_own_type(hostile_stage, reader, monkeypatch, tmp_path):
    extra = {"store": str(tmp_path / "rallypoint")}
    monkeypatch.setenv("AIRFLOW_CONN_OURS", json.dumps({"conn_type": "rallypoint", "extra": extra}))
    assert reader(f"{ADDRESS}?conn=ours").status_code == 200
