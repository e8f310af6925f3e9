"""What a job keeps is there whole or not at all, in a folder and in a bucket, whenever its process is killed."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint.stages.store import Store
from rallypoint.worker.bucket import Bucket
from rallypoint.worker.storage import StorageError, open_storage, scratch_folder
from rallypoint.worker.storage_folder import FolderStorage


@pytest.fixture
def bucket_uri(s3_store_uri, monkeypatch, tmp_path):
    """The URI of an empty bucket prefix, with the job's environment as the orchestrator makes it."""
    uri, options = s3_store_uri
    for name, value in Store.open(uri, options=options).job_env().items():
        monkeypatch.setenv(name, value)
    cache = tmp_path / "tmp"
    cache.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(cache))
    return f"{uri}/stage/generation-1"


@pytest.fixture(params=["folder", "bucket"])
def uri(request, tmp_path):
    if request.param == "folder":
        return f"file://{tmp_path}/store/generation-1"
    return request.getfixturevalue("bucket_uri")


@pytest.fixture
def storage(uri):
    return open_storage(uri)


def _write(folder, files):
    for path, content in files.items():
        target = Path(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


def _read(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in Path(folder).rglob("*") if path.is_file()}


def _commit(storage, name, files):
    folder = storage.scratch()
    _write(folder, files)
    return storage.commit(folder, name)


# Keeping and finding -------------------------------------------------------------------------------------------------


def test_fetch_returns_what_was_committed(storage):
    _commit(storage, "checkpoints/step-1", {"model.pt": "weights", "deep/er/state.json": "{}", "empty": ""})
    assert _read(storage.fetch("checkpoints/step-1")) == {
        "model.pt": "weights",
        "deep/er/state.json": "{}",
        "empty": "",
    }


def test_another_process_finds_it(storage, uri):
    _commit(storage, "checkpoints/step-1", {"a": "1"})
    assert _read(open_storage(uri).fetch("checkpoints/step-1")) == {"a": "1"}


def test_names_are_the_committed_folders_directly_below_sorted(storage, tmp_path):
    for name in ("checkpoints/step-2", "checkpoints/step-10", "checkpoints/step-1", "artifacts/model"):
        _commit(storage, name, {"a": name})
    _write(tmp_path, {"file": "1"})
    storage.commit_file(str(tmp_path / "file"), "checkpoints/a-file")
    assert storage.names("checkpoints") == ["step-1", "step-10", "step-2"]
    assert storage.names("nothing") == []


def test_a_scratch_folder_is_empty_new_and_unseen(storage):
    first, second = storage.scratch(), storage.scratch()
    assert first != second
    assert list(Path(first).iterdir()) == []
    _write(first, {"half": "written"})
    assert storage.names("") == []


def test_commit_replaces(storage):
    _commit(storage, "a/b", {"old": "1", "both": "old"})
    _commit(storage, "a/b", {"new": "2", "both": "new"})
    assert _read(storage.fetch("a/b")) == {"new": "2", "both": "new"}
    assert storage.names("a") == ["b"]


@pytest.mark.parametrize("end", [OSError(errno.ENOSPC, "No space left on device"), SystemExit(1)])
def test_what_was_not_committed_is_gone_however_its_writing_ended(storage, end):
    folders = []

    def write():
        with scratch_folder(storage) as folder:
            folders.append(Path(folder))
            _write(folder, {"half": "written", "deep/er": "x"})
            raise end

    with pytest.raises(type(end)):
        write()
    assert not folders[0].exists()
    assert storage.names("") == []


def test_what_was_committed_out_of_a_scratch_folder_stays(storage):
    with scratch_folder(storage) as folder:
        _write(folder, {"a": "1"})
        storage.commit(folder, "whole")
    assert not Path(folder).exists()
    assert _read(storage.fetch("whole")) == {"a": "1"}


def test_commit_consumes_the_scratch_folder(storage):
    scratch = storage.scratch()
    storage.commit(scratch, "a")
    assert not Path(scratch).exists()


def test_an_empty_folder_and_empty_folders_in_it_are_kept(storage):
    folder = storage.scratch()
    Path(folder, "empty", "er").mkdir(parents=True)
    storage.commit(folder, "a")
    assert Path(storage.fetch("a"), "empty", "er").is_dir()


def test_remove_takes_one_and_leaves_the_others(storage):
    _commit(storage, "a/b", {"x": "1"})
    _commit(storage, "a/bb", {"x": "2"})
    storage.remove("a/b")
    assert storage.names("a") == ["bb"]
    with pytest.raises(FileNotFoundError, match="nothing whole was kept"):
        storage.fetch("a/b")
    assert _read(storage.fetch("a/bb")) == {"x": "2"}


def test_removing_what_is_not_there_is_fine(storage):
    storage.remove("a/b")


def test_fetch_of_nothing_says_what_to_do(storage, uri):
    with pytest.raises(FileNotFoundError, match="check its name") as raised:
        storage.fetch("absent")
    assert f"{uri}/absent" in str(raised.value)


def test_commit_file_publishes_a_copy_and_replaces(storage, uri, tmp_path):
    _write(tmp_path, {"model.onnx": "old"})
    storage.commit_file(str(tmp_path / "model.onnx"), "artifacts/model.onnx")
    _write(tmp_path, {"model.onnx": "new"})
    assert storage.commit_file(str(tmp_path / "model.onnx"), "artifacts/model.onnx") == f"{uri}/artifacts/model.onnx"
    assert (tmp_path / "model.onnx").read_text() == "new"
    assert asyncio.run(Store.open(uri).get("artifacts/model.onnx")) == b"new"


def test_the_uri_of_a_commit_holds_the_content(storage, uri):
    committed = _commit(storage, "artifacts/a table", {"part-0": "1", "part-1": "22"})
    assert committed.startswith(uri)
    assert asyncio.run(Store.open(committed).list("")) == [("part-0", 1), ("part-1", 2)]


def test_a_link_to_a_folder_is_refused_and_nothing_is_published(storage):
    folder = storage.scratch()
    Path(folder, "root").symlink_to("/")
    with pytest.raises(ValueError, match="copy what it points to"):
        storage.commit(folder, "a")
    assert storage.names("") == []


_files = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text(max_size=20), max_size=4)
_changes = st.tuples(st.sampled_from(["commit", "remove", "reopen"]), st.sampled_from(["p/a", "p/b", "p/a.b"]), _files)


