"""The parts of a deploy to Ray Serve that need no cluster: merging, comparing, remembering, and rare answers."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rallypoint.frameworks.deploy.lease import Lease
from rallypoint.frameworks.deploy.records import open_records
from rallypoint.frameworks.deploy.rest import RefusedError, UnreachableError
from rallypoint.frameworks.deploy.termination import Termination
from rallypoint.frameworks.ray.serve import history as histories
from rallypoint.frameworks.ray.serve.client import Dashboard
from rallypoint.frameworks.ray.serve.cluster import ConflictError, Target
from rallypoint.frameworks.ray.serve.history import History, cluster_id
from rallypoint.frameworks.ray.serve.live import Live
from rallypoint.frameworks.ray.serve.merge import (
    SECRET,
    NotOursError,
    VersionError,
    in_clear,
    merged,
    redacted,
    revealed,
    same,
    with_variables,
)
from rallypoint.frameworks.ray.serve.packages import Packages, zipped


def config(name, **more):
    return {"name": name, "route_prefix": f"/{name}", "import_path": "m:app", **more}


def application(name, *, status="RUNNING", deployed=True, **more):
    return {
        "status": status,
        "route_prefix": f"/{name}",
        "deployed_app_config": config(name, **more) if deployed else None,
        "deployments": {},
    }


def live(*names, started=True, **applications):
    found = {name: application(name) for name in names} | applications
    options = {"http_options": {"host": "127.0.0.1", "port": 8111}, "proxy_location": "HeadOnly", "target_capacity": 50}
    return Live.from_json({"applications": found, **(options if started else {})})


# Merging -------------------------------------------------------------------------------------------------------------


def test_one_application_is_replaced_and_everything_else_is_written_as_it_was():
    written = merged(live("a", "b"), "b", config("b", args={"x": 1}))
    assert written["applications"] == [config("a"), config("b", args={"x": 1})]
    assert (written["proxy_location"], written["target_capacity"]) == ("HeadOnly", 50)
    assert written["http_options"] == {"host": "127.0.0.1", "port": 8111}


def test_an_application_is_added_or_left_out():
    assert [each["name"] for each in merged(live("a"), "b", config("b"))["applications"]] == ["a", "b"]
    assert [each["name"] for each in merged(live("a", "b"), "b", None)["applications"]] == ["a"]


def test_http_options_count_for_the_first_start_only():
    first = {"host": "127.0.0.1", "port": 9}
    assert merged(live(started=False), "a", config("a"), http_options=first)["http_options"] == first
    assert merged(live(), "a", config("a"), http_options=first)["http_options"]["port"] == 8111


def test_what_is_being_deleted_or_came_from_code_is_not_written():
    now = live("a", going=application("going", status="DELETING"), code=application("code", deployed=False))
    assert [each["name"] for each in merged(now, "b", config("b"))["applications"]] == ["a", "b"]


def test_an_application_from_code_is_not_taken_over():
    now = live(code=application("code", deployed=False))
    with pytest.raises(NotOursError, match=r"deployed from Python code .serve\.run."):
        merged(now, "code", config("code"))


def test_hidden_values_of_others_are_not_destroyed():
    now = live(a=application("a", runtime_env={"env_vars": {"KEY": "<redacted>"}}))
    with pytest.raises(RefusedError, match="writing would destroy them"):
        merged(now, "b", config("b"))


def test_configs_are_the_same_whatever_serve_fills_in():
    wanted = config("a", args={"x": 1.0}, deployments=[{"name": "M", "num_replicas": 2}])
    shown = {**wanted, "args": {"x": 1}, "logging_config": {"encoding": "TEXT"}, "runtime_env": {}}
    assert same(shown, wanted)
    assert not same({**shown, "args": {"x": 2}}, wanted)
    assert not same({**shown, "external_scaler_enabled": True}, wanted)
    assert not same(None, wanted)
    assert same(None, None)


# Secrets -------------------------------------------------------------------------------------------------------------

SECRETIVE = config(
    "a",
    runtime_env={"env_vars": {"TOKEN": "t0p", "THREADS": "2"}},
    deployments=[{"name": "M", "ray_actor_options": {"runtime_env": {"env_vars": {"DEEP": "d33p"}}}}],
    args={"env_vars": {"no": "environment"}},
)


def test_values_are_kept_only_where_somebody_gave_them_in_clear():
    kept = redacted(SECRETIVE, {("THREADS", "2")})
    assert kept["runtime_env"]["env_vars"] == {"TOKEN": SECRET, "THREADS": "2"}
    assert kept["deployments"][0]["ray_actor_options"]["runtime_env"]["env_vars"] == {"DEEP": SECRET}
    assert kept["args"] == SECRETIVE["args"]
    assert in_clear(kept) == {("THREADS", "2")}
    assert same(SECRETIVE, kept)
    assert "t0p" in json.dumps(SECRETIVE)


def test_a_stored_config_gets_its_secrets_from_the_job_or_from_what_is_live():
    kept = redacted(SECRETIVE, set())
    found = revealed(kept, {"TOKEN": "new", "THREADS": "4"}, SECRETIVE)
    assert found["runtime_env"]["env_vars"] == {"TOKEN": "new", "THREADS": "4"}
    assert found["deployments"][0]["ray_actor_options"]["runtime_env"]["env_vars"] == {"DEEP": "d33p"}
    with pytest.raises(VersionError, match="needs DEEP, TOKEN, whose values the store does not keep"):
        revealed(kept, {"THREADS": "4"}, None)


def test_variables_are_added_beside_others():
    assert with_variables(config("a"), {}) == config("a")
    added = with_variables(config("a", runtime_env={"env_vars": {"A": "1"}}), {"B": "2"})
    assert added["runtime_env"] == {"env_vars": {"A": "1", "B": "2"}}


# History -------------------------------------------------------------------------------------------------------------


def test_versions_are_numbered_and_the_newest_comes_first(records):
    history = History(records, "prod", "my app/ü")
    for text in ("one", "two", "three"):
        version = history.begin(action="deploy", config=config(text), previous=None, owner="o")
        if text != "two":
            history.finish(version, state=histories.RUNNING, replicas=1)
    assert [version.number for version in history.versions()] == [3, 2, 1]
    assert [version.state for version in history.versions()] == ["running", "deploying", "running"]
    assert history.read(1).config == config("one")
    assert history.read(9) is None
    history.finish(history.read(3), state=histories.FAILED, reason="no")
    assert history.standing().number == 2
    records.write(f"{history.folder}/4.json", b"torn {")
    assert history.newest().number == 3


def test_a_cluster_is_called_by_its_dashboard_unless_it_has_a_name():
    assert cluster_id("http://10.0.0.5:8265", None) == "10.0.0.5-8265"
    assert cluster_id("https://ray.example.com", None) == "ray.example.com-443"
    assert cluster_id("http://127.0.0.1:43211", "prod") == "prod"


# Packages ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_the_same_package_until_its_content_changes(tmp_path):
    folder = tmp_path / "code"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "a.pyc").write_bytes(b"x")
    (folder / "app.py").write_text("1")
    first = zipped(folder, parent=False)
    (folder / "app.py").touch()
    assert zipped(folder, parent=False) == first
    assert zipfile.ZipFile(io.BytesIO(first)).namelist() == ["app.py"]
    assert zipfile.ZipFile(io.BytesIO(zipped(folder, parent=True))).namelist() == ["code/app.py"]
    (folder / "app.py").write_text("2")
    assert zipped(folder, parent=False) != first


class Shelf:
    """The packages of a cluster."""

    def __init__(self):
        self.packages = {}

    def has_package(self, name):
        return name in self.packages

    def put_package(self, name, data):
        self.packages[name] = data


def test_folders_are_uploaded_and_come_back_after_the_cluster_forgot_them(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "app.py").write_text("1")
    (tmp_path / "rallypoint.zip").write_bytes(zipped(tmp_path / "code", parent=True))
    shelf, records = Shelf(), open_records((tmp_path / "store").as_uri())
    packages = Packages(shelf, records)
    given = config("a", runtime_env={"working_dir": str(tmp_path / "code"), "py_modules": ["s3://b/c.zip"], "pip": []})
    uploaded = packages.packed(given, archive=str(tmp_path / "rallypoint.zip"))
    assert not shelf.packages
    packages.send()
    modules = uploaded["runtime_env"]["py_modules"]
    assert modules[0] == "s3://b/c.zip"
    uris = [modules[1], uploaded["runtime_env"]["working_dir"]]
    assert all(uri.startswith("gcs://_ray_pkg_") and uri.endswith(".zip") for uri in uris)
    before = dict(shelf.packages)
    assert packages.packed(given, archive=str(tmp_path / "rallypoint.zip")) == uploaded
    shelf.packages.clear()
    packages.restore(uploaded)
    assert shelf.packages == before
    with pytest.raises(RefusedError, match="expected a folder"):
        packages.packed(config("a", runtime_env={"working_dir": str(tmp_path / "none")}), archive=None)


# Rare answers of a dashboard -----------------------------------------------------------------------------------------


@pytest.fixture
def dashboard():
    """A dashboard whose next answers a test says: status, body, and whether it takes what is written."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer()

        def do_PUT(self):
            written = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.written.append(json.loads(written))
            self._answer()

        def _answer(self):
            self.server.seen.append((self.command, dict(self.headers)))
            status, body = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/login")
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.seen, server.written = [], [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (503, b"the GCS may be down", UnreachableError, "answered 503: the GCS may be down"),
        (500, b"boom", UnreachableError, "answered 500"),
        (401, b"", RefusedError, "RAY_AUTH_TOKEN"),
        (403, b"", RefusedError, "RAY_JOB_HEADERS"),
        (302, b"", RefusedError, "as a login page does"),
        (404, b"", RefusedError, "expected the dashboard of a Ray cluster"),
        (501, b"pip install", RefusedError, r"install ray\[serve\] on its head"),
        (400, b"bad config", RefusedError, "refused the request .400.: bad config"),
        (200, b"<html>login</html>", RefusedError, "is this a Ray dashboard's address"),
        (200, b"[1]", RefusedError, "got no JSON object"),
    ],
)
def test_each_answer_that_is_none_says_what_to_do(dashboard, status, body, kind, message):
    dashboard.answers = [(status, body)]
    with pytest.raises(kind, match=message):
        Dashboard(dashboard.url).applications()


