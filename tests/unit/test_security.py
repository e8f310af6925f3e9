"""The line between who can write the store and the orchestrator's processes; see docs/security.md."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import tempfile
import unicodedata
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rallypoint
from rallypoint.errors import LaunchError, PreflightError, StoreError
from rallypoint.launchers.base import Cursor, Handle, LogChunk, Phase, ProcessEnd, Status
from rallypoint.launchers.local import LocalLauncher
from rallypoint.launchers.run_folder import make_folder
from rallypoint.stages.attempt import Update
from rallypoint.stages.events import EventReader
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger, Record, list_stages
from rallypoint.stages.news import Narrator
from rallypoint.stages.outcome import Outcome, judge
from rallypoint.stages.store import Store
from rallypoint.stages.view import AttemptView

PACKAGE = Path(rallypoint.__file__).parent
ID = "rp-test-0123456789-a1"
KEY = StageKey(("flights", "r1", "train"))

# What the code itself may do -----------------------------------------------------------------------------------------

UNPICKLES = PACKAGE / "worker" / "entry.py"  # the one place, and it runs in the job
LOADERS = {"load", "loads", "load_module", "Unpickler", "safe_load", "full_load", "unsafe_load"}
# JSON and TOML, which hold plain values, and in the job the formats of TensorFlow and Spark, which user code asks for.
SAFE_OWNERS = {"json", "tomllib", "tensorflow.saved_model", "_hub()", "PipelineModel", "reader"}
SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}
PICKLES = {"pickle", "_pickle", "dill", "joblib", "marshal", "shelve", "yaml"}


def dangers(tree: ast.AST) -> list[str]:
    """Return the calls in a module that could run what somebody else wrote."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in PICKLES]
            if isinstance(node, ast.ImportFrom):
                found += [alias.name for alias in node.names if alias.name in LOADERS]
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if (node.attr in LOADERS and owner not in SAFE_OWNERS) or (owner, node.attr) in SHELLS:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile", "__import__"}:
                found.append(node.func.id)
            found += ["shell=" for keyword in node.keywords if keyword.arg == "shell"]
    return found


@pytest.mark.parametrize(
    "code",
    [
        "pickle.loads(x)", "cloudpickle.load(f)", "from cloudpickle import loads", "import pickle", "import yaml",
        "yaml.safe_load(x)", "f = marshal.loads", "shelve.open(x)\nimport shelve", "eval(x)", "exec(x)",
        "compile(x, '', 'exec')", "os.system(x)", "os.popen(x)", "subprocess.run(x, shell=True)",
    ],
)  # fmt: skip
def test_the_search_finds(code):
    assert dangers(ast.parse(code))


@pytest.mark.parametrize(
    "file",
    sorted(file for file in PACKAGE.rglob("*.py") if file != UNPICKLES and "examples" not in file.parts),
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_nothing_outside_of_the_job_unpickles_evaluates_or_asks_a_shell(file):
    assert dangers(ast.parse(file.read_text())) == []


def test_the_job_unpickles_in_one_place():
    assert dangers(ast.parse(UNPICKLES.read_text())) == ["pickle.loads"]


# What a job reports --------------------------------------------------------------------------------------------------

HOSTILE = [
    "\x1b[2J\x1b]0;x\x07",
    "<script>alert(1)</script>",
    "javascript:alert(1)",
    "../../etc/passwd",
    "\ud800",
    "\u2028x",
]
texts = st.text(max_size=30) | st.sampled_from(HOSTILE) | st.just("x" * 100_000)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
KINDS = ["opened", "progress", "metrics", "artifact", "link", "result", "failed", "closed", "other"]
FIELDS = [
    "kind", "host", "pid", "log", "rank", "local_rank", "world_size", "restart", "exit_code", "signal", "exception",
    "message", "traceback", "secondary", "seen_by", "step", "total", "unit", "metrics", "name", "uri", "url", "bytes",
    "value",
]  # fmt: skip
events = st.fixed_dictionaries(
    {"event": st.sampled_from(KINDS), "t": st.floats(0, 9)}, optional=dict.fromkeys(FIELDS, json_values)
)
ENDS = (ProcessEnd("agent-0", 1, None, "host", first=True), ProcessEnd("agent-1", None, "SIGKILL"))


def inert(text: str) -> bool:
    return not any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in text if char not in "\n\t")


