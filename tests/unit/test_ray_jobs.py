"""The launcher of Ray jobs, without a cluster: addresses and options, requests, what Ray's words mean."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import zipfile
from datetime import timedelta

import pytest

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, Phase, ProcessEnd, Status
from rallypoint.launchers.ray_jobs import RayJobsLauncher, api, clients, logs, packages
from rallypoint.launchers.ray_jobs.address import Access, Address
from rallypoint.launchers.ray_jobs.request import FORBIDDEN, PROCESS, STORE, Ask, store_mark, submission
from rallypoint.launchers.ray_jobs.status import final_status, status_of
from rallypoint.launchers.registry import launcher_of, open_launcher, scoped
from rallypoint.spec.gang import Gang, Macro, Role, Secret
from rallypoint.spec.resources import Resources
from rallypoint.worker import ray_job

ATTEMPT = "rp-train-0123456789-a1"


@pytest.mark.parametrize(
    ("given", "uri", "url"),
    [
        ("ray-jobs://head", "ray-jobs://head:8265", "http://head:8265"),
        ("ray-jobs://HEAD:80/", "ray-jobs://head:80", "http://head:80"),
        ("ray-jobs+https://ray.example.com", "ray-jobs+https://ray.example.com:443", "https://ray.example.com:443"),
        ("ray-jobs+https://x/team/ray/", "ray-jobs+https://x:443/team/ray", "https://x:443/team/ray"),
        ("ray-jobs://[::1]:8265", "ray-jobs://[::1]:8265", "http://[::1]:8265"),
        ("ray-jobs://h?python=/opt/a b/python", "ray-jobs://h:8265?python=%2Fopt%2Fa+b%2Fpython", "http://h:8265"),
        ("ray-jobs://h?namespace=staging", "ray-jobs://h:8265?namespace=staging", "http://h:8265"),
    ],
)
def test_an_address_has_one_uri(given, uri, url):
    address = Address.from_uri(given)
    assert (address.uri, address.url) == (uri, url)
    assert Address.from_uri(uri) == address
    assert open_launcher(given).uri == uri


@pytest.mark.parametrize(
    "uri",
    ["ray-jobs://", "ray-jobs://h?token=abc", "ray-jobs://h:99999", "ray-jobs://h#x", "ray-jobs://h?namespace=A_B"],
)
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(LaunchError, match="expected ray-jobs://ray-head:8265"):
        open_launcher(uri)


def test_a_password_in_the_uri_is_refused_without_being_repeated():
    with pytest.raises(LaunchError, match="user or password in the URI") as refused:
        open_launcher("ray-jobs://me:hunter2@head:8265")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"token": "hunter2\n"}, {"headers": ["hunter2"]}, {"cookies": {"a": 1}}, {"verify": "/no/such/hunter2"},
        {"timeout": 0}, {"cert": 1}, {"hunter": 1}, {"dashboard_url": "javascript:alert(1)"}, {"stop_grace": -1},
        {"entrypoint_num_cpus": "1"}, {"runtime_env": {"env_vars": ["a"]}}, {"metadata": {"a": 1}},
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_and_its_value_not_repeated(options):
    with pytest.raises(LaunchError, match=next(iter(options))) as refused:
        open_launcher("ray-jobs://head", options)
    assert "hunter2" not in str(refused.value)


def test_certificates_are_checked_unless_told_otherwise(tmp_path):
    assert Access.from_options({}).verify is True
    assert Access.from_options({"verify": ""}).verify is True
    assert Access.from_options({"verify": "False"}).verify is False
    assert Access.from_options({"verify": str(tmp_path)}).verify == str(tmp_path)


def test_a_launcher_without_options_takes_none():
    with pytest.raises(LaunchError, match="got the options token for a local:// launcher"):
        open_launcher("local:///tmp/runs", {"token": "x"})


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        ("ray-jobs://head:8265?python=python3", True),
        ("ray-jobs://head:8265/below", True),
        ("ray-jobs://head:9000", False),
        ("ray-jobs://other:8265", False),
        ("ray-jobs+https://head:8265", False),
    ],
)
def test_credentials_go_to_the_host_that_they_are_for_and_no_other(uri, same):
    own = open_launcher("ray-jobs://head", {"token": "t0ken"})
    found = launcher_of(uri, own)
    assert found.uri == open_launcher(uri).uri
    assert found._access.token == ("t0ken" if same else None)
    assert launcher_of(own.uri, own) is own
    assert launcher_of("local:///tmp/runs", own).uri.startswith("local:///tmp/runs")


# Credentials of the environment --------------------------------------------------------------------------------------

TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_HEADERS")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets Ray's variables, of which there is none before; the home is an empty folder."""
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


