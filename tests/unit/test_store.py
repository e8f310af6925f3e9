"""The store: the same rules for a folder and for a bucket, and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.errors import StoreError
from rallypoint.stages.store import Store


@pytest.fixture(params=["folder", "s3"])
def opening(request, tmp_path):
    """How to open an empty store of each kind."""
    if request.param == "folder":
        return f"file://{tmp_path}/store", {}
    return request.getfixturevalue("s3_store_uri")


@pytest.fixture
def store(opening):
    uri, options = opening
    return Store.open(uri, options=options)


# Reading and writing -------------------------------------------------------------------------------------------------


async def test_get_returns_what_was_put(store):
    await store.put("stage/attempt 1/a:b+c=%2F.json", b"one")
    assert await store.get("stage/attempt 1/a:b+c=%2F.json") == b"one"


async def test_put_replaces(store):
    await store.put("a", b"old and longer")
    await store.put("a", b"new")
    assert await store.get("a") == b"new"


async def test_absent_objects_and_folders_read_as_nothing(store):
    assert await store.get("a") is None
    assert await store.read_from("a", 0, 10) == b""
    assert await store.list("a") == []
    assert await store.list("") == []
    assert await store.children("a") == []
    await store.delete("a")


async def test_a_folder_is_not_an_object(store):
    await store.put("a/b", b"1")
    assert await store.get("a") is None


async def test_create_is_conditional(store):
    assert await store.create("a/b", b"first") is True
    assert await store.create("a/b", b"second") is False
    assert await store.get("a/b") == b"first"


async def test_create_of_the_same_bytes_is_conditional_too(store):
    assert await store.create("a", b"same") is True
    assert await store.create("a", b"same") is False


async def test_of_many_concurrent_creates_one_wins(opening):
    uri, options = opening
    stores = [Store.open(uri, options=options) for _ in range(4)]
    won = await asyncio.gather(*(each.create("a", str(n).encode()) for n, each in enumerate(stores * 5)))
    assert won.count(True) == 1
    assert await stores[0].get("a") == str(won.index(True)).encode()


async def test_a_created_object_may_be_created_again_after_it_was_deleted(store):
    await store.create("a", b"1")
    await store.delete("a")
    assert await store.create("a", b"2") is True


@pytest.mark.parametrize(
    ("start", "limit", "expected"),
    [(0, 5, b"01234"), (3, 4, b"3456"), (8, 100, b"89"), (10, 5, b""), (11, 5, b""), (9, 1, b"9")],
)
async def test_read_from_returns_a_part(store, start, limit, expected):
    await store.put("a", b"0123456789")
    assert await store.read_from("a", start, limit) == expected


async def test_read_from_of_an_empty_object_is_empty(store):
    await store.put("a", b"")
    assert await store.read_from("a", 0, 10) == b""
    assert await store.get("a") == b""


async def test_read_from_sees_what_a_job_appends(tmp_path):
    store = Store.open(tmp_path)
    with (tmp_path / "events.jsonl").open("ab", buffering=0) as file:
        file.write(b"one\n")
        assert await store.read_from("events.jsonl", 0, 100) == b"one\n"
        assert await store.read_from("events.jsonl", 4, 100) == b""
        file.write(b"two\n")
        assert await store.read_from("events.jsonl", 4, 100) == b"two\n"


async def test_list_returns_paths_and_sizes_at_any_depth_sorted(store):
    for path in ("b/z", "b/c/d", "b/a", "bb/x", "a"):
        await store.put(path, path.encode())
    assert await store.list("b") == [("b/a", 3), ("b/c/d", 5), ("b/z", 3)]
    assert [path for path, _ in await store.list("")] == ["a", "b/a", "b/c/d", "b/z", "bb/x"]


async def test_children_returns_direct_names_sorted(store):
    for path in ("b/z", "b/c/d", "b/c/e", "b/a", "bb/x"):
        await store.put(path, b"")
    assert await store.children("b") == ["a", "c", "z"]
    assert await store.children("") == ["b", "bb"]


async def test_more_objects_than_one_page_are_listed(s3_store_uri):
    store = Store.open(s3_store_uri[0], options=s3_store_uri[1])
    await asyncio.gather(*(store.put(f"many/{n:04d}", b"") for n in range(1001)))
    assert len(await store.list("many")) == 1001


async def test_check_leaves_nothing_behind(store):
    await store.check()
    assert await store.list("") == []


def test_one_store_serves_several_event_loops(store):
    asyncio.run(store.put("a", b"1"))
    assert asyncio.run(store.get("a")) == b"1"


def test_one_store_serves_several_threads(store):
    failures = []

    def work(n):
        try:
            asyncio.run(store.put(f"a/{n}", b"1"))
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(asyncio.run(store.list("a"))) == 8


def test_a_forked_process_is_told_instead_of_waiting_for_ever(store):
    asyncio.run(store.put("a", b"1"))
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(20)
        try:
            asyncio.run(store.get("a"))
        except StoreError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert b"was used before this process was forked" in pipe.read()
    os.waitpid(child, 0)


_SHORT_PROCESS = """
import asyncio, sys
from rallypoint.stages.store import Store

