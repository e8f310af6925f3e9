"""The second stage on Spark: boosted trees and a logistic regression of MLlib, their settings found on held-out months.

Each cell of the cross-validation and each fitted part is kept as it is done (`frameworks.spark.ml`), so a retry goes on
where the attempt before it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rallypoint
from rallypoint.examples.flights.data import read_partitions, read_training_rows
from rallypoint.examples.flights.encoding import Encoder
from rallypoint.examples.flights.evaluation import logistic_regression, scores
from rallypoint.examples.flights.features import CATEGORICAL, NUMERIC, TARGET
from rallypoint.examples.flights.preprocessing import TRAIN_MONTHS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import DataFrame

MODELS = ("gbt", "logistic")
_FOLD = "fold"
_UNKNOWN = "unknown"
# The same as for the networks of the other pipelines. On all rows MLlib's regression is 0.001 below the baseline, and
# its 40 trees are 0.007: the best of them passes, and models that have lost a feature that counts do not.
MARGIN = 0.005
_MAX_BINS = 160  # more than a feature of the trees has values: the plane's model has 127


def train_spark(  # noqa: PLR0913, PLR0917 - each is a setting that a user may turn
    spark: Any,
    train_uri: str,
    test_uri: str,
    model: str = "gbt",
    folds: int = 2,
    iterations: int = 40,
) -> dict[str, Any]:
    """Fit a model with the settings that are best on months that it has not seen; a retry fits only what is missing.

    Args:
        spark: The session; the stage makes it.
        train_uri: The folder of the training months.
        test_uri: The folder of the test months.
        model: ``"gbt"`` for boosted trees of two depths, or ``"logistic"`` for a regression of two strengths of
            regularisation.
        folds: Into how many blocks of months the training months are cut, 2 to 10.
        iterations: Trees of the one, at the most as many steps of the other.

    Returns:
        ``model``, its name; the URI ``saved`` of the ``PipelineModel``; the ``best`` settings with the mean AUC on the
        folds; how many fits this attempt did (``fitted``) and earlier ones had done (``kept``); and ``test``:
        ``roc_auc``, ``log_loss`` and ``brier`` on the test months.

    Raises:
        ValueError: An argument is out of its range.
    """
    from rallypoint.frameworks.spark.ml import fit_pipeline, read_table

    if model not in MODELS or not 2 <= folds <= len(TRAIN_MONTHS) or iterations < 1:  # noqa: PLR2004 - the docstring says so
        msg = (
            f"train_spark(…): got model={model!r}, folds={folds!r} and iterations={iterations!r}, expected one of "
            f"{MODELS}, 2 to {len(TRAIN_MONTHS)} folds and 1 iteration or more"
        )
        raise ValueError(msg)
    train = _prepared(read_table(spark, train_uri), folds)
    test = _prepared(read_table(spark, test_uri), folds)
    fitted = fit_pipeline(spark, _stages(model, folds, iterations), train, name=model)
    validation = fitted.validations[0]
    values = _scores(fitted.model, test)
    shown: dict[str, Any] = {f"test_{name}": value for name, value in values.items()}
    rallypoint.stage().report(**shown)
    best = {**validation.params[validation.best], validation.metric: round(validation.means[validation.best], 4)}
    print(f"{model}: best {best}, test {values}", flush=True)  # noqa: T201 - the stage's log
    return {
        "model": model,
        "saved": fitted.uri,
        "best": best,
        "fitted": fitted.fitted,
        "kept": fitted.kept,
        "test": values,
    }


def compare_spark(
    trained: Sequence[dict[str, Any]], train_uri: str, test_uri: str, margin: float = MARGIN
) -> dict[str, Any]:
    """Hold what `train_spark` returned against the baseline of the other pipelines, on the same rows.

    Args:
        trained: Its results, one for each model.
        train_uri: The folder of the training months.
        test_uri: The folder of the test months.
        margin: How far below the baseline's ROC-AUC the best model's may be. The default is for all rows and
            iterations; few of either want a wider one.

    Returns:
        ``models`` and ``baseline``, each with ``roc_auc``, ``log_loss`` and ``brier``, the name of the ``best`` model,
        the number of test ``rows``, and ``passed``, which is True.

    Raises:
        ValueError: The best model's ROC-AUC is below the baseline's by more than the margin.
    """
    fitted, _ = read_training_rows(train_uri)
    test = read_partitions(test_uri)
    baseline = scores(test[TARGET].to_numpy(), logistic_regression(fitted, test, Encoder.fit(fitted)))
    models = {each["model"]: each["test"] for each in trained}
    for name, values in (*((f"Spark {name}", each) for name, each in models.items()), ("baseline", baseline)):
        print(f"{name:14}", "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))  # noqa: T201 - the log
    best = max(models, key=lambda name: models[name]["roc_auc"])
    aucs: dict[str, Any] = {f"{name}_roc_auc": values["roc_auc"] for name, values in models.items()}
    rallypoint.stage().report(baseline_roc_auc=baseline["roc_auc"], **aucs)
    if models[best]["roc_auc"] < baseline["roc_auc"] - margin:
        msg = (
            f"the best ROC-AUC, {models[best]['roc_auc']:.3f} of {best}, is below the baseline's "
            f"{baseline['roc_auc']:.3f} minus {margin:g}, expected at least {baseline['roc_auc'] - margin:.3f}; train "
            "with more iterations, or on more rows"
        )
        raise ValueError(msg)
    return {"models": models, "baseline": baseline, "best": best, "rows": len(test), "passed": True}


def _prepared(frame: DataFrame, folds: int) -> DataFrame:
    """Return the rows with the combined features, a label, and the fold: blocks of months next to each other."""
    from pyspark.sql import functions as sql

    for name, columns in CATEGORICAL.items():
        # One in six planes is in no register; OneHotEncoder takes no empty name.
        values = (sql.coalesce(sql.col(column).cast("string"), sql.lit(_UNKNOWN)) for column in columns)
        frame = frame.withColumn(name, sql.concat_ws("|", *values))
    block = sql.floor((sql.col("month") - 1) * folds / len(TRAIN_MONTHS)).cast("int")
    return frame.withColumn(_FOLD, block).withColumn("label", sql.col(TARGET).cast("double"))


def _stages(model: str, folds: int, iterations: int) -> list[Any]:
    from pyspark.ml.classification import GBTClassifier, LogisticRegression
    from pyspark.ml.feature import Imputer, OneHotEncoder, StringIndexer, VectorAssembler
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    from rallypoint.frameworks.spark.ml import evaluator

    # Trees find combinations of features themselves.
    categories = [name for name, columns in CATEGORICAL.items() if model == "logistic" or len(columns) == 1]
    indexed, encoded, numbers = ([f"{name}_{kind}" for name in names] for kind, names in (
        ("index", categories), ("codes", categories), ("number", NUMERIC),
    ))  # fmt: skip
    stages: list[Any] = [
        # Values that the training rows do not hold are one more value.
        StringIndexer(inputCols=categories, outputCols=indexed, handleInvalid="keep"),
        Imputer(inputCols=list(NUMERIC), outputCols=numbers),
    ]
    if model == "logistic":
        stages.append(OneHotEncoder(inputCols=indexed, outputCols=encoded, handleInvalid="keep"))
        estimator: Any = LogisticRegression(maxIter=iterations)
        grid = ParamGridBuilder().addGrid(estimator.regParam, [0.0005, 0.005]).build()
    else:
        estimator = GBTClassifier(maxIter=iterations, stepSize=0.2, maxBins=_MAX_BINS, subsamplingRate=0.7, seed=0)
        grid = ParamGridBuilder().addGrid(estimator.maxDepth, [4, 6]).build()
    inputs = (encoded if model == "logistic" else indexed) + numbers
    stages.append(VectorAssembler(inputCols=inputs, outputCol="features"))
    search: Any = CrossValidator(
        estimator=estimator, estimatorParamMaps=grid, evaluator=evaluator("areaUnderROC"), numFolds=folds, foldCol=_FOLD
    )
    return [*stages, search]


def _scores(model: Any, test: DataFrame) -> dict[str, float]:
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as sql

    late = vector_to_array(sql.col("probability"))[1]
    predicted = model.transform(test).select("label", late.alias("probability"))
    rows = predicted.toPandas()
    return scores(rows["label"].to_numpy(), rows["probability"].to_numpy())
