"""Gangs as jobs of a real Ray cluster: never twice, found again, stopped, read in steps, and nothing secret shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, Handle, Phase
from rallypoint.launchers.ray_jobs import launcher as launcher_module
from rallypoint.launchers.registry import launcher_of, open_launcher, scoped
from rallypoint.spec.gang import Macro, Secret
from rallypoint.spec.shipment import ARCHIVE

pytestmark = pytest.mark.engine

GRACE = timedelta(seconds=10)
DEADLINE = 120.0  # seconds: a job's start takes some, and cores are shared
SECRET = "tr0ub4dor-and-3"
_numbers = count(1)


@pytest.fixture
def launcher(ray_head):
    return open_launcher(ray_head.dashboard_url.replace("http://", "ray-jobs://"))


@pytest.fixture
def attempt(request):
    """An id that no other test uses: the cluster remembers them."""
    return f"rp-launcher-{next(_numbers)}-a1"


@pytest.fixture
def end_of(until):
    """Waits until a gang has ended, and returns how."""

    async def wait(launcher, handle):
        async def ended():
            status = await launcher.poll(handle)
            return status if status.phase is not Phase.RUNNING else None

        return await until(ended, deadline=DEADLINE)

    return wait


async def output(launcher, handle, cursor=None):
    return [chunk async for chunk in launcher.logs(handle, cursor or Cursor())]


async def text(launcher, handle):
    return b"".join([chunk.data for chunk in await output(launcher, handle)]).decode()


@pytest.fixture
def flag(tmp_path):
    """A file by which a job says where it is, and waits for the test."""
    return tmp_path / "flag"


async def test_a_gang_runs_to_its_end_and_is_found_by_its_id(launcher, gang, script, attempt, end_of, until):
    path = script("import sys; print('hello', *sys.argv[1:])")
    assert await launcher.find(attempt) is None
    handle = await launcher.launch(gang(path, "a b", "$HOME"), attempt)
    assert await launcher.find(attempt) == handle == Handle.from_json(json.loads(json.dumps(handle.to_json())))
    status = await end_of(launcher, handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "completed")
    assert [(end.name, end.exit_code) for end in status.processes] == [("p-0", 0)]
    assert await text(launcher, handle) == "hello a b $HOME\n"
    assert await launcher.poll(await launcher.launch(gang(path), attempt)) == status


async def test_output_is_read_in_steps_and_nothing_is_read_twice(launcher, gang, script, attempt, end_of, until, flag):
    path = script(f"""
        import time
        from pathlib import Path
        for number in range(20_000):
            print(f"line {{number:06d}} ", "x" * 20)
        print("first half", flush=True)
        Path({str(flag)!r}).touch()
        while Path({str(flag)!r}).exists():
            time.sleep(0.05)
        print("second half")
    """)
    handle = await launcher.launch(gang(path), attempt)
    await until(flag.exists, deadline=DEADLINE)
    read, offset = b"", 0
    while not read.endswith(b"first half\n"):
        for chunk in await output(launcher, handle, Cursor({"p-0": offset}, others=None)):
            assert 0 < len(chunk.data) <= 1 << 18
            assert chunk.data.endswith(b"\n")
            read, offset = read + chunk.data, chunk.offset
        await asyncio.sleep(0.05)
    assert offset == len(read) > 600_000
    assert read.splitlines()[19_999].startswith(b"line 019999")
    assert await output(launcher, handle, Cursor({"p-0": offset})) == []
    (late,) = await output(launcher, handle, Cursor({"p-0": 0}, max_behind=100_000))
    assert late.data == read[-len(late.data) :]
    assert late.skipped + len(late.data) == len(read)
    (tail,) = await output(launcher, handle, Cursor({"p-0": -11}, others=None))
    assert tail.data == b"first half\n"
    flag.unlink()
    await end_of(launcher, handle)
    (rest,) = await output(launcher, handle, Cursor({"p-0": offset}))
    assert rest.data == b"second half\n"
    # Ray's users look for it in the job's own log.
    assert "second half" in (await launcher._api._object("GET", f"/api/jobs/{attempt}/logs", patience=5))["logs"]


async def test_a_secret_reaches_the_process_and_nothing_that_can_be_looked_at(
    ray_head, launcher, gang, script, attempt, until, flag
):
    path = script(f"""
        import os, time
        from pathlib import Path
        config = os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]
        Path({str(flag)!r} + ".draft").write_text(os.environ["PASSWORD"] + " " + config)
        Path({str(flag)!r} + ".draft").rename({str(flag)!r})
        time.sleep(600)
    """)
    handle = await launcher.launch(gang(path, secrets={"PASSWORD": Secret(SECRET)}), attempt)
    await until(flag.exists, deadline=DEADLINE)
    got, _, config = flag.read_text().partition(" ")
    assert got == SECRET
    shown = [
        ray_head.get(where)
        for where in (
            f"/api/jobs/{attempt}",
            "/api/v0/jobs?detail=1",
            "/api/v0/actors?detail=1",
            "/api/v0/runtime_envs?detail=1",
        )
    ]
    assert attempt in str(shown[0])
    assert SECRET not in json.dumps(shown)
    packages = {name for name in shown[0]["runtime_env"]["py_modules"] if name not in config}
    assert len(packages) == 1, "the driver's own workers would fetch the secrets"
    assert SECRET not in str([process.cmdline() for process in ray_head.left()])
    files = [file for file in Path(ray_head.folder).rglob("*") if file.is_file() and not file.is_socket()]
    assert any(attempt in file.name for file in files)
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    await launcher.cancel(handle, GRACE)


async def test_two_submitters_at_once_start_one_job(launcher, gang, script, attempt, end_of, tmp_path):
    path = script(f"open({str(tmp_path / 'starts')!r}, 'a').write('started\\n')")
    other = open_launcher(launcher.uri)
    first, second = await asyncio.gather(launcher.launch(gang(path), attempt), other.launch(gang(path), attempt))
    assert first == second
    assert (await end_of(launcher, first)).reason == "completed"
    assert (tmp_path / "starts").read_text() == "started\n"


async def test_a_job_of_another_store_is_left_alone_and_a_namespace_tells_them_apart(
    launcher, gang, script, attempt, end_of, tmp_path, flag, until
):
    path = script(f"open({str(flag)!r}, 'w'); import time; time.sleep(600)")
    staging = scoped(launcher, f"file://{tmp_path}/staging")
    launcher = scoped(launcher, f"file://{tmp_path}/production")
    theirs = await staging.launch(gang(path), attempt)
    ours = gang(script("pass", name="ours.py"))
    handle = await launcher.launch(ours, attempt)
    assert await launcher.find(attempt) == handle
    status = await launcher.poll(handle)
    assert (status.reason, "of another store" in status.message) == ("error", True)
    await launcher.cancel(handle, GRACE)
    await until(flag.exists, deadline=DEADLINE)
    assert (await staging.poll(theirs)).phase is Phase.RUNNING
    apart = open_launcher(f"{launcher.uri}?namespace=production")
    assert (await end_of(apart, await apart.launch(ours, attempt))).reason == "completed"
    await staging.cancel(theirs, GRACE)


async def test_cancel_asks_then_ends_everything_and_may_be_repeated(
    launcher, gang, script, attempt, until, flag, jobs_left, tmp_path
):
    path = script(f"""
        import signal, subprocess, sys, time
        from pathlib import Path
        def stop(*_):
            print("asked to end", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", child])
        Path({str(flag)!r}).touch()
        time.sleep(600)
    """)
    options = {"ray_jobs": {"stop_grace": 2}}
    env = {"PYTHONPATH": f"{Macro.RUN_DIR}/{ARCHIVE}:{tmp_path}"}  # by which `jobs_left` tells this test's processes
    handle = await launcher.launch(gang(path, options=options, env=env), attempt)
    await until(flag.exists, deadline=DEADLINE)
    assert len(jobs_left()) == 2
    await launcher.cancel(handle, GRACE)
    status = await launcher.poll(handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "cancelled")
    assert "asked to end" in await text(launcher, handle)
    assert jobs_left() == {}
    await launcher.cancel(handle, GRACE)
    assert await launcher.poll(handle) == status


async def test_what_was_cancelled_before_its_start_never_starts(launcher, gang, script, attempt, end_of, tmp_path):
    await launcher.cancel(Handle(launcher.uri, attempt), GRACE)
    handle = await launcher.launch(gang(script(f"open({str(tmp_path / 'starts')!r}, 'w')")), attempt)
    assert (await end_of(launcher, handle)).reason == "cancelled"
    assert not (tmp_path / "starts").exists()
    await launcher.clean(attempt, forget=True)
    assert await launcher.find(attempt) is None


async def test_a_job_that_waits_for_resources_runs_until_ray_can_stop_it(
    ray_head, launcher, gang, script, attempt, monkeypatch, end_of, tmp_path
):
    monkeypatch.setattr(launcher_module, "CANCEL_MARGIN", 1.0)
    path = script(f"open({str(tmp_path / 'starts')!r}, 'w')")
    asked = {"entrypoint_resources": {"unicorns": 1}}
    handle = await launcher.launch(gang(path, options={"ray_jobs": asked}), attempt)
    assert (await launcher.poll(handle)).phase is Phase.RUNNING
    with pytest.raises(LaunchError, match="waits for resources"):
        await launcher.cancel(handle, timedelta(0))
    node = await asyncio.to_thread(ray_head.add_node, 1, resources={"unicorns": 1})
    try:
        assert (await end_of(launcher, handle)).reason == "cancelled"
    finally:
        await asyncio.to_thread(node.stop)


async def test_a_job_runs_on_a_node_with_the_labels_that_it_selects(ray_head, launcher, gang, script, attempt, end_of):
    asked = {"entrypoint_num_cpus": 1, "entrypoint_label_selector": {"disk": "in(nvme,ssd)"}}
    handle = await launcher.launch(gang(script("pass"), options={"ray_jobs": asked}), attempt)
    node = await asyncio.to_thread(ray_head.add_node, 1, labels="disk=nvme")
    try:
        assert (await end_of(launcher, handle)).reason == "completed"
        assert ray_head.get(f"/api/jobs/{attempt}")["driver_node_id"] == node.node_id != ray_head.head.node_id
    finally:
        await asyncio.to_thread(node.stop)


async def test_a_failed_job_says_with_which_exit_code(launcher, gang, script, attempt, end_of):
    handle = await launcher.launch(gang(script("import sys; print('about to end'); sys.exit(7)")), attempt)
    status = await end_of(launcher, handle)
    assert (status.phase, status.reason) == (Phase.ENDED, "failed")
    assert [(end.name, end.exit_code, end.first) for end in status.processes] == [("p-0", 7, True)]
    assert await text(launcher, handle) == "about to end\n"


async def test_a_hanging_process_is_dumped_and_ended_as_everywhere(launcher, gang, script, attempt, end_of):
    path = script("""
        import time
        def wait_for_godot():
            time.sleep(600)
        wait_for_godot()
    """)
    status = await end_of(launcher, await launcher.launch(gang(path, stall_timeout=2.0), attempt))
    assert status.reason == "stalled"
    assert "wait_for_godot" in status.message


async def test_a_runtime_environment_that_cannot_be_made_is_the_reason(launcher, gang, script, attempt, end_of):
    options = {"ray_jobs": {"runtime_env": {"working_dir": "gcs://_ray_pkg_that_is_not_there.zip"}}}
    status = await end_of(launcher, await launcher.launch(gang(script("pass"), options=options), attempt))
    assert (status.phase, status.reason) == (Phase.ENDED, "error")
    assert "_ray_pkg_that_is_not_there" in status.message


async def test_the_users_folders_are_uploaded_and_a_script_runs_in_its_working_dir(
    launcher, gang, attempt, end_of, tmp_path
):
    work, package = tmp_path / "work", tmp_path / "libs" / "mylib"
    for folder in (work / "data", package):
        folder.mkdir(parents=True)
    (work / "train.py").write_text(
        "import os, helper, mylib; print(helper.NAME, mylib.NAME, os.environ['COLOUR'], os.listdir('data'))"
    )
    (work / "helper.py").write_text("NAME = 'helper'")
    (work / "data" / "small.txt").write_text("1")
    (work / "data" / "big.bin").write_bytes(b"0" * 1000)
    (package / "__init__.py").write_text("NAME = 'mylib'")
    runtime_env = {
        "working_dir": str(work),
        "py_modules": [str(package)],
        "excludes": ["*.bin"],
        "env_vars": {"COLOUR": "green"},
    }
    handle = await launcher.launch(gang("train.py", options={"ray_jobs": {"runtime_env": runtime_env}}), attempt)
    status = await end_of(launcher, handle)
    assert await text(launcher, handle) == "helper mylib green ['small.txt']\n"
    assert status.reason == "completed"


async def test_what_is_no_single_process_or_no_option_is_refused_before_anything_is_sent(
    launcher, gang, script, attempt
):
    path = script("pass")
    with pytest.raises(PreflightError, match="gang of 2 processes, expected one"):
        await launcher.launch(gang(path, replicas=2), attempt)
    with pytest.raises(PreflightError, match=r"entrypoint_resources .*, expected an object of numbers"):
        await launcher.launch(gang(path, options={"ray_jobs": {"entrypoint_resources": {"GPU": "one"}}}), attempt)
    with pytest.raises(PreflightError, match=r"not_there.*expected a folder"):
        await launcher.launch(gang(path, options={"ray_jobs": {"runtime_env": {"working_dir": "not_there"}}}), attempt)
    assert await launcher.find(attempt) is None


# Who is asked, and with what -----------------------------------------------------------------------------------------


@pytest.fixture
async def proxy(ray_head, tmp_path):
    """Starts reverse proxies in front of the dashboard, which ask for a token; with TLS if wanted."""
    import ssl

    import aiohttp
    from aiohttp import web

    seen = []
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))

        async def forward(request):
            seen.append(request.headers.get("Authorization"))
            given = (seen[-1], request.headers.get("X-Key"), request.cookies.get("session"))
            if not {"Bearer let-me-in", "let-me-in"} & set(given):
                return web.Response(status=401, text="who are you?")
            url = f"{ray_head.dashboard_url}{request.rel_url}"
            async with session.request(request.method, url, data=await request.read()) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

        async def start(certificate=None):
            trust = None
            if certificate:
                trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                trust.load_cert_chain(*certificate)
            application = web.Application(client_max_size=1 << 28)
            application.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(application)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust).start()
            return f"127.0.0.1:{runner.addresses[0][1]}"

        start.seen = seen
        yield start


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1, and its key."""
    import subprocess

    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*shlex.split(make), "-out", cert, "-keyout", key], check=True, capture_output=True)
    return str(cert), str(key)