def test_a_token_and_secret_headers_come_from_the_environment(dashboard, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"Cookie": "session=1"}')
    dashboard.answers = [(200, {})]
    found = Dashboard.connect(dashboard.url, {"X-Team": "ml"}, None, verify=True)
    found.applications()
    headers = dashboard.seen[0][1]
    assert (headers["Authorization"], headers["Cookie"], headers["X-Team"]) == ("Bearer t0ken", "session=1", "ml")
    assert "t0ken" not in repr(found)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    connected = Dashboard.connect(dashboard.url, {}, None, verify=True)
    assert connected.headers["Authorization"] == "Bearer from a file"
    monkeypatch.setenv("RAY_JOB_HEADERS", "Cookie: x")
    with pytest.raises(RefusedError, match="RAY_JOB_HEADERS that is no JSON object"):
        Dashboard.connect(dashboard.url, {}, None, verify=True)


def target(dashboard, tmp_path):
    records = open_records(tmp_path.as_uri())
    return Target("a", Dashboard(dashboard.url), Lease(records, "leases/config", "stage 1"), Termination())


def test_a_dashboard_that_is_silent_for_a_moment_is_asked_again(dashboard, tmp_path):
    dashboard.answers = [(503, b""), (200, {"applications": {"a": application("a")}})]
    assert list(target(dashboard, tmp_path).look().applications) == ["a"]


