"""A deploy to TensorFlow Serving as data: what a job refuses, signatures, versions of a base path, labels in a file."""

from __future__ import annotations

import json

import pytest

from rallypoint import TFServingDeploy, TFServingProbe, TFServingSignature
from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.tensorflow.serving.labels import ConfigFileError, labels_of, with_labels
from rallypoint.frameworks.tensorflow.serving.model import NoModelError, content_digest, fetch
from rallypoint.frameworks.tensorflow.serving.signature import SignatureError, check
from rallypoint.frameworks.tensorflow.serving.versions import FAILED, SERVING, Journal, open_versions
from rallypoint.stages.store import Store

GOOD = {"model": "/models/new", "name": "flights", "base_path": "/srv/flights", "rest_url": "http://127.0.0.1:8501"}


@pytest.fixture
def saved_model(tmp_path):
    """A folder that looks like a SavedModel; what is in it is not read here."""
    folder = tmp_path / "new"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables/variables.index").write_bytes(b"index")
    return folder


@pytest.fixture
def bucket_uri(s3_store_uri, monkeypatch):
    """The URI of an empty bucket prefix, with the job's environment as the orchestrator makes it."""
    uri, options = s3_store_uri
    for name, value in Store.open(uri, options=options).job_env().items():
        monkeypatch.setenv(name, value)
    return uri


@pytest.fixture(params=["folder", "bucket"])
def base_path(request, tmp_path):
    return str(tmp_path / "served") if request.param == "folder" else request.getfixturevalue("bucket_uri")


# The job -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "models/new"}, "a full path, or a URI"),
        ({"base_path": "http://host/x"}, "a full path, or a URI"),
        ({"name": "a/b"}, "a model's name"),
        ({"rest_url": "127.0.0.1:8501"}, "an address such as"),
        ({"rest_url": "http://me:hunter2@host:8501"}, "TF_SERVING_HEADERS"),
        ({"labels": "stable"}, "a list of labels"),
        ({"labels": ["stable"]}, "config_file= as well"),
        ({"keep_versions": 0}, "1 or more"),
        ({"timeout": 0}, "seconds above 0"),
        ({"keras": "2"}, '"3" or "legacy"'),
        ({"probe": {"body": {"rows": [1]}}}, 'either "instances" or "inputs"'),
        ({"probe": {"bodies": 1}}, "the fields of TFServingProbe"),
        ({"signature": {"inputs": ["x"]}}, "a dict such as"),
        ({"signature": {"inputs": {"x": ("float32", "many")}}}, "a dict such as"),
        ({"signature": 3}, "a TFServingSignature"),
    ],
)
def test_a_wrong_value_is_answered_when_the_job_is_made(wrong, says):
    with pytest.raises(InvalidJobError) as caught:
        TFServingDeploy(**{**GOOD, **wrong})
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_gang_is_one_process_whose_settings_are_in_a_file_without_secrets():
    secret = {"TF_SERVING_HEADERS": '{"Authorization": "hunter2"}'}
    gang = TFServingDeploy(**GOOD, secrets=secret, keras="legacy").plan()
    (role,) = gang.roles
    assert role.argv[-1].endswith("/tf_serving.json")
    assert role.env["TF_USE_LEGACY_KERAS"] == "1"
    assert b"hunter2" not in gang.files["tf_serving.json"]
    assert "hunter2" not in json.dumps(gang.to_json())
    assert gang.requires == ("tensorflow",)


def test_how_long_to_wait_is_not_the_work_and_which_model_is():
    job = TFServingDeploy(**GOOD)
    assert job.fingerprint() == TFServingDeploy(**GOOD, timeout=5, probe={"body": {"instances": [1]}}).fingerprint()
    assert job.fingerprint() != TFServingDeploy(**{**GOOD, "model": "/models/newer"}).fingerprint()


def test_parts_may_be_given_as_dicts_as_templates_are():
    job = TFServingDeploy(
        **GOOD,
        signature={"inputs": {"x": "float32"}},
        probe={"body": {"instances": [1]}, "expect": {"predictions": [2]}},
    )
    assert job.signature == TFServingSignature(inputs={"x": "float32"})
    assert job.probe == TFServingProbe(body={"instances": [1]}, expect={"predictions": [2]})


# Signatures ----------------------------------------------------------------------------------------------------------