@settings(max_examples=60)
@given(changes=st.lists(_changes, max_size=8))
def test_a_folder_store_behaves_as_a_dictionary(tmp_path_factory, changes):
    root = f"file://{tmp_path_factory.mktemp('store')}"
    storage, expected = open_storage(root), {}
    for change, name, files in changes:
        if change == "commit":
            folder = storage.scratch()
            for path, content in files.items():
                Path(folder, path).write_bytes(content.encode())
            storage.commit(folder, name)
            expected[name] = {path: content.encode() for path, content in files.items()}
        elif change == "remove":
            storage.remove(name)
            expected.pop(name, None)
        else:
            storage = open_storage(root)
        assert [f"p/{each}" for each in storage.names("p")] == sorted(expected)
        for each, content in expected.items():
            assert {path.name: path.read_bytes() for path in Path(storage.fetch(each)).iterdir()} == content


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../../b",
        ".",
        "a/./b",
        "a\n",
        "\x00",
        "a/.rallypoint-trash",
        "x" * 181,
    ],
)
def test_names_that_lead_elsewhere_are_refused(storage, name, tmp_path):
    _write(tmp_path, {"file": "1"})
    for call in (
        lambda: storage.commit(storage.scratch(), name),
        lambda: storage.commit_file(str(tmp_path / "file"), name),
        lambda: storage.fetch(name),
        lambda: storage.remove(name),
    ):
        with pytest.raises(ValueError, match="got the name"):
            call()


