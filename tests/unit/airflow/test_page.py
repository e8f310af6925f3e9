"""The stage's page: who may see it, and that what a job writes is shown inert."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from urllib.parse import parse_qs, urlsplit

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


def event_file(step, tag, value):
    """An event file with one scalar, as frameworks write it."""
    from rallypoint.stages.scalars import masked_crc

    summary = b"\x0a" + bytes([len(tag)]) + tag.encode() + b"\x15" + struct.pack("<f", value)
    event = bytes([0x10, step, 0x2A, len(summary) + 2, 0x0A, len(summary)]) + summary
    head = struct.pack("<Q", len(event))
    return head + struct.pack("<I", masked_crc(head)) + event + struct.pack("<I", masked_crc(event))


def write_scalars(tmp_path, *scalars):
    ledger = Ledger(Store.open(tmp_path / "rallypoint"), StageKey(("d", "r", "t")))
    path = f"{ledger.data_prefix(1)}/tensorboard/events.out.tfevents.1.host"
    data = b"".join(event_file(*scalar) for scalar in scalars)
    asyncio.run(ledger.store.put(path, data))
    return ledger


def test_scalars_of_event_files_are_drawn_and_so_are_reported_metrics(hostile_stage, reader, tmp_path):
    ledger = write_scalars(tmp_path, (1, "<b>loss</b>", 0.5), (2, "<b>loss</b>", 0.25))
    line = json.dumps({"v": 1, "t": 9.0, "event": "metrics", "metrics": {"accuracy": 0.75, "note": "text"}})
    asyncio.run(ledger.store.put(f"{ledger.events_prefix(1)}/rank-0.jsonl", f"{line}\n".encode()))
    text = reader(ADDRESS).text
    assert "&lt;b&gt;loss&lt;/b&gt;" in text
    assert "<b>loss" not in text
    assert 'points="2.0,2.0 318.0,78.0"' in text
    assert "<b>accuracy</b> 0.75" in text
    assert "<b>note</b>" not in text
    assert "rallypoint tensorboard d/r/t --store file://" in text


def test_a_stage_without_event_files_says_where_they_go_when_it_is_asked(hostile_stage, reader):
    assert "tensorboard_dir" not in reader(ADDRESS).text
    link = reader(f"{ADDRESS}/tensorboard")
    assert link.status_code == 307
    assert link.headers["location"].endswith(f"{ADDRESS}?conn=rallypoint_default&tensorboard=true#tensorboard")
    assert "rallypoint.stage().tensorboard_dir" in reader(f"{ADDRESS}?tensorboard=true").text


def test_the_link_goes_on_to_the_tensorboard_that_is_configured(hostile_stage, reader, monkeypatch):
    monkeypatch.setenv("AIRFLOW__RALLYPOINT__TENSORBOARD_URL", "https://tensorboard.example.com/")
    link = reader(f"{ADDRESS}/tensorboard").headers["location"]
    parts = urlsplit(link)
    assert link.startswith("https://tensorboard.example.com/?runFilter=")
    (runs,) = parse_qs(parts.query)["runFilter"]
    assert re.search(runs, "stages/d/r/t/generations/000001/tensorboard/train")
    monkeypatch.setenv("AIRFLOW__RALLYPOINT__TENSORBOARD_URL", "javascript:alert(1)")
    assert "javascript" not in reader(f"{ADDRESS}/tensorboard").headers["location"]


def test_nobody_is_sent_to_a_tensorboard_without_a_login(hostile_stage):
    assert get(f"{ADDRESS}/tensorboard").status_code == 401


def test_the_launchers_connection_stays_in_every_address(hostile_stage, reader, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", json.dumps({"conn_type": "ray", "host": "127.0.0.1", "port": 9}))
    to_page = reader(f"{ADDRESS}/tensorboard?on=cluster").headers["location"]
    assert parse_qs(urlsplit(to_page).query)["on"] == ["cluster"]
    assert to_page.endswith("#tensorboard")
    assert "&on=cluster" in reader(f"{ADDRESS}?on=cluster").text
    for path in ("", "/tensorboard", "/links/Good"):
        missing = reader(f"{ADDRESS}{path}?on=none")
        assert (missing.status_code, "or none 'none'" in missing.text) == (404, True)