FOUND = {
    "serving_default": {
        "inputs": {"x": {"dtype": "float32", "shape": [None, 3]}},
        "outputs": {"y": {"dtype": "float32", "shape": None}},
    }
}


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ({"name": "score"}, "has no signature 'score', it has: serving_default"),
        ({"inputs": {"z": "float32"}}, "got the inputs ['x'], expected ['z']"),
        ({"inputs": {"x": "int64"}}, "input 'x' is float32[?, 3], expected int64"),
        ({"inputs": {"x": ("float32", [None, 4])}}, "input 'x' is float32[?, 3], expected float32[?, 4]"),
        ({"inputs": {"x": ("float32", [8, 3])}}, "expected float32[8, 3]"),
        ({"outputs": {"y": ("float32", [None])}}, "output 'y' is float32, expected float32[?]"),
    ],
)
def test_a_signature_that_differs_is_told_by_what_differs(expected, says):
    with pytest.raises(SignatureError) as caught:
        check(FOUND, TFServingSignature(**expected).to_json())
    assert says in str(caught.value)


def test_a_signature_that_fits_says_nothing():
    check(FOUND, TFServingSignature().to_json())
    check(FOUND, TFServingSignature(inputs={"x": ("float32", [None, 3])}, outputs={"y": "float32"}).to_json())


# Models --------------------------------------------------------------------------------------------------------------