@given(name=st.text(st.characters(codec="utf-8"), max_size=30))
def test_no_name_leaves_the_root(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("root") / "store"
    storage = open_storage(f"file://{root}")
    try:
        uri = storage.commit(storage.scratch(), name)
    except ValueError:
        assert not [path for path in root.rglob("*") if ".rallypoint-scratch" not in str(path)]
    else:
        folder = Path(unquote(urlsplit(uri).path))
        assert folder.is_dir()
        assert folder.resolve().is_relative_to(root.resolve())


@pytest.mark.parametrize("uri", ["", "relative", "file://host/x", "hdfs://name/x", "s3://", "s3:///x"])
def test_other_uris_are_refused(uri):
    with pytest.raises(ValueError, match="expected file:///folder"):
        open_storage(uri)


def test_a_folder_of_a_quoted_uri_is_the_one_it_names(tmp_path):
    uri = Store.open(tmp_path).child_uri("a b/50%")
    storage = open_storage(uri)
    assert storage.uri == uri
    _commit(storage, "x", {"f": "1"})
    assert (tmp_path / "a b" / "50%" / "x" / "f").read_text() == "1"


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return open_storage(f"file://{tmp_path}/store")


def test_a_folder_is_fetched_where_it_lies(folder, tmp_path):
    assert unquote(urlsplit(_commit(folder, "a", {"x": "1"})).path) == folder.fetch("a") == f"{tmp_path}/store/a"


def test_what_is_kept_can_be_read_by_whom_the_umask_lets(folder):
    before = os.umask(0o022)
    try:
        _commit(folder, "a", {"x": "1"})
    finally:
        os.umask(before)
    assert Path(folder.fetch("a")).stat().st_mode & 0o777 == 0o755


def test_leftovers_of_a_killed_process_go_when_they_are_older_than_a_day(tmp_path):
    root = f"file://{tmp_path}/store"
    first = open_storage(root)
    young, old, busy = first.scratch(), first.scratch(), first.scratch()
    _write(busy, {"growing/file": "1"})
    a_day_ago = time.time() - 25 * 3600
    for path in (old, busy, f"{busy}/growing"):
        os.utime(path, (a_day_ago, a_day_ago))
    open_storage(root)
    assert [Path(path).exists() for path in (young, old, busy)] == [True, False, True]


def test_opening_makes_nothing(tmp_path):
    open_storage(f"file://{tmp_path}/store").names("checkpoints")
    assert not (tmp_path / "store").exists()


def _run_and_die_at(root, action, event):
    """Run an action in a child process that kills itself just before its n-th change of the file system.

    Returns:
        Whether the child was killed; it was not if it made fewer changes.
    """
    changes = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}
    storage = open_storage(f"file://{root}")
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(name, arguments):
            nonlocal seen
            if name in changes and str(root) in str(arguments[0]):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(watch)
            action(storage)
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


_OLD = {"model": "old", "only-old": "x", "deep/old": "1"}
_NEW = {"model": "new", "only-new": "y", "deep/new": "2"}


def _content(root, name):
    storage = open_storage(f"file://{root}")
    parent, _, last = name.rpartition("/")
    if last not in storage.names(parent):
        with pytest.raises(FileNotFoundError):
            storage.fetch(name)
        return None
    return _read(storage.fetch(name))


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        pytest.param(None, lambda storage: _commit(storage, "c/a", _NEW), _NEW, id="commit"),
        pytest.param(_OLD, lambda storage: _commit(storage, "c/a", _NEW), _NEW, id="replace"),
        pytest.param(_OLD, lambda storage: storage.remove("c/a"), None, id="remove"),
    ],
)
def test_a_process_killed_at_any_change_leaves_the_old_or_the_new_content(tmp_path, before, action, after):
    event, killed, seen = 0, True, []
    while killed:
        event += 1
        root = tmp_path / str(event)
        if before is not None:
            _commit(open_storage(f"file://{root}"), "c/a", before)
        killed = _run_and_die_at(root, action, event)
        found = _content(root, "c/a")
        assert found in (before, after), f"killed at change {event}"
        seen.append(found)
        # Whoever comes next can replace it and remove it, and no older content comes to light.
        _commit(open_storage(f"file://{root}"), "c/a", {"next": "1"})
        assert _content(root, "c/a") == {"next": "1"}
        open_storage(f"file://{root}").remove("c/a")
        assert _content(root, "c/a") is None
    assert seen[0] == before
    assert seen[-1] == after
    assert event > 3