def read_events(lines: list[str], *, file: str = "agent-0.jsonl"):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "events").mkdir()
        Path(folder, "events", file).write_text("".join(f"{line}\n" for line in lines))
        reader = EventReader(Store.open(folder), "events")

        async def read():
            found = []
            while new := await reader.read():
                found += new
            return found

        return asyncio.run(read())


def check_everything_shown(found):
    """Show events wherever they are shown; each place is bounded and inert."""
    view = AttemptView()
    view.apply(found)
    assert len(view.progress_line) <= 2_000
    told = list(Narrator().tell(Update(view=view, events=found)))
    assert all(inert(str(news)) and "\n" not in str(news) and len(str(news)) <= 2_500 for news in told)
    assert all(url.startswith(("http://", "https://")) for url in view.links.values())
    for status in (Status(Phase.ENDED, "failed", ENDS), Status(Phase.ENDED, "completed", ENDS), Status(Phase.LOST)):
        outcome = judge(status, view, attempt=ID, logs="rallypoint logs x")
        report = outcome.failure.render()
        assert inert(report)
        assert len(report) < 60_000
        assert len(outcome.failure.headline) < 2_000
        assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))).failure.render() == report
    return view


@settings(max_examples=150)
@given(st.lists(events, max_size=6))
def test_whatever_a_job_reports_is_read_and_shown_inert(reported):
    check_everything_shown(read_events([json.dumps({"v": 1, **event}) for event in reported]))


def test_a_value_that_is_nested_deeply_is_refused():
    for depth, kinds in ((90, ["result"]), (400, ["rejected"])):
        line = f'{{"v": 1, "t": 1, "event": "result", "value": {"[" * depth}{"]" * depth}}}'
        found = read_events([line])
        assert [event.kind for event in found] == kinds
        check_everything_shown(found)


def test_the_world_that_a_job_claims_costs_nothing():
    lines = ['{"v": 1, "t": 1, "event": "opened", "kind": "rank", "rank": 0, "world_size": 9007199254740992}']
    view = check_everything_shown(read_events(lines, file="rank-0.r0.jsonl"))
    done = Status(Phase.ENDED, "completed", (ProcessEnd("rank-0.r0", 0),))
    assert len(judge(done, view, attempt=ID, logs="").failure.message) < 1_000


def test_a_message_made_for_the_failure_rules_costs_little():
    line = json.dumps({"v": 1, "t": 1, "event": "failed", "exception": "E", "message": "collective" * 90_000})
    check_everything_shown(read_events([line]))


def test_a_flood_of_metrics_links_and_artifacts_is_cut():
    reported = [
        {"event": "metrics", "metrics": {f"{part}-{n}-" + "x" * 500: [0] * 2000 for n in range(100)}}
        for part in range(20)
    ]
    reported += [{"event": "link", "name": f"{n}", "url": f"http://h/{n}"} for n in range(2_000)]
    reported += [{"event": "artifact", "name": f"{n}", "uri": "u" * 9_999} for n in range(2_000)]
    view = check_everything_shown(read_events([json.dumps({"v": 1, "t": 1, **event}) for event in reported]))
    assert len(json.dumps([view.metrics, view.links, view.artifacts])) < 6_000_000
    assert max(len(view.metrics), len(view.links), len(view.artifacts)) <= 1_000


@pytest.mark.parametrize("file", ["..%2f..%2fx.jsonl", "%2e%2e.jsonl", "<b>.jsonl", "..jsonl", "..a.jsonl", "-0.jsonl"])
def test_the_name_of_an_event_file_is_a_name_and_no_path(file):
    line = '{"v": 1, "t": 1, "event": "opened", "kind": "process"}'
    view = check_everything_shown(read_events([line], file=file))
    assert all(inert(name) for name in view.processes)


@pytest.mark.parametrize("process", HOSTILE)
def test_the_name_of_a_log_is_shown_inert(process):
    view = AttemptView()
    chunk = LogChunk(process, b"hello\n", 6)
    assert all(inert(str(news)) for news in Narrator().tell(Update(view=view, output=[chunk])))