def test_a_write_that_was_lost_is_seen_and_repeated(dashboard, tmp_path):
    wanted = config("a", args={"x": 1})
    before, after = ({"applications": {"a": application("a", **more)}} for more in ({}, {"args": {"x": 1}}))
    # read, write, read (another writer was faster), read, write, read
    dashboard.answers = [(200, before), (200, b""), (200, before), (200, before), (200, b""), (200, after)]
    target(dashboard, tmp_path).write(wanted, instead_of=config("a"))
    assert [each["applications"] for each in dashboard.written] == [[wanted], [wanted]]


def test_a_write_that_is_always_lost_is_a_conflict(dashboard, tmp_path):
    dashboard.answers = [(200, {"applications": {"a": application("a")}})]
    with pytest.raises(ConflictError, match="each time another writer took it away"):
        target(dashboard, tmp_path).write(config("a", args={"x": 1}), instead_of=config("a"))


def test_what_somebody_else_deployed_is_not_overwritten(dashboard, tmp_path):
    dashboard.answers = [(200, {"applications": {"a": application("a", args={"x": 2})}})]
    with pytest.raises(ConflictError, match="somebody else deployed 'a' meanwhile"):
        target(dashboard, tmp_path).write(config("a", args={"x": 1}), instead_of=config("a"))
    assert dashboard.written == []
