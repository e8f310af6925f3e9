"""A cross-validation whose finished cells are kept: one cell is one parameter map on one fold."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.ml.folds import Folds
from rallypoint.frameworks.spark.ml.identity import readable
from rallypoint.frameworks.spark.ml.metrics import name_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from pyspark.sql import DataFrame

    from rallypoint.frameworks.spark.ml.identity import Naming
    from rallypoint.frameworks.spark.ml.kept import Kept
    from rallypoint.frameworks.spark.ml.progress import Progress


class NoMetricError(ArithmeticError):
    """No parameter map has a metric that is a number."""


@dataclass(frozen=True)
class Validation:
    """What a ``CrossValidator`` or ``TrainValidationSplit`` found.

    Args:
        metric: The name of the metric.
        larger_is_better: Which way it is compared.
        params: The parameter maps, readable.
        metrics: For each parameter map its metric on each fold.
        best: The index of the best parameter map, by the mean over the folds.
    """

    metric: str
    larger_is_better: bool
    params: tuple[Mapping[str, Any], ...]
    metrics: tuple[tuple[float, ...], ...]
    best: int

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each parameter map over the folds: ``avgMetrics`` of Spark's own model."""
        return tuple(fmean(values) for values in self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object, the parameter maps in their order."""
        rows = [
            {"params": dict(params), "mean": mean, "std": pstdev(values), "folds": list(values)}
            for params, mean, values in zip(self.params, self.means, self.metrics, strict=True)
        ]
        return {
            "metric": self.metric,
            "larger_is_better": self.larger_is_better,
            "best": self.best,
            "best_params": dict(self.params[self.best]),
            "maps": rows,
        }


@dataclass(frozen=True)
class _Cell:
    key: str
    fold: int
    number: int  # of the parameter map


class Search:
    """Evaluates the parameter maps of a validator on its folds.

    The folds, the order and the choice are those of Spark's own ``CrossValidator.fit``, so the metrics are the same.

    Args:
        validator: The ``CrossValidator`` or ``TrainValidationSplit``, with its seed.
        kept: What earlier attempts have found.
        naming: Names the cells.
        progress: Is told of every cell.
    """

    def __init__(self, validator: Any, kept: Kept, naming: Naming, progress: Progress) -> None:
        self._validator = validator
        self._kept = kept
        self._naming = naming
        self._progress = progress
        self._evaluator = validator.getEvaluator()
        self._maps: Sequence[Mapping[Any, Any]] = validator.getEstimatorParamMaps()

    def run(self, dataset: DataFrame, scope: str) -> Validation:
        """Evaluate what no earlier attempt has.

        Args:
            dataset: The rows.
            scope: Names what came before.

        Raises:
            ValueError: The fold column is wrong.
            NoMetricError: Every parameter map's metric is NaN.
        """
        folds = Folds(self._validator, dataset)
        try:
            metrics = self._evaluate(folds, scope)
        finally:
            folds.release()
        found = tuple(tuple(metrics[fold, number] for fold in range(folds.count)) for number in range(len(self._maps)))
        return Validation(
            metric=name_of(self._evaluator),
            larger_is_better=self._evaluator.isLargerBetter(),
            params=tuple(readable(each) for each in self._maps),
            metrics=found,
            best=self._best({number: fmean(values) for number, values in enumerate(found)}),
        )

    def _evaluate(self, folds: Folds, scope: str) -> dict[tuple[int, int], float]:
        metrics: dict[tuple[int, int], float] = {}
        missing: list[_Cell] = []
        for cell in self._cells(folds, scope):
            metric = self._kept.score(cell.key)
            if metric is None:
                missing.append(cell)
            else:
                metrics[cell.fold, cell.number] = metric
                self._tell(metrics, kept=True)
        if missing:
            folds.check()
        for fold in range(folds.count):  # one after another, so that the executors hold one fold's work at a time
            cells = [cell for cell in missing if cell.fold == fold]
            with closing(self._compute(cells, folds)) as computed:
                for cell, metric in computed:
                    metrics[cell.fold, cell.number] = metric
                    self._kept.keep_score(cell.key, metric, self._progress.done + 1)
                    self._tell(metrics, kept=False)
        return metrics

    def _cells(self, folds: Folds, scope: str) -> Iterator[_Cell]:
        estimator = self._validator.getEstimator()
        for fold in range(folds.count):
            for number, param_map in enumerate(self._maps):
                about = (scope, estimator, self._evaluator, folds.identity, fold, param_map)
                yield _Cell(self._naming.digest("cell", *about), fold, number)

    def _compute(self, cells: Sequence[_Cell], folds: Folds) -> Generator[tuple[_Cell, float]]:
        """Yield the metrics of cells of one fold, as they are there."""
        if not cells:
            return
        from pyspark.util import inheritable_thread_target

        train, validation = folds.rows(cells[0].fold)
        estimator, evaluator = self._validator.getEstimator(), self._evaluator

        def compute(cell: _Cell) -> float:
            param_map = dict(self._maps[cell.number])
            model = estimator.fit(train, param_map)
            return float(evaluator.evaluate(model.transform(validation, param_map)))

        threads = min(self._validator.getParallelism(), len(cells))
        with ThreadPoolExecutor(threads, thread_name_prefix="rallypoint-fit") as pool:
            work = inheritable_thread_target(train.sparkSession)
            futures = {pool.submit(work(compute), cell): cell for cell in cells}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                for future in futures:
                    future.cancel()  # after a failure: what has not begun is not begun

    def _tell(self, metrics: Mapping[tuple[int, int], float], *, kept: bool) -> None:
        """Report a cell, and the best mean over the folds that are done."""
        so_far: dict[int, list[float]] = {}
        for (_, number), metric in metrics.items():
            so_far.setdefault(number, []).append(metric)
        means = [mean for values in so_far.values() if not math.isnan(mean := fmean(values))]
        best = (max if self._evaluator.isLargerBetter() else min)(means, default=None)
        name = f"best_{name_of(self._evaluator)}"
        self._progress.advance(kept=kept, metrics={} if best is None else {name: best})

    def _best(self, means: Mapping[int, float]) -> int:
        """Return the index of the best mean, the first of equal ones; a mean that is no number is never the best."""
        known = {number: mean for number, mean in means.items() if not math.isnan(mean)}
        if not known:
            msg = (
                f"got no number as {name_of(self._evaluator)} for any of {len(means)} parameter maps: look at the "
                "label and prediction columns of the evaluator, and at whether each fold holds every label"
            )
            raise NoMetricError(msg)
        pick = max if self._evaluator.isLargerBetter() else min
        return pick(known, key=lambda number: known[number])
