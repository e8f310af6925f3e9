"""Fits an MLlib pipeline in a stage, evaluates it, and saves it; a retry fits only what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.ml import metrics as metric_names
from rallypoint.frameworks.spark.ml import paths
from rallypoint.frameworks.spark.ml.identity import Naming, adopt, pinned
from rallypoint.frameworks.spark.ml.kept import Kept, save_model
from rallypoint.frameworks.spark.ml.progress import Progress
from rallypoint.frameworks.spark.ml.tables import read_table
from rallypoint.frameworks.spark.ml.tuning import Search, Validation
from rallypoint.worker.stage import stage
from rallypoint.worker.storage_names import checked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class FittedPipeline:
    """What `fit_pipeline` made.

    Args:
        model: The fitted ``PipelineModel``.
        uri: Where it is saved; `load_pipeline` reads it.
        metrics: The metrics on the test rows, by name; empty without test rows or evaluators.
        validations: What each ``CrossValidator`` or ``TrainValidationSplit`` in it found, in their order.
        fitted: How many fits this attempt has done.
        kept: How many fits earlier attempts had done.
    """

    model: Any
    uri: str
    metrics: Mapping[str, float]
    validations: tuple[Validation, ...]
    fitted: int
    kept: int

    def to_json(self) -> dict[str, Any]:
        """Return all but the model itself, as the result of a stage."""
        return {
            "model": self.uri,
            "metrics": dict(self.metrics),
            "validations": [each.to_json() for each in self.validations],
            "fitted": self.fitted,
            "kept": self.kept,
        }


def fit_pipeline(  # noqa: PLR0913 - each is one thing that a user may say
    spark: Any,
    pipeline: Any,
    train: str | DataFrame,
    *,
    test: str | DataFrame | None = None,
    evaluators: Sequence[Any] | Mapping[str, Any] = (),
    label: str = "label",
    name: str = "model",
) -> FittedPipeline:
    """Fit a pipeline, evaluate it on other rows, and save it as the stage's artifact.

    Every fit is kept in the store as soon as it is done: each fitted stage of a ``Pipeline``, and each cell of a
    ``CrossValidator`` or ``TrainValidationSplit`` (a parameter map on a fold), wherever in the pipeline it stands. An
    attempt that continues an earlier one reads them and fits what is missing. What was kept is taken for the same fit
    if the classes, parameters and places of all that came before it are the same, the columns' names and types, the
    version of Spark, and the stage's own arguments (a stage with others starts anew). Its *rows* are not compared: the
    same call must give the same rows in every attempt.

    The metrics are those of Spark's own ``CrossValidator`` with the same seed or fold column. A fold column
    (``foldCol=``) holds whatever computes the rows; without one the split depends on the partitions, and finished cells
    are used again only if there are as many as before. An estimator without a seed gets one from its class's name: the
    default of Spark is another in every process.

    Models are written by the executors, to the store's folder (``file://``) or, for a bucket, to a temporary folder
    that the driver uploads. Executors on other hosts have to see that folder: where they do not, the fit fails and says
    so, and nothing is kept.

    Args:
        spark: The session.
        pipeline: A ``Pipeline``, a list of its stages, or any other estimator, such as a ``CrossValidator``.
        train: The rows to fit on: a DataFrame, or what `read_table` takes.
        test: The rows to evaluate on, in the same forms.
        evaluators: Evaluators, or names of metrics such as ``"areaUnderROC"``; a mapping gives them other names.
        label: The column of the true values, for metrics that are given by name.
        name: The artifact's name; two pipelines of one stage have different ones.

    Returns:
        The model, where it is, and its metrics. Its `to_json` is a stage's result.

    Raises:
        TypeError: The pipeline is no estimator, or evaluators have nothing to evaluate on.
        ValueError: A name is wrong.
        NotSavedError: A stage of it cannot be saved.
    """
    from pyspark.ml import Pipeline, PipelineModel

    checked(name)
    root = pinned(_estimator(Pipeline(stages=list(pipeline)) if isinstance(pipeline, list | tuple) else pipeline))
    by_name = metric_names.by_name(evaluators, label)
    if by_name and test is None:
        msg = f"got evaluators of {', '.join(by_name)} and no rows for them, expected test=: a DataFrame, table or path"
        raise TypeError(msg)
    here = stage()
    rows = read_table(spark, train)
    fitting = _Fitting(root, Kept(here, name), Progress(here, name, _fits(root)))
    fitted = fitting.fit(root, rows, fitting.naming.digest("rows", rows.schema.json(), spark.version))
    model = fitted if isinstance(fitted, PipelineModel) else PipelineModel([fitted])
    progress = fitting.progress
    print(f"{name}: {progress.fitted} fits done, {progress.kept} kept from before", flush=True)  # noqa: T201 - the stage's log
    values = _evaluate(model, read_table(spark, test), by_name) if test is not None else {}
    shown: dict[str, Any] = dict(values)
    here.report(**shown)
    uri = here.save_artifact(lambda folder: save_model(model, Path(folder)), name=name)
    return FittedPipeline(model, uri, values, tuple(fitting.validations), progress.fitted, progress.kept)


def load_pipeline(uri: str) -> Any:
    """Return the ``PipelineModel`` that an earlier stage saved; there has to be a session.

    Args:
        uri: What `fit_pipeline` said. One of a bucket is read by Spark itself, through ``s3a://`` and its settings.
    """
    from pyspark.ml import PipelineModel

    return PipelineModel.load(paths.of_uri(uri))


class _Fitting:
    """Fits an estimator part by part.

    Args:
        root: The estimator.
        kept: What earlier attempts have fitted.
        progress: Is told of every fit.
    """

    def __init__(self, root: Any, kept: Kept, progress: Progress) -> None:
        self.naming = Naming(root)
        self.progress = progress
        self.validations: list[Validation] = []
        self._kept = kept

    def fit(self, estimator: Any, dataset: DataFrame, scope: str) -> Any:
        """Return the fitted model.

        Args:
            estimator: What to fit.
            dataset: The rows.
            scope: Names what the rows came from and went through.
        """
        from pyspark.ml import Pipeline
        from pyspark.ml.tuning import CrossValidator, TrainValidationSplit

        # A user's own class below one of these may fit in another way: it is fitted as a whole.
        if type(estimator) is Pipeline:
            return self._fit_stages(estimator, dataset, scope)
        if type(estimator) in {CrossValidator, TrainValidationSplit}:
            return self._fit_best(estimator, dataset, scope)
        key = self.naming.digest("fit", scope, estimator)
        model = self._kept.model(key)
        if model is not None:
            self.progress.advance(kept=True)
            return adopt(model, estimator)
        model = estimator.fit(dataset)
        self._kept.keep_model(key, model, self.progress.done + 1)
        self.progress.advance(kept=False)
        return model

    def _fit_stages(self, pipeline: Any, dataset: DataFrame, scope: str) -> Any:
        from pyspark.ml import Estimator, PipelineModel

        stages = pipeline.getStages()
        last = max((number for number, each in enumerate(stages) if isinstance(each, Estimator)), default=-1)
        fitted = []
        for number, each in enumerate(stages):
            model = self.fit(each, dataset, scope) if isinstance(each, Estimator) else each
            fitted.append(model)
            if number < last:
                dataset = model.transform(dataset)
                scope = self.naming.digest("then", scope, each)
        return PipelineModel(fitted)

    def _fit_best(self, validator: Any, dataset: DataFrame, scope: str) -> Any:
        """Fit the estimator on all rows, with the parameters that the validator finds best."""
        found = Search(validator, self._kept, self.naming, self.progress).run(dataset, scope)
        self.validations.append(found)
        best = validator.getEstimator().copy(validator.getEstimatorParamMaps()[found.best])
        return self.fit(best, dataset, scope)


def _estimator(given: Any) -> Any:
    """Check what is to be fitted, all the way down.

    Raises:
        TypeError: It is no estimator, or asks for what is not kept.
    """
    from pyspark.ml import Estimator, Pipeline
    from pyspark.ml.tuning import CrossValidator, TrainValidationSplit

    if not isinstance(given, Estimator):
        msg = (
            f"got a {type(given).__qualname__} as the pipeline, expected an estimator such as Pipeline, CrossValidator "
            "or LogisticRegression, or a list of stages"
        )
        raise TypeError(msg)
    if type(given) is Pipeline:
        for each in given.getStages():
            if isinstance(each, Estimator):
                _estimator(each)
    if type(given) in {CrossValidator, TrainValidationSplit}:
        if given.getCollectSubModels():
            msg = (
                "got collectSubModels=True, expected False: of a cell its metric is kept, and the model of the best "
                "parameters is fitted on all rows"
            )
            raise TypeError(msg)
        _estimator(given.getEstimator())
    return given


def _fits(estimator: Any) -> int:
    """Return how many fits an estimator takes."""
    from pyspark.ml import Estimator, Pipeline
    from pyspark.ml.tuning import CrossValidator, TrainValidationSplit

    if type(estimator) is Pipeline:
        return sum(_fits(each) for each in estimator.getStages() if isinstance(each, Estimator))
    if type(estimator) is CrossValidator:
        return estimator.getNumFolds() * len(estimator.getEstimatorParamMaps()) + _fits(estimator.getEstimator())
    if type(estimator) is TrainValidationSplit:
        return len(estimator.getEstimatorParamMaps()) + _fits(estimator.getEstimator())
    return 1


def _evaluate(model: Any, test: DataFrame, evaluators: Mapping[str, Any]) -> dict[str, float]:
    if not evaluators:
        return {}
    predictions = model.transform(test).persist()
    try:
        return {name: float(each.evaluate(predictions)) for name, each in evaluators.items()}
    finally:
        predictions.unpersist()