def access(options=None, uri="ray-jobs://head"):
    return open_launcher(uri, options)._access


def test_without_an_option_the_token_and_the_headers_are_those_that_rays_own_client_would_find(environment, tmp_path):
    assert (access().token, access().headers) == (None, {})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home\n")
    assert access().token is None, "Ray reads it in its token mode alone"
    environment(RAY_AUTH_MODE="token", RAY_JOB_HEADERS='{"X-Team": "ml"}')
    assert (access().token, access().headers) == ("of the home", {"X-Team": "ml"})
    (tmp_path / "file").write_text("of the file\n")
    environment(RAY_AUTH_TOKEN_PATH=tmp_path / "file")
    assert access().token == "of the file"
    environment(RAY_AUTH_TOKEN="of the variable")
    assert access().token == "of the variable"
    environment(RAY_AUTH_MODE="disabled")
    assert access().token is None


def test_what_an_option_gives_is_not_looked_for(environment):
    environment(RAY_AUTH_TOKEN="environment", RAY_JOB_HEADERS='{"X-Team": "environment"}')
    given = access({"token": "option", "headers": {"X-Team": "option"}})
    assert (given.token, given.headers) == ("option", {"X-Team": "option"})
    assert access({"headers": {"authorization": "Basic abc"}}).token is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_AUTH_TOKEN_PATH", "/no/such/file"),
        ("RAY_JOB_HEADERS", "X-Key: hunter2"),
        ("RAY_JOB_HEADERS", '["hunter2"]'),
    ],
)
def test_a_variable_that_holds_no_credentials_is_named_and_not_repeated(environment, name, value):
    environment(**{name: value})
    with pytest.raises(LaunchError, match=name) as refused:
        open_launcher("ray-jobs://head")
    assert "hunter2" not in str(refused.value)


def test_a_token_of_the_environment_goes_to_no_host_that_only_a_record_names(environment):
    environment(RAY_AUTH_TOKEN="t0ken", RAY_JOB_HEADERS='{"X-Team": "ml"}')
    for own in (open_launcher("ray-jobs://head"), open_launcher("local:///tmp/runs")):
        elsewhere = launcher_of("ray-jobs://somebodys-host", own)._access
        assert (elsewhere.token, elsewhere.headers) == (None, {})
    assert launcher_of("ray-jobs://head?python=python3", open_launcher("ray-jobs://head"))._access.token == "t0ken"
    assert launcher_of("ray-jobs://head", None)._access.token == "t0ken", "a person looks, as by `ray job logs`"


# What is submitted ---------------------------------------------------------------------------------------------------


def gang(**more):
    role = Role(name="driver", argv=(Macro.PYTHON, "-c", "pass"), **more.pop("role", {}))
    return Gang(name="test", roles=(role,), **more)


