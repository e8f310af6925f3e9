"""The third stage: holds the network against a logistic regression on flights that neither has seen.

Both get the same features of the same rows. The regression is what the network has to be better than to be worth its
training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rallypoint
from rallypoint.examples.flights.data import read_partitions, read_training_rows
from rallypoint.examples.flights.features import TARGET
from rallypoint.examples.flights.model import SavedModel
from rallypoint.examples.flights.training import MODEL

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from rallypoint.examples.flights.encoding import Encoder


def evaluate(model_uri: str, train_uri: str, test_uri: str, margin: float = 0.005) -> dict[str, Any]:
    """Compare the model with the baseline on the test months.

    Args:
        model_uri: The artifact that `train` saved.
        train_uri: The folder of the training months, to fit the baseline on.
        test_uri: The folder of the test months.
        margin: How far below the baseline's ROC-AUC the model's may be.

    Returns:
        ``model`` and ``baseline`` with ``roc_auc``, ``log_loss`` and ``brier`` each, the number of test ``rows`` and
        their ``late_share``, and ``passed``, which is True.

    Raises:
        ValueError: The model's ROC-AUC is below the baseline's by more than the margin.
    """
    saved = SavedModel.load(model_uri)
    fitted, _ = read_training_rows(train_uri)  # the rows that the model's weights were fitted on
    test = read_partitions(test_uri)
    late = test[TARGET].to_numpy()
    model = scores(late, saved.predict(test))
    baseline = scores(late, logistic_regression(fitted, test, saved.encoder))
    rallypoint.stage().report(roc_auc=model["roc_auc"], baseline_roc_auc=baseline["roc_auc"])
    for name, values in (("model", model), ("baseline", baseline)):
        print(f"{name:8}", "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))  # noqa: T201 - the log
    if model["roc_auc"] < baseline["roc_auc"] - margin:
        msg = (
            f"the model's ROC-AUC {model['roc_auc']:.3f} is below the baseline's {baseline['roc_auc']:.3f} minus "
            f"{margin:g} on {len(late):,} test flights, expected at least {baseline['roc_auc'] - margin:.3f}; train "
            "longer, or on more rows"
        )
        raise ValueError(msg)
    return {
        "model": model,
        "baseline": baseline,
        "rows": len(late),
        "late_share": round(float(late.mean()), 4),
        "passed": True,
    }


def better(trained: dict[str, Any], tuned: dict[str, Any]) -> str:
    """Return the URI of the model with the higher ROC-AUC on the days that neither was trained on.

    Args:
        trained: What `train` returned.
        tuned: What the tuning of `train` returned: its best trial's ``metrics`` and ``checkpoint``.
    """
    if tuned["metrics"]["val_auc"] > trained["val_auc"]:
        return f"{tuned['checkpoint']}/{MODEL}"
    return str(trained["model"])


def logistic_regression(train: pd.DataFrame, test: pd.DataFrame, encoder: Encoder) -> np.ndarray[Any, Any]:
    """Fit a logistic regression and return its probabilities for the test rows, of shape (rows,).

    Args:
        train: Rows to fit on.
        test: Rows to predict.
        encoder: Gives the categorical features, which become one column a value, and the standardised numbers.
    """
    import numpy as np
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    features = len(encoder.cardinalities)
    one_hot = OneHotEncoder(categories=[range(size) for size in encoder.cardinalities], dtype="float32")
    columns = make_column_transformer((one_hot, slice(0, features)), remainder="passthrough", sparse_threshold=1)
    regression = make_pipeline(columns, LogisticRegression(C=0.5, max_iter=300))
    regression.fit(np.hstack(encoder.encode(train)), train[TARGET].to_numpy())
    probability: np.ndarray[Any, Any] = regression.predict_proba(np.hstack(encoder.encode(test)))[:, 1]
    return probability


def scores(late: np.ndarray[Any, Any], probability: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return ``roc_auc``, ``log_loss`` and ``brier``.

    Args:
        late: 0 or 1, of shape (rows,).
        probability: Of being late, of shape (rows,).
    """
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    return {
        "roc_auc": round(float(roc_auc_score(late, probability)), 4),
        "log_loss": round(float(log_loss(late, probability)), 4),
        "brier": round(float(brier_score_loss(late, probability)), 4),
    }
