"""A disk that becomes full in the middle of a write: nothing of it is left, so the retry finds the room that there was.

Each test is about one of those who write to the store from inside a job; `test_stage_api` has the stage's own calls.
"""

from __future__ import annotations

import errno
import http.server
import io
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from rallypoint.frameworks.dask import partitions
from rallypoint.frameworks.ray.tune.trial import TrialStage, read_record, write_record
from rallypoint.frameworks.spark.cluster_mode_standalone import Submission, Submissions
from rallypoint.frameworks.spark.ml.kept import Kept
from rallypoint.frameworks.tensorflow import hub
from rallypoint.worker.storage import open_storage

write_text, copyfileobj = Path.write_text, tarfile.copyfileobj


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """The store and the folder of temporary files, on a disk that takes half of a file until `full` is cleared."""
    full = threading.Event()
    full.set()

    def write(path, text, **options):
        write_text(path, text[: len(text) // 2] if full.is_set() else text, **options)
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def copy(source, target, length=None, *args, **options):
        copyfileobj(source, target, length // 2 if full.is_set() else length, *args, **options)
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(tarfile, "copyfileobj", copy)  # how a file comes out of an archive
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return SimpleNamespace(full=full, root=tmp_path, uri=f"file://{tmp_path}/store/generations/000001")


def fails_and_leaves_nothing(disk, write):
    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert caught.value.errno == errno.ENOSPC
    assert [path for path in disk.root.rglob("*") if path.is_file()] == []
    disk.full.clear()
    return write()


def test_a_partition_of_dask(disk):
    part = SimpleNamespace(to_parquet=lambda path, **_: path.write_text("a partition's rows"))
    fails_and_leaves_nothing(disk, lambda: partitions._write(part, disk.uri, "partitions/table/part-00000"))
    folder = open_storage(disk.uri).fetch("partitions/table/part-00000")
    assert Path(folder, "data.parquet").read_text() == "a partition's rows"


def test_a_fit_of_spark_ml(disk):
    def keep():
        Kept(SimpleNamespace(data_uri=disk.uri), "pipeline").keep_score("a", 0.75, step=1)

    fails_and_leaves_nothing(disk, keep)
    assert Kept(SimpleNamespace(data_uri=disk.uri), "pipeline").score("a") == 0.75


def test_a_submission_to_a_standalone_spark(disk):
    submission = Submission(attempt="a1", main_class="Main", known=[])
    fails_and_leaves_nothing(disk, lambda: Submissions(disk.uri).write(submission))
    assert Submissions(disk.uri).read() == [submission]


def test_the_record_of_a_trial(disk):
    storage = open_storage(disk.uri)
    fails_and_leaves_nothing(disk, lambda: write_record(storage, "returned", {"value": 1}))
    assert read_record(storage, "returned") == {"value": 1}


def test_the_checkpoint_of_a_trial(disk):
    trial = TrialStage(None, disk.uri, "loss")
    fails_and_leaves_nothing(disk, lambda: trial.save_checkpoint(lambda folder: Path(folder, "state").write_text("ab")))
    assert Path(trial.latest_checkpoint(), "state").read_text() == "ab"


@pytest.fixture
def module_url():
    """The handle of a module of TensorFlow Hub on a server of this machine."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as whole:
        found = tarfile.TarInfo("saved_model.pb")
        found.size = 4
        whole.addfile(found, io.BytesIO(b"abcd"))

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(archive.getvalue())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/triple/1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_module_of_tensorflow_hub(module_url, disk, monkeypatch):
    monkeypatch.setenv(hub.CACHE_DIR, str(disk.root / "modules"))
    path = fails_and_leaves_nothing(disk, lambda: hub.resolve(module_url))
    assert Path(path, "saved_model.pb").read_bytes() == b"abcd"
