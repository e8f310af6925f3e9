"""The rows that a cross-validation or a train-validation split trains and validates on, split as Spark itself does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Folds:
    """The splits of a ``CrossValidator`` (its folds) or a ``TrainValidationSplit`` (one).

    A fold column says which rows belong together, whatever computes them. Without one the split is by random numbers
    that Spark draws from the seed for each partition: equal seeds and equal partitions give equal splits, so the number
    of partitions is part of `identity`.

    Args:
        validator: The ``CrossValidator`` or ``TrainValidationSplit``.
        dataset: The rows.
    """

    def __init__(self, validator: Any, dataset: DataFrame) -> None:
        from pyspark.ml.tuning import CrossValidator
        from pyspark.sql import functions

        crossed = isinstance(validator, CrossValidator)
        self.count: int = validator.getNumFolds() if crossed else 1
        self._column: str = validator.getFoldCol() if crossed else ""
        self._ratio = None if crossed else validator.getTrainRatio()
        self._random = f"{validator.uid}_rand"
        self.identity: dict[str, Any] = {"folds": self.count, "column": self._column, "ratio": self._ratio}
        self._frame = (
            dataset if self._column else dataset.select("*", functions.rand(validator.getSeed()).alias(self._random))
        )
        # Once for all folds: every fold's rows are a part of the same.
        self._frame = self._frame.persist()
        if not self._column:
            rows = getattr(self._frame, "rdd", None)  # Spark Connect has none
            self.identity |= {"seed": validator.getSeed(), "partitions": rows.getNumPartitions() if rows else None}

    def check(self) -> None:
        """Make sure that the fold column holds the numbers of the folds.

        Raises:
            ValueError: It holds another value, or a fold is empty.
        """
        if not self._column:
            return
        found = sorted((row[0] for row in self._frame.select(self._column).distinct().collect()), key=str)
        if found != list(range(self.count)):
            shown = ", ".join(map(str, found[:10])) + (", …" if len(found) > 10 else "")  # noqa: PLR2004 - enough to see what is wrong
            msg = (
                f"got the values {shown} in the fold column {self._column!r}, expected each of 0 to {self.count - 1} "
                "and no other: correct the column, or numFolds="
            )
            raise ValueError(msg)

    def rows(self, number: int) -> tuple[DataFrame, DataFrame]:
        """Return the rows to train on and those to validate with.

        Args:
            number: The fold, from 0.
        """
        from pyspark.sql import functions

        if self._column:
            column = functions.col(self._column)
            return self._frame.filter(column != number), self._frame.filter(column == number)
        column = self._frame[self._random]
        if self._ratio is not None:
            held_out = column >= self._ratio
        else:
            share = 1.0 / self.count
            held_out = (column >= number * share) & (column < (number + 1) * share)
        return self._frame.filter(~held_out), self._frame.filter(held_out)

    def release(self) -> None:
        """Let the executors forget the rows."""
        self._frame.unpersist()