async def main():
    store = Store.open(sys.argv[1])
    await asyncio.gather(*(store.put(f"object-{number}", b"1" * 1000) for number in range(20)))
    for _ in range(3):
        await store.put("last", b"1")

asyncio.run(main())
"""


def test_a_process_that_ends_right_after_an_operation_ends_well(tmp_path):
    """obstore's asynchronous functions aborted one of five such processes."""
    command = [sys.executable, "-c", _SHORT_PROCESS, str(tmp_path)]
    for _ in range(5):
        ended = [process.wait(60) for process in [subprocess.Popen(command) for _ in range(4)]]
        assert ended == [0, 0, 0, 0]


# Paths and URIs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\nb", "a\x00", "a/b#1", "a/b:", "b|/c"]
)
async def test_paths_that_mean_different_things_in_different_stores_are_refused(store, path):
    for call in (store.get, store.delete):
        with pytest.raises(ValueError, match="got the path"):
            await call(path)
    with pytest.raises(ValueError, match="got the path"):
        store.child_uri(path)


_parts = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/#\\"), min_size=1, max_size=20)
_usable = _parts.filter(lambda part: part not in {".", ".."} and not re.search(r"[A-Za-z][:|]$", part))
_paths = st.lists(_usable, min_size=1, max_size=3).map("/".join)


@given(path=_paths, data=st.binary(max_size=64))
def test_a_folder_keeps_every_path_as_the_file_of_that_name(tmp_path_factory, path, data):
    store = Store.open(tmp_path_factory.mktemp("store"))
    assert store.local_path is not None
    asyncio.run(store.put(path, data))
    assert (store.local_path / path).read_bytes() == data
    assert asyncio.run(store.list("")) == [(path, len(data))]


@pytest.mark.parametrize(
    ("given_uri", "uri", "local_path"),
    [
        ("file:///x", "file:///x", "/x"),
        ("file:///x/y//", "file:///x/y", "/x/y"),
        ("file://localhost/x", "file:///x", "/x"),
        ("file:///a%20b", "file:///a%20b", "/a b"),
        ("/x/a b/", "file:///x/a%20b", "/x/a b"),
        (Path("/x"), "file:///x", "/x"),
        ("s3://bucket", "s3://bucket", None),
        ("s3://bucket/", "s3://bucket", None),
        ("s3://bucket/a/b/", "s3://bucket/a/b", None),
        ("gs://bucket/a", "gs://bucket/a", None),
        ("az://container/a", "az://container/a", None),
    ],
)
def test_open_normalises_the_uri(given_uri, uri, local_path):
    store = Store.open(given_uri)
    assert store.uri == uri
    assert store.local_path == (Path(local_path) if local_path else None)
    assert Store.open(store.uri).uri == uri


def test_child_uris_open_as_what_they_name(tmp_path):
    assert Store.open("s3://bucket/a").child_uri("b c") == "s3://bucket/a/b c"
    child = Store.open(tmp_path).child_uri("manual__2026-01-01T00:00:00+00:00/50% done")
    assert Store.open(child).local_path == tmp_path / "manual__2026-01-01T00:00:00+00:00/50% done"
    assert "T00:00:00+00:00" in child


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("relative/folder", "different working directories"),
        ("~/store", "give the full path"),
        ("", "give the full path"),
        ("file://host/x", "three slashes"),
        ("hdfs://name/x", "change its scheme"),
        ("http://127.0.0.1/x", "change its scheme"),
        ("s3://", "name a bucket"),
        ("s3:///x", "name a bucket"),
        ("s3://bucket/a/../b", "has a part '.' or '..'"),
        ("s3://bucket/a?versions", "options or in the environment"),
    ],
)
def test_open_refuses_other_uris_and_says_what_to_do(uri, says):
    with pytest.raises(StoreError, match="expected") as raised:
        Store.open(uri)
    assert says in str(raised.value)