# Forged records ------------------------------------------------------------------------------------------------------


def record(**more):
    fields = {
        "generation": 1,
        "resumed": False,
        "kind": "torch",
        "fingerprint": {},
        "launcher": "local:///runs",
        "owner": "x",
    }
    return Record(**{"number": 1, "id": KEY.attempt_id(1), **fields, **more})


def path(name: str) -> str:
    return f"{KEY.path}/attempts/000001/{name}.json"


@pytest.mark.parametrize(
    "forged",
    [
        {"id": StageKey(("flights", "r1", "other")).attempt_id(1)},
        {"id": KEY.attempt_id(2)},
        {"id": "../../etc"},
        {"id": ["x"]},
        {"number": 2},
        {"number": "../../x"},
        {"launcher": 7},
        {"fingerprint": ["x"]},
        {"why": {"x": 1}},
        {"generation": "../x"},
        {"failure_rules": [{"name": 1}]},
        {"failure_rules": "x"},
    ],
    ids=str,
)
async def test_a_forged_intent_is_refused(tmp_path, forged):
    store = Store.open(tmp_path)
    ledger = Ledger(store, KEY)
    await ledger.claim(record())
    intent = json.loads(await store.get(path("intent")))
    await store.put(path("intent"), json.dumps({**intent, **forged}).encode())
    with pytest.raises(StoreError, match="look who else can write there"):
        await ledger.last()


@pytest.mark.parametrize(
    ("name", "forged"),
    [
        ("intent", b"[]"),
        ("intent", b"[" * 100_000),
        ("intent", b"\x80\x04pickle"),
        ("intent", b'{"v": 1}'),
        ("handle", b'{"v": 1, "launcher": "local:///r", "attempt": "../../x", "details": {}}'),
        ("handle", b'{"v": 1, "launcher": 1, "attempt": "' + KEY.attempt_id(1).encode() + b'", "details": {}}'),
        ("outcome", b'{"v": 1, "state": "succeeded"}'),
        ("outcome", b'{"state": "x", "result": 1, "metrics": {}, "artifacts": [], "failure": null, "ended": 1}'),
        (
            "outcome",
            b'{"state": "failed", "result": 1, "metrics": {}, "artifacts": [], "ended": 1, "failure": {"title": 5}}',
        ),
    ],
)
async def test_what_is_no_record_is_refused(tmp_path, name, forged):
    store = Store.open(tmp_path)
    ledger = Ledger(store, KEY)
    await ledger.claim(record())
    await store.put(path(name), forged)
    with pytest.raises(StoreError, match="look who else can write there"):
        await ledger.read(1)


async def test_a_forged_index_is_refused(tmp_path):
    store = Store.open(tmp_path)
    await store.put("index/x.json", b'{"parts": 7}')
    with pytest.raises(StoreError, match="delete it"):
        await list_stages(store)


# The launcher's folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attempt", ["", ".", "..", "../x", "rp-../../x", "/etc", "rp-x/y", f"{ID}\n", "rp-" + "x" * 99, "x"]
)
async def test_an_attempts_id_is_never_a_path(tmp_path, attempt):
    launcher = LocalLauncher(tmp_path / "runs")
    handle = Handle(launcher.uri, attempt)
    calls = [
        launcher.find(attempt),
        launcher.poll(handle),
        launcher.cancel(handle, timedelta(0)),
        anext(launcher.logs(handle, Cursor())),
    ]
    for call in calls:
        with pytest.raises(LaunchError, match="attempt's id"):
            await call
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_for_its_user_alone(tmp_path):
    folder = make_folder(tmp_path / "runs", ID)
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)


def test_who_shares_the_launchers_folder_with_a_group_shares_the_run_folders(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o770)
    assert make_folder(tmp_path / "runs", ID).stat().st_mode & 0o777 == 0o770


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_launchers_folder_that_everybody_can_write_is_refused(tmp_path, mode):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(mode)
    with pytest.raises(PreflightError, match="every user of this host may write to"):
        make_folder(tmp_path / "runs", ID)