def unzipped(package):
    with zipfile.ZipFile(io.BytesIO(package.data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_request_asks_for_the_resources_of_the_process_and_for_what_is_asked_beside():
    resources = Resources(cpus=2, memory="1GiB", gpus=1)
    ask = Ask(runtime_env={"pip": ["a"], "env_vars": {"X": "1"}}, entrypoint_num_cpus=1, metadata={"team": "a"})
    ask = ask.with_options({"runtime_env": {"env_vars": {"Y": "2"}}, "entrypoint_num_cpus": 3, "metadata": {"b": "c"}})
    made = submission(gang(role={"resources": resources}), ATTEMPT, ask, Address.from_uri("ray-jobs://h?namespace=n"))
    request = made.request
    assert request["submission_id"] == f"{ATTEMPT}-n"
    assert request["entrypoint"] == "exec python -m rallypoint.worker.ray_job"
    asked = {name: request[name] for name in request if name.startswith("entrypoint_")}
    assert asked == {"entrypoint_num_cpus": 3, "entrypoint_num_gpus": 1, "entrypoint_memory": 1 << 30}
    assert request["runtime_env"]["pip"] == ["a"]
    assert request["runtime_env"]["env_vars"].items() >= {"X": "1", "Y": "2"}.items()
    assert request["metadata"].items() >= {"team": "a", "b": "c", PROCESS: "driver-0"}.items()


def test_without_resources_none_are_asked_for_and_ray_places_the_process_on_its_head():
    request = submission(gang(), ATTEMPT, Ask(), Address.from_uri("ray-jobs://h")).request
    assert [name for name in request if name.startswith("entrypoint_")] == []


def test_secrets_are_in_a_package_of_their_own_that_is_never_called_the_same():
    secret = gang(secrets={"PASSWORD": Secret("hunter2")}, files={"function.pkl": b"code"})
    one, two = (submission(secret, ATTEMPT, Ask(), Address.from_uri("ray-jobs://h")) for _ in range(2))
    assert "hunter2" not in json.dumps(one.request)
    (code, hidden), (_, again) = one.packages, two.packages
    assert not any(b"hunter2" in data for data in unzipped(code).values())
    assert unzipped(hidden) == {ray_job.SECRETS: b'{"PASSWORD": "hunter2"}'}
    assert hidden.name != again.name
    assert "hunter2" not in repr(one)


def test_a_folder_has_one_name_for_one_content_and_leaves_out_what_is_excluded(tmp_path):
    for name in ("a.py", "b.log", "__pycache__/a.pyc", "data/x.bin", "data/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    package = packages.of_path(str(tmp_path), excludes=["*.log", "data/*.bin"])
    assert set(unzipped(package)) == {"a.py", "data/y.txt"}
    os.utime(tmp_path / "a.py", (0, 0))
    assert packages.of_path(str(tmp_path), excludes=["*.log", "data/*.bin"]) == package
    (tmp_path / "a.py").write_text("changed")
    assert packages.of_path(str(tmp_path), excludes=["*.log", "data/*.bin"]).name != package.name


def test_a_folder_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "MAX_PACKAGE", 10)
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(PreflightError, match="leave files out with excludes"):
        packages.of_path(str(tmp_path))


# What Ray's words mean -----------------------------------------------------------------------------------------------

DONE = Status(Phase.ENDED, "completed", (ProcessEnd("driver-0", 0, host="n1"),))
BROKEN = Status(Phase.ENDED, "failed", (ProcessEnd("driver-0", 3, host="n1", first=True),))
NAMED = {PROCESS: "driver-0"}


@pytest.mark.parametrize(
    ("details", "final", "expected"),
    [
        (None, None, (Phase.LOST, "", ())),
        ({"status": "PENDING"}, None, (Phase.RUNNING, "", ())),
        ({"status": "RUNNING"}, None, (Phase.RUNNING, "", ())),
        ({"status": "A_NEW_ONE"}, None, (Phase.RUNNING, "", ())),
        ({"status": "SUCCEEDED", "metadata": NAMED}, None, (Phase.ENDED, "completed", (0,))),
        ({"status": "SUCCEEDED"}, DONE, (Phase.ENDED, "completed", (0,))),
        ({"status": "SUCCEEDED"}, BROKEN, (Phase.ENDED, "failed", (3,))),
        ({"status": "STOPPED"}, BROKEN, (Phase.ENDED, "cancelled", (3,))),
        ({"status": "SUCCEEDED", "metadata": {FORBIDDEN: "true"}}, None, (Phase.ENDED, "cancelled", ())),
        ({"status": "FAILED", "driver_exit_code": 3}, BROKEN, (Phase.ENDED, "failed", (3,))),
        ({"status": "FAILED", "driver_exit_code": 5}, None, (Phase.ENDED, "failed", (5,))),
        ({"status": "FAILED", "driver_exit_code": 1}, DONE, (Phase.ENDED, "failed", (1,))),
        ({"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, None, (Phase.ENDED, "error", ())),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, None, (Phase.LOST, "", ())),
    ],
)
def test_the_status_of_a_job(details, final, expected):
    status = status_of(details, final)
    assert (status.phase, status.reason, tuple(end.exit_code for end in status.processes)) == expected


def test_a_driver_that_a_signal_ended_is_reported_with_its_name():
    (end,) = status_of({"status": "FAILED", "driver_exit_code": -9, "metadata": NAMED}, None).processes
    assert end == ProcessEnd("driver-0", None, "SIGKILL", first=True)


@pytest.mark.parametrize(
    "record", [None, b"", b"[]", b"{}", b"[" * 100_000, b'{"reason": "completed", "processes": 3}']
)
def test_what_is_no_final_record_counts_as_none(record):
    assert final_status(record) is None


# What is asked -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def dashboard():
    """A server that answers as a test wants: what stands between Rallypoint and Ray can say anything."""
    answers, seen = [], []

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head.splitlines()[0])
        status, body, *more = answers.pop(0) if len(answers) > 1 else answers[0]
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *more]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        launcher = RayJobsLauncher.from_uri(f"ray-jobs://127.0.0.1:{port}")
        launcher.answers, launcher.seen = answers, seen
        yield launcher


async def test_only_ray_itself_can_say_that_there_is_no_job(dashboard):
    dashboard.answers[:] = [(404, f"Job {ATTEMPT} does not exist".encode())]
    assert await dashboard.find(ATTEMPT) is None
    dashboard.answers[:] = [(404, b"default backend - 404")]
    with pytest.raises(LaunchError, match="HTTP status 404, expected 200 of a Ray dashboard: default backend"):
        await dashboard.find(ATTEMPT)


async def test_a_proxy_that_is_starting_is_asked_again(dashboard):
    dashboard.answers[:] = [(503, b""), (502, b""), (200, b'{"status": "RUNNING"}')]
    assert (await dashboard.poll(Handle(dashboard.uri, ATTEMPT))).phase is Phase.RUNNING
    assert len(dashboard.seen) == 3


async def test_a_cluster_that_stays_away_is_an_error_within_bounds(monkeypatch):
    monkeypatch.setattr(api, "BRIEF", 0.5)
    with pytest.raises(LaunchError, match=r"does not answer .*: see whether the cluster runs"):
        await RayJobsLauncher.from_uri("ray-jobs://127.0.0.1:1").find(ATTEMPT)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((302, b"", "Location: https://login.example.com"), "a redirection .*a login page wants"),
        ((200, b"<html>hello</html>"), "something else than a Ray dashboard"),
        ((403, b"Forbidden: Invalid authentication token"), "Invalid authentication token"),
    ],
)
async def test_what_is_no_dashboard_or_a_closed_one_is_said(dashboard, answer, words):
    dashboard.answers[:] = [answer]
    with pytest.raises(LaunchError, match=words):
        await dashboard.check()


@pytest.mark.parametrize("attempt", ["../version", "rp-a/stop", "", "rp-" + "a" * 80])
async def test_an_id_that_is_none_is_never_asked_for(dashboard, attempt):
    with pytest.raises(LaunchError, match="expected one such as"):
        await dashboard.poll(Handle(dashboard.uri, attempt))
    assert dashboard.seen == []


# Whose job it is -----------------------------------------------------------------------------------------------------


def job_of(store, status="RUNNING"):
    metadata = {STORE: store_mark(store)} if store else {}
    return 200, json.dumps({"status": status, "metadata": metadata}).encode()


async def test_a_job_of_another_store_is_found_as_one_and_neither_watched_nor_stopped_nor_deleted(dashboard):
    own = scoped(dashboard, "file:///production")
    dashboard.answers[:] = [job_of("file:///staging")]
    handle = await own.find(ATTEMPT)
    status = await own.poll(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "error")
    assert "of another store" in status.message
    assert "namespace" in status.message
    await own.cancel(handle, timedelta(0))
    await own.cancel(Handle(own.uri, ATTEMPT), timedelta(0))  # of an attempt whose launch nobody has recorded
    dashboard.answers[:] = [job_of("file:///staging", "SUCCEEDED")]
    await own.clean(ATTEMPT, forget=True)
    assert {line.partition(" ")[0] for line in dashboard.seen} == {"GET"}


async def test_a_job_of_the_same_store_is_found_by_whoever_opens_it(dashboard):
    dashboard.answers[:] = [job_of("file:///production")]
    for launcher in (scoped(dashboard, "file:///production"), dashboard):
        handle = await launcher.find(ATTEMPT)
        assert "Ray job" in handle.links
        assert (await launcher.poll(handle)).phase is Phase.RUNNING


async def test_a_job_that_was_recorded_as_the_own_one_is_stopped_by_whichever_uri_its_store_is_reached(dashboard):
    recorded = Handle(dashboard.uri, ATTEMPT, {"links": {"Ray job": "http://…"}})
    dashboard.answers[:] = [job_of("file:///mnt/store"), (200, b"{}"), job_of("file:///mnt/store", "STOPPED")]
    await scoped(dashboard, "file:///link-to-it").cancel(recorded, timedelta(0))
    assert [line for line in dashboard.seen if line.startswith("POST")] == [f"POST /api/jobs/{ATTEMPT}/stop HTTP/1.1"]


def test_a_submission_says_whose_it_is():
    address = Address.from_uri("ray-jobs://h")
    marks = {
        submission(gang(), ATTEMPT, Ask(), address, mark=store_mark(store)).request["metadata"][STORE]
        for store in ("file:///a", "file:///b", "file:///a")
    }
    assert len(marks) == 2
    assert STORE not in submission(gang(), ATTEMPT, Ask(), address).request["metadata"]


def test_an_event_loop_that_ends_closes_its_connections():
    async def ask():
        launcher = RayJobsLauncher.from_uri("ray-jobs://127.0.0.1:1")
        client = await clients.client_of(launcher.address, launcher._access)
        assert await clients.client_of(launcher.address, launcher._access) is client
        return client, asyncio.get_running_loop()

    client, loop = asyncio.run(ask())
    assert client.is_closed
    del loop
    gc.collect()
    assert not any(kept for kept in clients._held.values())


# How logs are cut into pieces, and put together again ----------------------------------------------------------------


class Node:
    """Answers as the dashboard does for the files below a folder, and counts the bytes."""

    def __init__(self, folder):
        self.folder, self.sent = folder, 0

    async def log_file(self, node, name, limit):
        file = self.folder / name
        data = file.read_bytes()[:limit] if file.is_file() else None
        self.sent += len(data or b"")
        return data


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "ray" / ray_job.PUBLISHED / "job"
    (tmp_path / "logs").mkdir()
    publisher = ray_job.Publisher(str(tmp_path / "logs"), str(folder), shown="none")
    node = Node(tmp_path / "ray")
    return tmp_path / "logs" / "p-0.log", publisher, logs.PublishedLogs(node, "n1", "job"), node


async def test_a_log_is_read_from_its_pieces_wherever_a_reader_stands(published):
    log, publisher, reader, _ = published
    whole = b"".join(b"%07d\n" % number for number in range(40_000))
    read = b""
    for end in (1, 8, 65_535, 65_536, 65_537, 200_000, len(whole)):
        log.write_bytes(whole[:end])
        publisher.publish()
        while chunks := await reader.new(Cursor({"p-0": len(read)})):
            (chunk,) = chunks
            read += chunk.data
            assert (chunk.offset, chunk.skipped) == (len(read), 0)
    assert read == whole


async def test_a_reader_that_is_far_behind_reads_no_more_than_the_end(published):
    log, publisher, reader, node = published
    log.write_bytes(b"0123456\n" * 1_000_000)
    while publisher.publish():
        pass
    (chunk,) = await reader.new(Cursor({"p-0": 0}, max_behind=1 << 20))
    assert chunk.offset == 8_000_000
    assert chunk.skipped + len(chunk.data) == 8_000_000
    (tail,) = await reader.new(Cursor({"p-0": -100}, others=None))
    assert len(tail.data) == 100
    assert node.sent < 600_000


async def test_a_piece_that_is_gone_ends_what_can_be_read_at_its_place(published):
    log, publisher, reader, node = published
    log.write_bytes(b"0123456\n" * 30_000)
    publisher.publish()
    (node.folder / ray_job.PUBLISHED / "job" / ray_job.piece_name("p-0", 1)).unlink()
    (chunk,) = await reader.new(Cursor())
    assert chunk.offset == ray_job.PIECE


@pytest.mark.parametrize("index", [b"", b"[]", b'{"logs": {"../secret": 10, "p-0": -1, "q": "x"}}', b'{"logs": 3}'])
async def test_an_index_that_a_job_has_overwritten_shows_nothing(published, index):
    _, _, reader, node = published
    (node.folder / ray_job.PUBLISHED / "job" / ray_job.INDEX).write_bytes(index)
    assert await reader.new(Cursor()) == []