def test_what_is_no_model_is_told_with_what_is_there(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(NoModelError, match=r"there is \['weights.bin'\]; expected a folder with saved_model.pb"):
        fetch(f"file://{tmp_path}", str(tmp_path))


def test_the_digest_is_of_the_content_and_not_of_the_place(saved_model, tmp_path):
    first = content_digest(str(saved_model))
    moved = saved_model.rename(tmp_path / "moved")
    assert content_digest(str(moved)) == first
    (moved / "variables/variables.index").write_bytes(b"other")
    assert content_digest(str(moved)) != first


def test_a_model_in_a_bucket_is_fetched(saved_model, bucket_uri, tmp_path):
    open_versions(bucket_uri).put(7, str(saved_model))
    (tmp_path / "scratch").mkdir()
    fetched = fetch(f"{bucket_uri}/7", str(tmp_path / "scratch"))
    assert content_digest(fetched) == content_digest(str(saved_model))


# Versions ------------------------------------------------------------------------------------------------------------


def test_a_version_is_put_listed_and_taken_away(base_path, saved_model):
    versions = open_versions(base_path)
    assert versions.numbers() == []
    for number in (3, 12):
        versions.put(number, str(saved_model))
    assert versions.numbers() == [3, 12]
    versions.remove(12)
    versions.remove(12)
    assert versions.numbers() == [3]


def test_a_number_belongs_to_one_deploy_and_is_not_given_again(base_path, saved_model):
    journal = Journal(base_path)
    first = journal.claim(owner="a", digest="d", model="m", taken=4)
    second = journal.claim(owner="b", digest="d", model="m", taken=4)
    assert (first.number, second.number) == (5, 6)
    journal.set(second, FAILED, "no answer")
    assert journal.claim(owner="b", digest="d", model="m", taken=5).number == 7
    assert [(entry.number, entry.state) for entry in journal.entries()] == [
        (7, "deploying"),
        (6, "failed"),
        (5, "deploying"),
    ]


def test_a_server_sees_a_version_of_a_folder_whole_or_not_at_all(tmp_path, saved_model, monkeypatch):
    versions = open_versions(str(tmp_path / "served"))
    seen = []
    import shutil

    copy = shutil.copy2
    monkeypatch.setattr(shutil, "copytree", lambda source, target: _copy(source, target, copy, seen, tmp_path))
    versions.put(1, str(saved_model))
    assert seen == [[], []]
    assert versions.numbers() == [1]


def _copy(source, target, copy, seen, tmp_path):
    for path in ("saved_model.pb", "variables/variables.index"):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        copy(f"{source}/{path}", target / path)
        seen.append([each.name for each in (tmp_path / "served").iterdir() if each.name.isdigit()])


def test_in_a_bucket_what_makes_a_version_whole_comes_last_and_goes_first(bucket_uri, saved_model):
    versions = open_versions(bucket_uri)
    uploaded, upload = [], versions._bucket.upload
    deleted, delete = [], versions._bucket.delete
    versions._bucket.upload = lambda source, path: (uploaded.append(path), upload(source, path))
    versions._bucket.delete = lambda paths: (deleted.extend(paths), delete(paths))
    versions.put(1, str(saved_model))
    versions.put(10, str(saved_model))
    versions.remove(1)
    assert uploaded[:2] == ["1/variables/variables.index", "1/saved_model.pb"]
    assert deleted == ["1/saved_model.pb", "1/variables/variables.index"]
    assert versions.numbers() == [10]


def test_a_journal_with_foreign_files_counts_their_numbers_as_taken(tmp_path):
    own = tmp_path / ".rallypoint"
    own.mkdir()
    (own / "9.json").write_text("{}")
    (own / "notes.txt").write_text("")
    entry = Journal(str(tmp_path)).claim(owner="a", digest="d", model="m", taken=0)
    assert entry.number == 10
    assert Journal(str(tmp_path)).set(entry, SERVING).state == "serving"


# Labels --------------------------------------------------------------------------------------------------------------

CONFIG = """\
# The models of the small cluster; config { name: 'none' }
model_config_list: {
  config: {
    name: "other"  # somebody else's
    base_path: '/srv/other'
    version_labels { key: 'stable' value: 4 }
  }
  config {
    name: 'flights'
    base_path: "/srv/fli" 'ghts'
    model_platform: 'tensorflow'
    version_labels { key: "stable", value: 1 }
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels: < key: 'canary'; value: 2 >
    logging_config { log_collector_config { type: "{" } }
  }
}
"""


def test_the_labels_of_a_model_are_read():
    assert labels_of(CONFIG, "flights") == {"stable": 1, "canary": 2}
    assert labels_of(CONFIG, "other") == {"stable": 4}


def test_only_the_labels_of_one_model_are_replaced():
    changed = with_labels(CONFIG, "flights", {"stable": 2, "beta": 3})
    assert labels_of(changed, "flights") == {"stable": 2, "beta": 3}
    before, after = CONFIG.splitlines(), changed.splitlines()
    assert [line for line in before if "version_labels" not in line or "value: 4" in line] == [
        line for line in after if line.strip() and ("version_labels" not in line or "value: 4" in line)
    ]
    assert with_labels(changed, "flights", {"stable": 2, "beta": 3}) == changed


def test_labels_are_written_into_a_list_and_into_one_line():
    text = "model_config_list { config: [{ name: 'a' base_path: '/a' }, { name: 'b' base_path: '/b' }] }"
    changed = with_labels(text, "b", {"stable": 7})
    assert (labels_of(changed, "a"), labels_of(changed, "b")) == ({}, {"stable": 7})
    assert labels_of(with_labels(changed, "b", {}), "b") == {}


@pytest.mark.parametrize(
    "text", ["", "model_config_list {", "model_config_list { config { name: 'x } }", "}{", "a b c"]
)
def test_a_file_that_does_not_fit_is_told(text):
    with pytest.raises(ConfigFileError, match=r"cannot be read as protobuf text|expected 'flights' in it"):
        labels_of(text, "flights")


def test_protobuf_itself_reads_what_is_written():
    """The published messages, as far as they are needed, built at run time."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory, text_format

    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")

    def message(name, *fields):
        found = file.message_type.add(name=name)
        for number, field, kind, repeated, of in fields:
            found.field.add(
                name=field, number=number, type=kind, label=3 if repeated else 1, type_name=f".t.{of}" if of else None
            )

    message("Label", (1, "key", 9, False, ""), (2, "value", 3, False, ""))
    message("Specific", (1, "versions", 3, True, ""))
    message("Policy", (102, "specific", 11, False, "Specific"))
    message("Collector", (1, "type", 9, False, ""))
    message("Logging", (1, "log_collector_config", 11, False, "Collector"))
    message(
        "Config",
        (1, "name", 9, False, ""),
        (2, "base_path", 9, False, ""),
        (4, "model_platform", 9, False, ""),
        (6, "logging_config", 11, False, "Logging"),
        (7, "model_version_policy", 11, False, "Policy"),
        (8, "version_labels", 11, True, "Label"),
    )
    message("List", (1, "config", 11, True, "Config"))
    message("Server", (1, "model_config_list", 11, False, "List"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    server = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Server"))()
    text_format.Parse(with_labels(CONFIG, "flights", {"stable": 12}), server)
    other, flights = server.model_config_list.config
    assert [(each.key, each.value) for each in flights.version_labels] == [("stable", 12)]
    assert (flights.base_path, list(flights.model_version_policy.specific.versions)) == ("/srv/flights", [1, 2])
    assert [(each.key, each.value) for each in other.version_labels] == [("stable", 4)]
