"""Modules of TensorFlow Hub: by path and by handle, from a cache that is whole or not there, and clear when offline."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from rallypoint.frameworks.tensorflow import hub
from rallypoint.worker import context

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A SavedModel that triples; it can be called, and trained."""
    import tensorflow as tf

    class Triple(tf.Module):
        def __init__(self):
            super().__init__()
            self.factor = tf.Variable(3.0)
            self.variables_to_train = [self.factor]

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
        def __call__(self, x):
            return x * self.factor

    folder = tmp_path_factory.mktemp("module")
    triple = Triple()
    tf.saved_model.save(triple, str(folder), signatures=triple.__call__)
    return str(folder)


class Hub(http.server.BaseHTTPRequestHandler):
    """Hosts modules as TensorFlow Hub's protocol says: a tar.gz to whoever asks for the compressed format."""

    def do_GET(self):
        parts = urlsplit(self.path)
        self.server.asked.append(self.path)
        data = self.server.modules.get(parts.path)
        if data is None or parse_qs(parts.query).get("tf-hub-format") != ["compressed"]:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: self.server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(module):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.modules, server.asked, server.limit = {"/google/triple/1": packed(module)}, [], None
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def packed(folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


@pytest.fixture
def in_stage(tmp_path, monkeypatch):
    """This process is part of a stage whose store is a folder."""

    def enter(store_uri, number=1):
        here = context.StageContext(
            stage=("d", "r", "t"), attempt=f"a{number}", number=number, generation=1, resumed=number > 1,
            data_uri=f"file://{tmp_path}/data", store_uri=store_uri,
        )  # fmt: skip
        monkeypatch.setenv(context.STAGE, here.to_json())

    monkeypatch.delenv(hub.CACHE_DIR, raising=False)
    return enter


def test_a_path_and_its_uri_are_loaded_as_they_are(module):
    for handle in (module, f"file://{module}"):
        assert hub.load(handle)([[1.0, 2.0]]).numpy().tolist() == [[3.0, 6.0]]


def test_a_handle_is_downloaded_once_for_all_attempts_and_stages_of_a_store(server, in_stage, tmp_path):
    handle = f"{server.url}/google/triple/1"
    in_stage(f"file://{tmp_path}/store")
    assert hub.load(handle)([[1.0, 2.0]]).numpy().tolist() == [[3.0, 6.0]]
    in_stage(f"file://{tmp_path}/store", number=2)
    assert hub.resolve(handle) == f"{tmp_path}/store/tfhub/{hashlib.sha1(handle.encode()).hexdigest()}"
    assert server.asked == ["/google/triple/1?tf-hub-format=compressed"]


def test_tensorflow_hub_itself_finds_what_was_downloaded(server, tmp_path, monkeypatch):
    import tensorflow_hub

    monkeypatch.setenv(hub.CACHE_DIR, str(tmp_path))
    path = hub.resolve(f"{server.url}/google/triple/1")
    assert tensorflow_hub.resolve(f"{server.url}/google/triple/1") == path
    assert len(server.asked) == 1


def test_in_a_bucket_the_cache_is_shared_too(server, in_stage, s3_store_uri, monkeypatch, tmp_path):
    from rallypoint.stages.store import Store

    uri, options = s3_store_uri
    for name, value in Store.open(uri, options=options).job_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    in_stage(uri)
    first = hub.resolve(f"{server.url}/google/triple/1")
    assert Path(first, "saved_model.pb").is_file()
    server.modules.clear()
    assert hub.resolve(f"{server.url}/google/triple/1") == first


def test_offline_it_says_what_was_asked_where_it_looked_and_what_to_do(in_stage, tmp_path):
    in_stage(f"file://{tmp_path}/store")
    with pytest.raises(hub.HubError) as caught:
        hub.load("http://127.0.0.1:9/google/triple/1")
    text = str(caught.value)
    assert "'http://127.0.0.1:9/google/triple/1'" in text
    assert f"not in file://{tmp_path}/store/tfhub/" in text
    assert "give a path to a copy of it" in text
    assert "set TFHUB_CACHE_DIR" in text


def test_a_handle_that_is_not_there_is_another_error(server, in_stage, tmp_path):
    in_stage(f"file://{tmp_path}/store")
    with pytest.raises(hub.HubNotFoundError, match="its server answered 404"):
        hub.resolve(f"{server.url}/google/no-such/1")


def test_half_a_download_is_nothing_and_the_next_one_succeeds(server, in_stage, tmp_path):
    in_stage(f"file://{tmp_path}/store")
    server.limit = 200
    with pytest.raises(hub.HubError):
        hub.resolve(f"{server.url}/google/triple/1")
    assert [each.name for each in (tmp_path / "store/tfhub").iterdir() if not each.name.startswith(".")] == []
    server.limit = None
    assert hub.load(f"{server.url}/google/triple/1") is not None


def test_an_archive_writes_nothing_outside_of_its_folder(server, in_stage, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    server.modules["/evil/1"] = buffer.getvalue()
    in_stage(f"file://{tmp_path}/store")
    with pytest.raises(hub.HubError):
        hub.resolve(f"{server.url}/evil/1")
    assert not list(tmp_path.rglob("escaped"))


def test_a_folder_without_a_saved_model_is_told(tmp_path):
    with pytest.raises(hub.HubError, match="expected the folder of a SavedModel"):
        hub.load(str(tmp_path))


def test_as_a_layer_of_keras_3_it_is_part_of_a_model(module, monkeypatch):
    import keras
    import numpy as np

    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    layer = hub.layer(module)
    model = keras.Sequential([keras.layers.Input([2]), layer, keras.layers.Lambda(lambda x: x + 1)])
    assert model.predict(np.array([[1.0, 2.0]], "float32"), verbose=0).tolist() == [[4.0, 7.0]]


def test_as_a_layer_of_the_legacy_keras_it_is_tensorflow_hubs(module):
    import numpy as np
    import tensorflow_hub
    import tf_keras

    layer = hub.layer(module, keras="legacy")
    assert isinstance(layer, tensorflow_hub.KerasLayer)
    model = tf_keras.Sequential([tf_keras.layers.InputLayer([2]), layer])
    assert model.predict(np.array([[1.0, 2.0]], "float32"), verbose=0).tolist() == [[3.0, 6.0]]


def test_another_keras_is_refused(module):
    with pytest.raises(ValueError, match="expected '3', 'legacy' or None"):
        hub.layer(module, keras="2")