def test_a_removal_killed_at_any_change_brings_no_older_content_to_light(tmp_path, monkeypatch):
    event, killed = 0, True
    while killed:
        event += 1
        root = tmp_path / str(event)
        with monkeypatch.context() as patched:  # killed right after it had replaced
            patched.setattr(FolderStorage, "_discard", lambda *_: None)
            _commit(open_storage(f"file://{root}"), "a", _OLD)
            _commit(open_storage(f"file://{root}"), "a", _NEW)
        killed = _run_and_die_at(root, lambda storage: storage.remove("a"), event)
        assert _content(root, "a") in (_NEW, None), f"killed at change {event}"


@pytest.mark.parametrize("second_kill", range(2, 30, 6))
def test_a_second_kill_after_a_first_one_leaves_whole_content_too(tmp_path, second_kill):
    whole = (_OLD, _NEW, {"third": "3"})
    event, killed = 0, True
    while killed:
        event += 1
        root = tmp_path / str(event)
        _commit(open_storage(f"file://{root}"), "a", _OLD)
        killed = _run_and_die_at(root, lambda storage: _commit(storage, "a", _NEW), event)
        _run_and_die_at(root, lambda storage: _commit(storage, "a", {"third": "3"}), second_kill)
        assert _content(root, "a") in whole


def test_a_reader_never_sees_half_while_a_writer_replaces(tmp_path):
    root = tmp_path / "store"
    _commit(open_storage(f"file://{root}"), "a", {"n": "0"})
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, f"file://{root}"], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        reader, looked = open_storage(f"file://{root}"), 0
        while writer.poll() is None:
            assert reader.names("") == ["a"]
            looked += 1
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == 0
    assert looked > 10
    assert _content(root, "a") == {"n": "199"}


_WRITER = textwrap.dedent("""
    import sys
    from rallypoint.worker.storage import open_storage
    storage = open_storage(sys.argv[1])
    for n in range(200):
        folder = storage.scratch()
        open(folder + "/n", "w").write(str(n))
        storage.commit(folder, "a")
""")


def test_two_writers_of_one_name_leave_one_of_their_contents(tmp_path):
    root = tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, f"file://{root}"], env=environment) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert _content(root, "a") == {"n": "199"}
    assert sorted(path.name for path in root.iterdir()) == [".rallypoint-scratch", "a"]


def test_folders_need_the_standard_library_alone():
    code = textwrap.dedent("""
        import os, sys, tempfile
        sys.path = [path for path in sys.path if "site-packages" not in path]
        from rallypoint.worker.storage import open_storage
        storage = open_storage("file://" + tempfile.mkdtemp())
        storage.commit(storage.scratch(), "a")
        ours = {name for name in sys.modules if name.startswith("rallypoint.")}
        assert all(name.startswith("rallypoint.worker") for name in ours), ours
        assert "obstore" not in sys.modules
    """)
    package = str(Path(sys.modules[Bucket.__module__].__file__).parents[2])
    subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONPATH": package}, check=True)


# Buckets -------------------------------------------------------------------------------------------------------------


def test_a_bucket_without_obstore_names_the_package_and_the_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ModuleNotFoundError, match="no package 'obstore'") as raised:
        open_storage("s3://bucket/x")
    assert sys.executable in str(raised.value)
    assert raised.value.name == "obstore"


def _dies_at(monkeypatch, change):
    """Let a bucket fail before its n-th change and at all after it, as if the process had been killed there."""
    seen = 0

    def counted(method):
        def call(self, *arguments):
            nonlocal seen
            seen += 1
            if seen >= change:
                raise KeyboardInterrupt
            return method(self, *arguments)

        return call

    for name in ("upload", "write", "delete"):
        monkeypatch.setattr(Bucket, name, counted(getattr(Bucket, name)))


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        pytest.param(None, lambda storage: _commit(storage, "c/a", _NEW), _NEW, id="commit"),
        pytest.param(_OLD, lambda storage: _commit(storage, "c/a", _NEW), _NEW, id="replace"),
        pytest.param(_OLD, lambda storage: storage.remove("c/a"), None, id="remove"),
    ],
)
def test_a_bucket_holds_the_old_or_the_new_content_at_any_change(bucket_uri, monkeypatch, before, action, after):
    change, killed, seen = 0, True, []
    while killed:
        change += 1
        root = f"{bucket_uri}/{change}"
        if before is not None:
            _commit(open_storage(root), "c/a", before)
        with monkeypatch.context() as patched:
            _dies_at(patched, change)
            try:
                action(open_storage(root))
                killed = False
            except KeyboardInterrupt:
                pass
        storage = open_storage(root)
        found = _read(storage.fetch("c/a")) if storage.names("c") else None
        assert found in (before, after), f"killed at change {change}"
        seen.append(found)
    assert seen[0] == before
    assert seen[-1] == after
    assert change > 2


