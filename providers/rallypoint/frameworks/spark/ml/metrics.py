"""Evaluators by the names of their metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BINARY = ("areaUnderROC", "areaUnderPR")
_MULTICLASS = (
    "f1", "accuracy", "weightedPrecision", "weightedRecall", "weightedTruePositiveRate", "weightedFalsePositiveRate",
    "weightedFMeasure", "truePositiveRateByLabel", "falsePositiveRateByLabel", "precisionByLabel", "recallByLabel",
    "fMeasureByLabel", "logLoss", "hammingLoss",
)  # fmt: skip
_REGRESSION = ("rmse", "mse", "r2", "mae", "var")
_CLUSTERING = ("silhouette",)
METRICS = _BINARY + _MULTICLASS + _REGRESSION + _CLUSTERING
"""The metrics that Spark has evaluators for."""


def evaluator(metric: str, *, label: str = "label", prediction: str = "prediction") -> Any:
    """Return Spark's evaluator of a metric.

    Args:
        metric: One of `METRICS`, such as ``"areaUnderROC"``, ``"accuracy"`` or ``"rmse"``.
        label: The column of the true values; clustering has none.
        prediction: The column of the predictions. The area under a curve is of the column ``rawPrediction``, and the
            logarithmic loss of ``probability``.

    Raises:
        ValueError: Spark has no evaluator of that name.
    """
    if metric not in METRICS:
        msg = f"got the metric {metric!r}, expected one of {', '.join(METRICS)}; or give an evaluator of your own"
        raise ValueError(msg)
    from pyspark.ml import evaluation

    if metric in _BINARY:
        return evaluation.BinaryClassificationEvaluator(labelCol=label, metricName=metric)  # type: ignore[arg-type]  # one of them
    if metric in _MULTICLASS:
        return evaluation.MulticlassClassificationEvaluator(
            labelCol=label,
            predictionCol=prediction,
            metricName=metric,  # type: ignore[arg-type]  # one of them
        )
    if metric in _REGRESSION:
        return evaluation.RegressionEvaluator(labelCol=label, predictionCol=prediction, metricName=metric)  # type: ignore[arg-type]  # one of them
    return evaluation.ClusteringEvaluator(predictionCol=prediction)


def name_of(own: Any) -> str:
    """Return the name of an evaluator's metric; its class's name if it has none."""
    if own.hasParam("metricName") and own.isDefined(own.getParam("metricName")):
        return str(own.getOrDefault(own.getParam("metricName")))
    return type(own).__name__


def by_name(evaluators: Sequence[Any] | Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return evaluators by the names that their metrics get in a result.

    Args:
        evaluators: Metrics' names or evaluators, or a mapping of a name to one of either.
        label: The column of the true values, for those that are given by name.

    Raises:
        ValueError: Two have the same name.
    """
    given = evaluators.items() if hasattr(evaluators, "items") else ((None, each) for each in evaluators)
    found: dict[str, Any] = {}
    for name, each in given:
        own = evaluator(each, label=label) if isinstance(each, str) else each
        key = name or name_of(own)
        if key in found:
            msg = f"got two evaluators of {key!r}, expected a name for each: evaluators={{'a': …, 'b': …}}"
            raise ValueError(msg)
        found[key] = own
    return found