async def test_a_proxy_that_asks_for_a_token_gets_it(proxy, gang, script, attempt, end_of):
    launcher = open_launcher(f"ray-jobs://{await proxy()}", {"token": "let-me-in"})
    handle = await launcher.launch(gang(script("print('through the proxy')")), attempt)
    assert (await end_of(launcher, handle)).reason == "completed"
    assert await text(launcher, handle) == "through the proxy\n"
    assert "let-me-in" not in json.dumps(handle.to_json()) + repr(launcher) + repr(launcher._access)


@pytest.mark.parametrize("options", [{"headers": {"X-Key": "let-me-in"}}, {"cookies": {"session": "let-me-in"}}])
async def test_a_proxy_that_asks_for_a_header_or_a_cookie_gets_it(proxy, options):
    assert await open_launcher(f"ray-jobs://{await proxy()}", options).check() == "2.60.0"


@pytest.mark.parametrize(("options", "words"), [({}, "asks for credentials"), ({"token": "wrong"}, "were refused")])
async def test_a_wrong_token_is_said_and_a_retry_would_not_help(proxy, gang, script, attempt, options, words):
    launcher = open_launcher(f"ray-jobs://{await proxy()}", options)
    with pytest.raises(PreflightError, match=f"HTTP status 401, .*{words} \\(who are you\\?\\): correct token"):
        await launcher.launch(gang(script("pass")), attempt)


async def test_an_untrusted_certificate_is_refused_and_its_authority_can_be_named(proxy, certificate):
    where = f"ray-jobs+https://{await proxy(certificate)}"
    with pytest.raises(LaunchError, match=r"TLS connection .* failed \(self.signed certificate.* as the option verify"):
        await open_launcher(where, {"token": "let-me-in"}).check()
    assert proxy.seen == [], "the token went to somebody who could not prove who it is"
    assert await open_launcher(where, {"token": "let-me-in", "verify": certificate[0]}).check() == "2.60.0"
    assert await open_launcher(where, {"token": "let-me-in", "verify": False}).check() == "2.60.0"


async def test_an_older_record_is_looked_up_with_the_credentials_of_the_same_host_alone(proxy, attempt):
    there, elsewhere = f"ray-jobs://{await proxy()}", f"ray-jobs://{await proxy()}"
    own = open_launcher(there, {"token": "let-me-in"})
    assert await launcher_of(f"{there}?python=python3", own).find(attempt) is None
    with pytest.raises(LaunchError, match="asks for credentials"):
        await launcher_of(elsewhere, own).find(attempt)
    assert proxy.seen == ["Bearer let-me-in", None]