@pytest.mark.parametrize("uri", ["s3://key:hunter2@bucket/x", "ftp://key:hunter2@host/x"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(StoreError) as raised:
        Store.open(uri)
    assert "hunter2" not in str(raised.value)


def test_open_does_no_io(tmp_path):
    Store.open(tmp_path / "store")
    Store.open("s3://bucket", options={"endpoint_url": "http://127.0.0.1:1"})
    assert list(tmp_path.iterdir()) == []


def test_unknown_options_are_refused_with_the_valid_ones():
    with pytest.raises(StoreError, match=r"endpoint_ulr.*access_key_id.*endpoint.*leave it out"):
        Store.open("s3://bucket", options={"endpoint_ulr": "http://127.0.0.1:1"})
    with pytest.raises(StoreError, match="a folder has no options"):
        Store.open("/x", options={"region": "us-east-1"})


def test_half_a_key_is_refused():
    with pytest.raises(StoreError, match="expected both or neither"):
        Store.open("s3://bucket", options={"aws_access_key_id": "a"})


# Errors --------------------------------------------------------------------------------------------------------------


async def _every_operation(store):
    """Return the error of each operation of a store that cannot be used."""
    errors = {}
    for name, call in {
        "create": lambda: store.create("a", b"1"),
        "put": lambda: store.put("a", b"1"),
        "get": lambda: store.get("a"),
        "read_from": lambda: store.read_from("a", 0, 1),
        "list": lambda: store.list("a"),
        "children": lambda: store.children("a"),
        "delete": lambda: store.delete("a"),
        "check": store.check,
    }.items():
        with pytest.raises(StoreError) as raised:
            await call()
        errors[name] = str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
    return errors


def _assert_helpful(errors, store, fix, *secrets):
    for operation, message in errors.items():
        assert store.uri in message, operation
        assert fix in message, operation
        assert "\n" not in message, operation
        assert not message.endswith("."), operation
        for secret in secrets:
            assert secret not in message, operation


async def test_a_bucket_that_does_not_exist_is_an_error_of_every_operation(s3_store_uri):
    store = Store.open("s3://no-such-bucket/x", options=s3_store_uri[1])
    _assert_helpful(await _every_operation(store), store, "create it, or correct the store's URI", "testing-secret-key")


async def test_an_endpoint_that_does_not_answer_is_an_error_of_every_operation(s3_store_uri, monkeypatch):
    monkeypatch.setattr("rallypoint.stages.store_options._MAX_RETRIES", 0)
    store = Store.open(s3_store_uri[0], options={**s3_store_uri[1], "endpoint_url": "http://127.0.0.1:1"})
    _assert_helpful(await _every_operation(store), store, "check endpoint and region", "testing-secret-key")


async def test_refused_credentials_are_an_error_of_every_operation(s3_endpoint, s3_store_uri):
    def refuse_after(count):
        urlopen(Request(f"{s3_endpoint}/moto-api/reset-auth", count, {"Content-Type": "text/plain"})).read()

    store = Store.open(s3_store_uri[0], options={**s3_store_uri[1], "aws_access_key_id": "AKIAIOSFODNN7EXAMPLE"})
    refuse_after(b"0")
    try:
        errors = await _every_operation(store)
    finally:
        refuse_after(b"inf")
    _assert_helpful(errors, store, "check them and the bucket's policy", "testing-secret-key", "AKIAIOSFODNN7EXAMPLE")


async def test_a_folder_that_cannot_be_made_is_an_error_of_every_operation(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = Store.open(tmp_path / "file" / "store")
    _assert_helpful(await _every_operation(store), store, "or choose another store")


async def test_no_credentials_at_all_says_where_they_may_come_from(s3_endpoint):
    store = Store.open("s3://rallypoint-tests/x", options={"endpoint_url": s3_endpoint, "region": "us-east-1"})
    with pytest.raises(StoreError, match=r"got no AWS credentials.*set AWS_ACCESS_KEY_ID"):
        await store.check()


def test_a_store_shows_no_secret(s3_store_uri):
    store = Store.open(s3_store_uri[0], options=s3_store_uri[1])
    assert "testing" not in repr(store).replace("rallypoint-testing", "")


# What a bucket's server may do ---------------------------------------------------------------------------------------


class _Proxy(BaseHTTPRequestHandler):
    """Passes requests on to S3; `tamper` may change a request's headers and the answer's status."""

    protocol_version = "HTTP/1.1"
    target = ""

    def tamper_request(self, headers): ...

    def tamper_answer(self, status):
        return status

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        self.tamper_request(headers)
        connection = HTTPConnection(self.target)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content, kept = answer.read(), answer.headers
        connection.close()
        self.send_response(self.tamper_answer(answer.status))
        for name, value in kept.items():
            if name.lower() not in {"connection", "content-length", "date", "server", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", kept["Content-Length"] if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - the base class calls these

    def log_message(self, *args): ...


@pytest.fixture
def through_proxy(s3_endpoint, s3_store_uri):
    """Return a function that opens the store through a proxy of the given behaviour."""
    servers = []

    def opened(**behaviour):
        handler = type("Handler", (_Proxy,), {"target": s3_endpoint.removeprefix("http://"), **behaviour})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        return Store.open(s3_store_uri[0], options={**s3_store_uri[1], "endpoint_url": endpoint})

    yield opened
    for server in servers:
        server.shutdown()
        server.server_close()


async def test_a_create_whose_answer_was_lost_knows_its_own_object(through_proxy):
    puts = []

    def lose_first_answer(handler, status):
        if handler.command != "PUT":
            return status
        puts.append(status)
        return 503 if len(puts) == 1 else status

    store = through_proxy(tamper_answer=lose_first_answer)
    assert await store.create("a", b"1") is True
    assert puts == [200, 412]
    assert await store.create("a", b"1") is False


async def test_check_finds_a_server_that_ignores_the_condition(through_proxy):
    def ignore_condition(_handler, headers):
        for name in list(headers):
            if name.lower() == "if-none-match":
                del headers[name]

    with pytest.raises(StoreError, match="without which a stage could run twice"):
        await through_proxy(tamper_request=ignore_condition).check()


# Credentials ---------------------------------------------------------------------------------------------------------


def test_a_folder_needs_no_environment(tmp_path):
    assert Store.open(tmp_path).job_env() == {}


def test_job_env_opens_the_same_bucket_without_options(s3_store_uri, monkeypatch):
    uri, options = s3_store_uri
    store = Store.open(uri, options=options)
    env = store.job_env()
    asyncio.run(store.put("a", b"1"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert asyncio.run(Store.open(uri).get("a")) == b"1"


def test_job_env_names_keys_region_and_endpoint(s3_store_uri):
    uri, options = s3_store_uri
    env = Store.open(uri, options=options).job_env()
    assert env["AWS_ACCESS_KEY_ID"] == "testing"
    assert env["AWS_SECRET_ACCESS_KEY"] == "testing-secret-key"
    assert env["AWS_ENDPOINT_URL"] == options["endpoint_url"]
    assert env["AWS_REGION"] == env["AWS_DEFAULT_REGION"] == "us-east-1"
    assert env["AWS_ALLOW_HTTP"] == "true"
    assert "AWS_SESSION_TOKEN" not in env


def test_a_profile_is_found_through_boto3(s3_store_uri, monkeypatch, tmp_path):
    uri, options = s3_store_uri
    (tmp_path / "credentials").write_text(
        "[ml]\naws_access_key_id = testing\naws_secret_access_key = from-profile\nregion = us-east-1\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "ml")
    store = Store.open(uri, options={"endpoint_url": options["endpoint_url"]})
    asyncio.run(store.check())
    env = store.job_env()
    assert env["AWS_SECRET_ACCESS_KEY"] == "from-profile"
    assert env["AWS_REGION"] == "us-east-1"


async def test_explicit_keys_are_not_joined_by_a_session_token_of_the_environment(through_proxy, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another-identity")
    seen = []

    def look(_handler, headers):
        seen.extend(value for name, value in headers.items() if name.lower() == "x-amz-security-token")

    store = through_proxy(tamper_request=look)
    await store.check()
    assert seen == []
    assert "AWS_SESSION_TOKEN" not in store.job_env()


async def test_an_endpoint_option_wins_over_the_environment(s3_store_uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = Store.open(s3_store_uri[0], options=s3_store_uri[1])
    await store.check()
    assert "http://127.0.0.1:1" not in store.job_env().values()


async def test_the_event_loop_runs_on_while_credentials_are_looked_for(s3_store_uri, monkeypatch):
    import time

    store = Store.open(s3_store_uri[0], options=s3_store_uri[1])
    connected = store._connected
    monkeypatch.setattr(store, "_connected", lambda: (time.sleep(0.5), connected())[1])
    writing = asyncio.ensure_future(store.put(uuid.uuid4().hex, b"1"))
    turns = 0
    while not writing.done():
        await asyncio.sleep(0.01)
        turns += 1
    await writing
    assert turns > 20
