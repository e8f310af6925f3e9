"""MLlib in a stage, without a Spark: how fits are named, what is kept, and which jobs are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rallypoint import Function, Script
from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark.ml import metrics, paths, tables
from rallypoint.frameworks.spark.ml.job import SparkMLPipeline
from rallypoint.worker import stage as worker_stage
from rallypoint.worker.context import Placement, StageContext
from rallypoint.worker.entry import run_entry

ALONE = Placement(rank=0, local_rank=0, world_size=1, restart=0)


# Names of fits --------------------------------------------------------------------------------------------------------

# Estimators of Python alone: those of Spark need its JVM. Each process salts the hashes of strings in its own way.
NAMES = """
import json
from pyspark.ml import Estimator, Pipeline
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol, HasSeed
from rallypoint.frameworks.spark.ml.identity import Naming, pinned, readable

class Step(Estimator, HasInputCol, HasOutputCol, HasSeed):
    size = Param(Params._dummy(), "size", "a size", TypeConverters.toInt)
    def __init__(self, source=None, size=None, seed=None):
        super().__init__()
        given = {"inputCol": source, "size": size, "seed": seed}
        self._set(**{name: value for name, value in given.items() if value is not None})
    def _fit(self, dataset):
        raise NotImplementedError

def digest(first, second, scope=""):
    root = pinned(Pipeline(stages=[first, second]))
    naming = Naming(root)
    return naming.digest(scope, root.getStages()[1])

def chained(**more):
    first = Step("x")
    return digest(first, Step(first.getOutputCol(), **more))

first = Step("x")
second = Step(first.getOutputCol())
grid = {second.size: 3, first.seed: 5}
root = pinned(Pipeline(stages=[first, second]))
other_first = Step("x")
other = Step(other_first.getOutputCol())
other_root = pinned(Pipeline(stages=[other_first, other]))
print(json.dumps({
    "same": [chained(), chained()],
    "size": [chained(size=1), chained(size=2)],
    "seed": [chained(), chained(seed=9)],
    "source": [chained(), digest(Step("x"), Step("x"))],
    "scope": [digest(Step("x"), Step("y"), "a"), digest(Step("x"), Step("y"), "b")],
    "maps": [
        Naming(root).digest(grid), Naming(other_root).digest({other_first.seed: 5, other.size: 3}),
    ],
    "kept_seed": pinned(Step(seed=9)).getSeed(),
    "own": [first.isSet(first.seed), root.getStages()[0].isSet(first.seed)],
    "pinned": root.getStages()[0].getSeed(),
    "readable": sorted(readable(grid).items()),
}))
"""


@pytest.fixture(scope="module")
def named():
    """What two processes say."""
    started = [subprocess.Popen([sys.executable, "-c", NAMES], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return [json.loads(process.communicate()[0]) for process in started]


def test_a_fit_has_the_same_name_in_every_process(named):
    assert named[0] == named[1]
    first, second = named[0]["same"]
    assert first == second  # whatever Spark names the instances, and the columns by them


@pytest.mark.parametrize("what", ["size", "seed", "source", "scope"])
def test_another_parameter_or_place_is_another_fit(named, what):
    first, second = named[0][what]
    assert first != second


def test_parameter_maps_are_named_by_the_place_of_their_estimator(named):
    first, second = named[0]["maps"]
    assert first == second
    assert named[0]["readable"] == [["Step.seed", 5], ["Step.size", 3]]


def test_a_seed_that_was_not_set_is_pinned_in_a_copy(named):
    assert named[0]["kept_seed"] == 9
    assert named[0]["own"] == [False, True]


# What is kept ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "bucket"])
def data_uri(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return tmp_path.as_uri()
    uri, options = request.getfixturevalue("s3_store_uri")
    named = {
        "AWS_ACCESS_KEY_ID": options["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": options["aws_secret_access_key"],
        "AWS_REGION": options["region"],
        "AWS_ENDPOINT_URL": options["endpoint_url"],
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    return uri


def test_a_score_is_kept_for_the_next_attempt_and_half_of_one_is_not(data_uri, monkeypatch):
    from rallypoint.frameworks.spark.ml.kept import Kept

    def attempt(number):
        context = StageContext(("s",), f"a{number}", number, 1, resumed=number > 1, data_uri=data_uri)
        return Kept(worker_stage.Stage(context, ALONE, data_uri), "model")

    first = attempt(1)
    first.keep_score("one", 0.1 + 0.2, 1)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(first._storage, "commit", killed)  # the last step: all has been written
        with pytest.raises(KeyboardInterrupt):
            first.keep_score("two", 0.5, 2)
    second = attempt(2)
    assert second.score("one") == 0.1 + 0.2
    assert second.score("two") is None
    assert second.model("one") is None


@pytest.mark.parametrize("missing", ["data", "metadata"])
def test_a_model_whose_parts_are_on_other_hosts_is_not_kept(tmp_path, missing):
    from rallypoint.frameworks.spark.ml.kept import NotSavedError, check_parts

    for part in ("data", "metadata"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "_SUCCESS").touch()
        (tmp_path / part / "part-00000-1.snappy.parquet").touch()
    check_parts(tmp_path)
    next((tmp_path / missing).glob("part-*")).unlink()
    with pytest.raises(NotSavedError, match=f"without the files of its part {missing}.*all hosts see"):
        check_parts(tmp_path)


def test_a_folder_that_nothing_was_written_to_is_no_model(tmp_path):
    from rallypoint.frameworks.spark.ml.kept import NotSavedError, check_parts

    with pytest.raises(NotSavedError):
        check_parts(tmp_path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///runs/manual__2026-11-24T03:10:25+00:00/a%20b", "file:///runs/manual__2026-11-24T03:10:25+00:00/a b"),
        ("s3://bucket/model", "s3a://bucket/model"),
        ("/data/100%/rows", "/data/100%/rows"),
        ("hdfs://nn/data", "hdfs://nn/data"),
    ],
)
def test_spark_reads_addresses_and_not_uris(uri, expected):
    assert paths.of_uri(uri) == expected


# Tables and metrics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("orders", ("table", None)),
        ("catalog.sales.orders", ("table", None)),
        ("/data/orders", ("path", None)),
        ("hdfs://nn/orders.parquet/", ("path", "parquet")),
        ("s3a://sales/orders.csv.gz", ("path", "csv")),
        ("./orders.json", ("path", "json")),
    ],
)
def test_a_text_is_a_tables_name_or_a_path(source, expected):
    assert tables.source_of(source) == expected


@pytest.mark.parametrize("source", ["", "a b", "one.two.three.four", "orders.", "drop table x"])
def test_a_text_that_is_neither_is_refused(source):
    with pytest.raises(ValueError, match="expected a table's name"):
        tables.source_of(source)


def test_an_unknown_metric_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"'auc', expected one of areaUnderROC, .*rmse"):
        metrics.evaluator("auc")


def test_two_evaluators_have_different_names():
    class Own:
        def hasParam(self, name):  # noqa: N802 - Spark's name
            return False

    assert set(metrics.by_name({"a": Own(), "b": Own()}, "label")) == {"a", "b"}
    with pytest.raises(ValueError, match="two evaluators of 'Own'"):
        metrics.by_name([Own(), Own()], "label")


# The job --------------------------------------------------------------------------------------------------------------


def build(depth):
    return depth


def test_a_pipeline_job_is_a_spark_job_with_the_functions_own_name():
    job = SparkMLPipeline(Function(build, (), {"depth": 3}), train="sales.orders", test="/data/x", metrics=["rmse"])
    parts = job.fingerprint()
    assert parts["entry"].endswith(".build")
    assert {"argument depth", "train", "test", "model"} <= parts.keys()
    other = SparkMLPipeline(Function(build, (), {"depth": 3}), train="sales.returns", test="/data/x")
    assert {name for name in parts if parts[name] != other.fingerprint()[name]} == {"train"}
    gang = job.plan()
    assert gang.name == "spark_ml"
    assert gang.requires == ("pyspark",)
    assert "rallypoint.frameworks.spark.driver" in gang.roles[0].argv


DAG_FILE = """
SCALE = 10


