"""MLlib as a stage: what was fitted is not fitted again, and the result is that of Spark's own fit."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rallypoint import Function
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.frameworks.spark.ml.job import SparkMLPipeline
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

# Each job starts a Spark, which takes 6 s and more: a test has as many steps as it can show.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SMALL = {"spark.sql.shuffle.partitions": 2, "spark.ui.enabled": "false"}
FOLDS, MAPS = 3, 2

DAG_FILE = """
import os
import random
import signal
from pathlib import Path


def rows(spark):
    chance = random.Random(7)
    found = []
    for number in range(240):
        colour = chance.choice(["red", "green", "blue"])
        x, y = chance.gauss(0, 1), chance.gauss(0, 1)
        late = float(x - y + {"red": 0.7, "green": 0.0, "blue": -0.7}[colour] + chance.gauss(0, 1) > 0)
        found.append((colour, x, y, late, number % 3))
    return spark.createDataFrame(found, "colour string, x double, y double, label double, fold int")


def stages(witness, kill_at=0, fold_column=""):
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from pyspark.ml.feature import StringIndexer, VectorAssembler
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    def note(line):
        with open(witness, "a") as file:
            file.write(line + "\\n")
        if kill_at and len(Path(witness).read_text().splitlines()) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    class Indexer(StringIndexer):
        def _fit(self, dataset):
            note("index")
            return super()._fit(dataset)

    class Regression(LogisticRegression):
        def _fit(self, dataset):
            note(f"fit {self.getRegParam():g} {dataset.count()}")
            return super()._fit(dataset)

    # Without an output column's name, Spark names it at random, and the next stage by it.
    indexer = Indexer(inputCol="colour")
    assembler = VectorAssembler(inputCols=[indexer.getOutputCol(), "x", "y"], outputCol="features")
    regression = Regression(maxIter=20)
    grid = ParamGridBuilder().addGrid(regression.regParam, [0.001, 0.5]).build()
    search = CrossValidator(estimator=regression, estimatorParamMaps=grid, numFolds=3, foldCol=fold_column,
                            evaluator=BinaryClassificationEvaluator())
    return [indexer, assembler, search]


def fit(spark, witness, kill_at=0):
    import rallypoint
    from rallypoint.frameworks.spark.ml import fit_pipeline

    at = kill_at if rallypoint.stage().attempt == 1 else 0
    data = rows(spark)
    fitted = fit_pipeline(spark, stages(witness, at), data, test=data, evaluators=["areaUnderROC", "accuracy"])
    return {**fitted.to_json(), "coefficients": fitted.model.stages[-1].coefficients.tolist()}


def compare(spark, witness):
    \"\"\"Fit with Spark alone, too: with a seed, and with a fold column.\"\"\"
    from pyspark.ml import Pipeline

    from rallypoint.frameworks.spark.ml import fit_pipeline
    from rallypoint.frameworks.spark.ml.identity import pinned

    answer = fit(spark, witness)
    data = rows(spark)
    spark_alone = pinned(Pipeline(stages=stages(witness))).fit(data)
    answer["spark_seed"] = list(spark_alone.stages[-1].avgMetrics)
    answer["spark_coefficients"] = spark_alone.stages[-1].bestModel.coefficients.tolist()
    by_column = fit_pipeline(spark, stages(witness, 0, "fold"), data, name="by-column")
    answer["column"] = [each["mean"] for each in by_column.to_json()["validations"][0]["maps"]]
    spark_alone = Pipeline(stages=stages(witness, 0, "fold")).fit(data)
    answer["spark_column"] = list(spark_alone.stages[-1].avgMetrics)
    answer["split"], answer["spark_split"] = split(spark, witness, data)
    wrong = data.withColumn("fold", data.fold + 1)
    try:
        fit_pipeline(spark, stages(witness, 0, "fold"), wrong, name="wrong")
    except ValueError as error:
        answer["refused"] = str(error)
    return answer


def split(spark, witness, data):
    from pyspark.ml import Pipeline
    from pyspark.ml.tuning import TrainValidationSplit

    from rallypoint.frameworks.spark.ml import fit_pipeline

    *before, search = stages(witness)
    halves = TrainValidationSplit(estimator=search.getEstimator(), evaluator=search.getEvaluator(), seed=3,
                                  estimatorParamMaps=search.getEstimatorParamMaps(), trainRatio=0.6)
    fitted = fit_pipeline(spark, [*before, halves], data, name="split")
    spark_alone = Pipeline(stages=[*before, halves]).fit(data)
    return list(fitted.validations[0].means), list(spark_alone.stages[-1].validationMetrics)


def build(spark, depth):
    from pyspark.ml.classification import DecisionTreeClassifier
    from pyspark.ml.feature import VectorAssembler

    return [VectorAssembler(inputCols=["x", "y"], outputCol="features"), DecisionTreeClassifier(maxDepth=depth)]


