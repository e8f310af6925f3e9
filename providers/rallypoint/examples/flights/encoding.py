"""Turns columns into the numbers that a network takes, by what the training rows held.

Vocabularies, means and deviations come from the training rows alone, are kept in every checkpoint and travel with the
model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rallypoint.examples.flights.features import CATEGORICAL, NUMERIC

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

UNSEEN = 0  # the code of a value that the training rows did not hold, or too rarely
_FARTHEST = 5.0  # deviations from the mean; what lies beyond is a rare event or an error of the sensor


@dataclass(frozen=True)
class Encoder:
    """What the training rows held.

    Args:
        vocabularies: For each categorical feature its values; the code of one is its index plus 1.
        means: The mean of each numeric feature.
        deviations: The standard deviation of each numeric feature, 1 for one that never changes.
    """

    vocabularies: dict[str, list[str]]
    means: dict[str, float]
    deviations: dict[str, float]

    @classmethod
    def fit(cls, frame: pd.DataFrame, *, least: int = 30) -> Encoder:
        """Collect vocabularies and statistics.

        Args:
            frame: The training rows, with the columns of `CATEGORICAL` and `NUMERIC`.
            least: How many rows must hold a value for it to get a code of its own.
        """
        vocabularies = {}
        for name, parts in CATEGORICAL.items():
            codes, values = _factorised(frame, parts)
            vocabularies[name] = sorted(
                value for value, count in zip(values, _counts(codes), strict=True) if count >= least
            )
        numbers = frame[list(NUMERIC)].astype("float64")
        deviations = numbers.std().where(lambda each: each > 0, 1.0).fillna(1.0)
        return cls(
            vocabularies,
            {name: float(value) for name, value in numbers.mean().fillna(0.0).items()},
            {name: float(value) for name, value in deviations.items()},
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Encoder:
        """Return the encoder that `to_json` described."""
        return cls(value["vocabularies"], value["means"], value["deviations"])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, for checkpoints and the model's config."""
        return asdict(self)

    @property
    def cardinalities(self) -> list[int]:
        """How many codes each categorical feature has, the one for unseen values included."""
        return [len(values) + 1 for values in self.vocabularies.values()]

    def encode(self, frame: pd.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the rows as numbers.

        Args:
            frame: Any rows, with the columns of `CATEGORICAL` and `NUMERIC`.

        Returns:
            Codes, int64 of shape (rows, categorical features), and numbers, float32 of shape (rows, numeric features):
            standardised, at most 5 deviations from 0, and 0 (the mean) where the value is missing.
        """
        import numpy as np
        import pandas as pd

        columns = []
        for name, seen in self.vocabularies.items():
            codes, values = _factorised(frame, CATEGORICAL[name])
            known = {value: code for code, value in enumerate(seen, start=UNSEEN + 1)}
            columns.append(np.array([known.get(value, UNSEEN) for value in values], dtype="int64")[codes])
        names = list(self.means)
        numbers = (frame[names] - pd.Series(self.means)) / pd.Series(self.deviations)
        numbers = numbers.clip(-_FARTHEST, _FARTHEST).fillna(0.0)
        return np.stack(columns, axis=1), numbers.to_numpy(dtype="float32")


def _factorised(frame: pd.DataFrame, parts: tuple[str, ...]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return what the columns say together: an index a row, and the values that it points to.

    A missing value is a value of its own. Values are joined once each, not once a row, which would take seconds.
    """
    import pandas as pd

    index, values = _factorised_column(frame[parts[0]])
    for part in parts[1:]:
        other, names = _factorised_column(frame[part])
        index, pairs = pd.factorize(index * len(names) + other)
        values = [f"{values[pair // len(names)]}|{names[pair % len(names)]}" for pair in pairs]
    return index, values


def _factorised_column(column: pd.Series[Any]) -> tuple[np.ndarray[Any, Any], list[str]]:
    import pandas as pd

    index, values = pd.factorize(column, use_na_sentinel=False)
    return index, ["?" if pd.isna(value) else str(value) for value in values]


def _counts(index: np.ndarray[Any, Any]) -> list[int]:
    import numpy as np

    counts: list[int] = np.bincount(index).tolist()
    return counts