def test_a_folder_of_a_bucket_is_downloaded_once(bucket_uri, monkeypatch):
    _commit(open_storage(bucket_uri), "a", {"x": "1", "y": "2"})
    first = open_storage(bucket_uri).fetch("a")
    monkeypatch.setattr(Bucket, "download", lambda *_: pytest.fail("downloaded again"))
    assert open_storage(bucket_uri).fetch("a") == first


def test_replacing_leaves_no_object_of_the_old_version(bucket_uri):
    storage = open_storage(bucket_uri)
    _commit(storage, "a", _OLD)
    _commit(storage, "a", _NEW)
    paths = [path for path, _ in asyncio.run(Store.open(bucket_uri).list(""))]
    assert sorted(path.split("/", 2)[-1] for path in paths) == sorted([*_NEW, "a.rallypoint.json"])
    storage.remove("a")
    assert asyncio.run(Store.open(bucket_uri).list("")) == []


def test_a_fetch_that_meets_a_replacement_gets_the_new_content(bucket_uri, monkeypatch):
    writer, reader = open_storage(bucket_uri), open_storage(bucket_uri)
    _commit(writer, "a", _OLD)
    download, replaced = Bucket.download, []

    def replace_first(self, path, target):
        if not replaced:
            replaced.append(path)
            _commit(writer, "a", _NEW)
        download(self, path, target)

    monkeypatch.setattr(Bucket, "download", replace_first)
    assert _read(reader.fetch("a")) == _NEW


def test_objects_without_a_manifest_are_not_believed(bucket_uri):
    asyncio.run(Store.open(bucket_uri).put("checkpoints/step-1/model.pt", b"half"))
    storage = open_storage(bucket_uri)
    assert storage.names("checkpoints") == []
    with pytest.raises(FileNotFoundError):
        storage.fetch("checkpoints/step-1")


@pytest.mark.parametrize("path", ["../outside", "/etc/outside", "a/../../outside"])
def test_a_manifest_cannot_write_outside_of_its_folder(bucket_uri, path):
    manifest = f'{{"v": 1, "data": "v", "folders": [], "files": ["{path}"]}}'
    asyncio.run(Store.open(bucket_uri).put("a.rallypoint.json", manifest.encode()))
    with pytest.raises(StorageError, match="expected one inside of its folder"):
        open_storage(bucket_uri).fetch("a")


def test_a_bucket_that_does_not_exist_is_an_error_without_secrets(bucket_uri):
    storage = open_storage("s3://no-such-bucket/x")
    for call in (lambda: storage.names("a"), lambda: storage.fetch("a"), lambda: _commit(storage, "a", {"x": "1"})):
        with pytest.raises(StorageError, match="NoSuchBucket") as raised:
            call()
        assert "\n" not in str(raised.value)
        assert "testing-secret-key" not in str(raised.value)


def test_the_download_cache_of_somebody_else_is_not_used(bucket_uri, monkeypatch):
    _commit(open_storage(bucket_uri), "a", {"x": "1"})
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(os, "lstat", lambda path: os.stat_result((0o40700, 1, 1, 1, 666, 0, 0, 0, 0, 0)))
    with pytest.raises(StorageError, match="set TMPDIR"):
        open_storage(bucket_uri).fetch("a")


def test_scratch_of_a_bucket_is_on_the_jobs_disk(bucket_uri):
    folder = open_storage(bucket_uri).scratch()
    assert Path(folder).is_dir()
    shutil.rmtree(folder)