def test_a_run_folder_that_somebody_else_prepared_is_refused(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = tmp_path / "runs"
    root.mkdir(mode=0o700)
    (root / ID).symlink_to(elsewhere)
    with pytest.raises(PreflightError, match="is no folder"):
        make_folder(root, ID)
    (root / ID).unlink()
    (root / ID).mkdir()
    (root / ID).chmod(0o777)
    with pytest.raises(PreflightError, match="every user of this host may write to"):
        make_folder(root, ID)


@pytest.mark.parametrize("forget", [True, False])
async def test_pruning_follows_no_link(tmp_path, forget):
    """A forged launcher's folder, in which an attempt's folder is a link to something dear."""
    dear = tmp_path / "dear"
    dear.mkdir()
    (dear / "file").touch()
    (tmp_path / "runs").mkdir(mode=0o700)
    (tmp_path / "runs" / ID).symlink_to(dear)
    with pytest.raises((LaunchError, OSError)):
        await LocalLauncher(tmp_path / "runs").clean(ID, forget=forget)
    assert (dear / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("which", [".", ID])
def test_a_folder_of_another_user_is_refused(tmp_path, which):
    root = tmp_path / "runs"
    make_folder(root, ID)
    os.chown(root / which, 12345, 12345)
    with pytest.raises(PreflightError, match="belongs to user id 12345"):
        make_folder(root, ID)


@pytest.fixture
def run_folder(tmp_path):
    folder = make_folder(tmp_path / "runs", ID)
    (folder / "logs").mkdir()
    return folder


async def read_logs(run_folder):
    launcher = LocalLauncher(run_folder.parent)
    async with asyncio.timeout(10):
        return {c.process: c.data async for c in launcher.logs(Handle(launcher.uri, ID), Cursor(others=0))}


async def test_a_log_is_a_file_in_the_run_folder_and_nothing_else(run_folder, tmp_path):
    (tmp_path / "secret.log").write_text("of the orchestrator\n")
    logs = run_folder / "logs"
    (logs / "p-0.log").write_text("mine\n")
    (logs / "link-0.log").symlink_to(tmp_path / "secret.log")
    os.mkfifo(logs / "fifo-0.log")
    (logs / "folder-0.log").mkdir()
    (logs / "\x1b[2J-0.log").write_text("x\n")
    (logs / "a\nb.log").write_text("x\n")
    assert await read_logs(run_folder) == {"p-0": b"mine\n"}


async def test_a_folder_of_logs_is_no_link(run_folder, tmp_path):
    (tmp_path / "secret.log").write_text("of the orchestrator\n")
    (run_folder / "logs").rmdir()
    (run_folder / "logs").symlink_to(tmp_path)
    assert await read_logs(run_folder) == {}


STARTED = {"v": 1, "host": "elsewhere", "pid": 1, "start_time": 1, "boot_id": "x", "t": 0}


@pytest.mark.parametrize("what", ["fifo", "link", "garbage", "list", "deep", "wrong"])
async def test_what_a_job_puts_in_place_of_its_final_record_is_no_end(run_folder, tmp_path, what):
    (run_folder / "started.json").write_text(json.dumps(STARTED))
    final = run_folder / "final.json"
    texts = {"garbage": "{", "list": "[]", "deep": "[" * 10_000, "wrong": '{"processes": [1]}'}
    if what == "fifo":
        os.mkfifo(final)
    elif what == "link":
        good = {"reason": "completed", "message": "", "processes": []}
        (tmp_path / "good.json").write_text(json.dumps(good))
        final.symlink_to(tmp_path / "good.json")
    else:
        final.write_text(texts[what])
    launcher = LocalLauncher(run_folder.parent)
    async with asyncio.timeout(10):
        assert (await launcher.poll(Handle(launcher.uri, ID))).phase is Phase.LOST


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pid": "1", "host": "x"}', '{"pid": 1}'])
async def test_a_start_record_that_is_none_is_an_error_and_no_reason_to_start_again(run_folder, text):
    (run_folder / "started.json").write_text(text)
    launcher = LocalLauncher(run_folder.parent)
    with pytest.raises(LaunchError, match=r"started\.json is no record"):
        await launcher.poll(Handle(launcher.uri, ID))