def build(spark, depth, *, more=0):
    return ["fitted", spark, SCALE * depth + more]
"""


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"), [((2,), {}, 20), ((), {"depth": 2}, 20), ((2,), {"more": 1}, 21)]
)
def test_the_function_travels_by_value_and_gets_the_session(as_dag_file, tmp_path, monkeypatch, args, kwargs, expected):
    calls = []

    class Fitted:
        def to_json(self):
            return {"model": "uri"}

    def fit_pipeline(spark, pipeline, train, **options):
        calls.append((spark, pipeline, train, options))
        return Fitted()

    monkeypatch.setattr("rallypoint.frameworks.spark.ml.fit_pipeline", fit_pipeline)
    module = as_dag_file(DAG_FILE, "pipelines")
    job = SparkMLPipeline(Function(module.build, args, kwargs), train="/data/rows", model="tree")
    for name, data in job.code.files().items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.delitem(sys.modules, module.__name__)
    answer = run_entry(["function", str(tmp_path / "function.pkl")], inject={"spark": "the session"})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert answer == {"model": "uri"}
    (call,) = calls
    assert call[:3] == ("the session", ["fitted", "the session", expected], "/data/rows")
    assert call[3] == {"test": None, "evaluators": (), "label": "label", "name": "tree"}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"train": "a b"}, "train"),
        ({"train": None}, "train"),
        ({"test": "x y"}, "test"),
        ({"metrics": ["auc"], "test": "t"}, "metrics"),
        ({"metrics": "rmse", "test": "t"}, "metrics"),
        ({"metrics": ["rmse"]}, "test"),
        ({"model": "../model"}, "model"),
        ({"entry": Script("train.py")}, "entry"),
    ],
)
def test_a_wrong_value_is_named(given, field):
    entry = given.pop("entry", Function(build, (3,)))
    with pytest.raises(InvalidJobError) as caught:
        SparkMLPipeline(entry, **{"train": "orders", **given})
    assert caught.value.field == field