def write(spark, folder):
    rows(spark).write.parquet(f"{folder}/rows.parquet")


def use(spark, folder, model):
    from rallypoint.frameworks.spark.ml import load_pipeline

    predicted = load_pipeline(model).transform(spark.read.parquet(f"{folder}/rows.parquet"))
    return {"right": predicted.filter("label = prediction").count()}
"""


@pytest.fixture
def dag(as_dag_file):
    return as_dag_file(DAG_FILE, "mllib")


async def run(engine, job, owner="try-1"):
    started = await engine.start(job, Request(owner=owner))
    return [update async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.2))][-1]


async def succeeded(engine, job, owner="try-1"):
    update = await run(engine, job, owner)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    return update


def spark(function, *args, **kwargs):
    return SparkJob(Function(function, args, kwargs), master="local[2]", conf=SMALL)


async def test_a_killed_cross_validation_goes_on_and_finds_what_spark_alone_finds(
    store, launcher, dag, tmp_path, jobs_left, s3_store_uri
):
    engine = Engine(store, StageKey(("ml", "r1", "fit")), launcher)
    witness = tmp_path / "witness"
    job = spark(dag.fit, str(witness), kill_at=6)  # the indexer, four fits; the fifth is not done
    failed = await run(engine, job)
    assert (failed.outcome.failure.signal, failed.outcome.failure.kind) == ("SIGKILL", Kind.RETRYABLE)
    assert (failed.view.step, failed.view.total, failed.view.unit) == (5, 1 + FOLDS * MAPS + 1, "model fit")
    assert failed.view.metrics["best_areaUnderROC"] > 0.6
    before = witness.read_text().splitlines()
    assert len(before) == 6

    update = await succeeded(engine, job, "try-2")
    result = update.outcome.result
    again = witness.read_text().splitlines()[6:]
    assert again[0] == before[-1]  # the fit that the kill interrupted
    assert len(again) == 3  # it, the last of the cells, and the best parameters on all rows
    assert again[-1].endswith(" 240")
    assert (result["fitted"], result["kept"]) == (3, 5)
    assert (update.view.step, update.view.total) == (8, 8)
    assert jobs_left() == {}

    # An undisturbed run, which keeps what it fits in a bucket, and Spark's own cross-validation.
    uri, options = s3_store_uri
    in_bucket = Engine(Store.open(uri, options=options), StageKey(("ml", "r1", "compare")), launcher)
    undisturbed = (await succeeded(in_bucket, spark(dag.compare, str(tmp_path / "other")))).outcome.result
    (validation,) = result["validations"]
    means = [each["mean"] for each in validation["maps"]]
    assert validation == undisturbed["validations"][0]
    assert result["coefficients"] == pytest.approx(undisturbed["coefficients"], rel=1e-6)
    assert result["metrics"] == pytest.approx(undisturbed["metrics"])
    assert (undisturbed["fitted"], undisturbed["kept"]) == (8, 0)
    assert undisturbed["model"].startswith("s3://")

    assert means == pytest.approx(undisturbed["spark_seed"], rel=1e-9)
    assert result["coefficients"] == pytest.approx(undisturbed["spark_coefficients"], rel=1e-6)
    assert undisturbed["column"] == pytest.approx(undisturbed["spark_column"], rel=1e-9)
    assert undisturbed["split"] == pytest.approx(undisturbed["spark_split"], rel=1e-9)
    assert undisturbed["column"] != pytest.approx(means, rel=1e-9)
    assert "expected each of 0 to 2 and no other" in undisturbed["refused"]


async def test_a_pipeline_job_reads_a_table_by_its_path_and_another_stage_uses_the_model(
    store, launcher, dag, tmp_path
):
    def engine(name):
        return Engine(store, StageKey(("ml", "r1", name)), launcher)

    await succeeded(engine("write"), spark(dag.write, str(tmp_path)))
    table = f"{tmp_path}/rows.parquet"
    job = SparkMLPipeline(
        Function(dag.build, (), {"depth": 3}), train=table, test=table, metrics=["accuracy"], model="tree",
        master="local[2]", conf=SMALL,
    )  # fmt: skip
    fitted = (await succeeded(engine("fit"), job)).outcome
    assert fitted.result["model"].endswith("/artifacts/tree")
    assert (fitted.result["fitted"], fitted.result["validations"]) == (1, [])
    assert fitted.metrics["accuracy"] == pytest.approx(fitted.result["metrics"]["accuracy"])
    used = (await succeeded(engine("use"), spark(dag.use, str(tmp_path), fitted.result["model"]))).outcome.result
    assert used["right"] / 240 == pytest.approx(fitted.result["metrics"]["accuracy"])
