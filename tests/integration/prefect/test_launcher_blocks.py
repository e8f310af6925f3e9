"""A launcher with a token, given as a block: whoever looks for its jobs later, or stops them, has the token too.

The server and the blocks are real; the Ray cluster is a dashboard that answers as Ray's Jobs API does. What a real
cluster does is in `tests/integration/ray`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rallypoint.errors import RallypointError
from rallypoint.frameworks.python.job import PythonJob
from rallypoint.prefect import RallypointRayCluster
from rallypoint.prefect.places import find_place
from rallypoint.prefect.reaper import stop_jobs
from rallypoint.spec.entry import Script
from rallypoint.stages.attempt import Request
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import Action, State

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TOKEN = "t0ken-of-the-cluster"


class Dashboard(ThreadingHTTPServer):
    """Keeps jobs as Ray does, for those who have the token."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.jobs = {}
        self.refused = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def statuses(self):
        return [job["status"] for job in self.jobs.values()]


class Answers(BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, said = self.of(self.command, self.path.split("?")[0].rstrip("/"), body)
        data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names that `BaseHTTPRequestHandler` looks for

    def of(self, method, path, body):
        jobs = self.server.jobs
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.server.refused += 1
            return HTTPStatus.UNAUTHORIZED, "Unauthorized: Missing authentication token"
        if path.startswith("/api/packages/"):
            return HTTPStatus.OK, {}
        if (method, path) == ("POST", "/api/jobs"):
            request = json.loads(body)
            jobs[request["submission_id"]] = {"status": "RUNNING", "metadata": request["metadata"]}
            return HTTPStatus.OK, {"submission_id": request["submission_id"]}
        name = path.removeprefix("/api/jobs/").removesuffix("/stop")
        if path.startswith("/api/jobs/") and name in jobs:
            if path.endswith("/stop"):
                jobs[name]["status"] = "STOPPED"
            return HTTPStatus.OK, jobs[name]
        return HTTPStatus.NOT_FOUND, f"Job {name} does not exist"

    def log_message(self, *_):
        """Say nothing: the requests are in the assertions."""


@pytest.fixture
def dashboard():
    dashboard = Dashboard()
    thread = threading.Thread(target=dashboard.serve_forever)
    thread.start()
    yield dashboard
    dashboard.shutdown()
    thread.join()
    dashboard.server_close()


@pytest.fixture
def job(tmp_path):
    script = tmp_path / "job.py"
    script.write_text("raise SystemExit('it runs on no cluster here')")
    return PythonJob(Script(str(script)))


@pytest.fixture
def cancelled_run(api):
    """The id of a flow run that was cancelled while it had no process."""
    flow = api.post("/flows/", name=f"on-ray-{uuid.uuid4().hex[:8]}")["id"]
    state = {"type": "CANCELLED", "name": "Cancelled"}
    return uuid.UUID(api.post("/flow_runs/", flow_id=flow, state=state)["id"])


async def start(job, run, store, launcher, owner="first"):
    place = await find_place(store, launcher)
    return await place.engine(StageKey((str(run), "on-ray", "train"))).start(job, Request(owner=owner))


async def test_a_retry_reattaches_through_the_block(prefect, dashboard, job, tmp_path):
    name = f"cluster-{uuid.uuid4().hex[:8]}"
    await RallypointRayCluster(url=dashboard.url, token=TOKEN).asave(name)
    store, run, launcher = f"file://{tmp_path}/store", uuid.uuid4(), f"rallypoint-ray-cluster/{name}"
    await start(job, run, store, launcher)
    again = await start(job, run, store, launcher, owner="second")
    assert again.decision.action is Action.REATTACH
    assert dashboard.statuses == ["RUNNING"]
    recorded = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert TOKEN.encode() not in recorded


@pytest.mark.parametrize("how", ["given", "saved"])
async def test_the_reaper_has_the_token_of_the_block(prefect, dashboard, job, cancelled_run, tmp_path, how):
    block = RallypointRayCluster(url=dashboard.url, token=TOKEN)
    elsewhere = RallypointRayCluster(url="http://127.0.0.1:1", token="of-another-cluster")
    await elsewhere.asave("elsewhere", overwrite=True)
    store = f"file://{tmp_path}/store"
    started = await start(job, cancelled_run, store, block)
    if how == "saved":
        await block.asave(f"cluster-{uuid.uuid4().hex[:8]}")
    stopped = await stop_jobs(cancelled_run, store=store, launcher=block if how == "given" else None)
    assert stopped == [started.attempt.record.id]
    assert (dashboard.statuses, dashboard.refused) == (["STOPPED"], 0)
    place = await find_place(store)
    last = await place.engine(StageKey((str(cancelled_run), "on-ray", "train"))).ledger.last()
    assert last.outcome.state is State.CANCELLED


async def test_a_reaper_without_the_token_says_what_it_could_not_stop(prefect, dashboard, job, cancelled_run, tmp_path):
    store = f"file://{tmp_path}/store"
    started = await start(job, cancelled_run, store, RallypointRayCluster(url=dashboard.url, token=TOKEN))
    with pytest.raises(RallypointError, match=f"(?s){started.attempt.record.id}.*asks for credentials"):
        await asyncio.wait_for(stop_jobs(cancelled_run, store=store), 60)
    assert dashboard.statuses == ["RUNNING"]
