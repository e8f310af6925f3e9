"""The job that fits an MLlib pipeline: what to fit comes from a function, all else is data."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.frameworks.spark.ml.metrics import METRICS
from rallypoint.frameworks.spark.ml.tables import source_of
from rallypoint.spec.entry import Entry, Function
from rallypoint.spec.gang import has_macro
from rallypoint.spec.job import digest
from rallypoint.worker.storage_names import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, kw_only=True)
class SparkMLPipeline(SparkJob):
    """Fits what a function returns on one table, evaluates it on another, and saves the model.

    A retry fits only what no earlier attempt has fitted: see `frameworks.spark.ml.fit_pipeline`. The stage's result has
    the model's URI as ``model``, ``metrics``, what each cross-validation found (``validations``), and how many fits
    this attempt and earlier ones did (``fitted``, ``kept``).

    Args:
        entry: A function that returns a ``Pipeline``, a list of its stages, or another estimator such as a
            ``CrossValidator``. It gets the session through a parameter called ``spark`` if it has one.
        train: The table to fit on: its name, or a path or URI with a ``/``.
        test: The table to evaluate on.
        metrics: What to compute on it, such as ``["areaUnderROC"]``.
        label: The column of the true values.
        model: The name of the model's artifact.

    Raises:
        InvalidJobError: A value is wrong; the message says which, and what it takes.
    """

    kind: ClassVar[str] = "spark_ml"
    entries: ClassVar[tuple[type, ...]] = (Function,)  # a script calls `fit_pipeline` itself, in a SparkJob

    train: str
    test: str | None = None
    metrics: Sequence[str] = ()
    label: str = "label"
    model: str = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "test"):
            self._check_table(name, getattr(self, name))
        listed: object = self.metrics
        if not isinstance(listed, list | tuple) or any(name not in METRICS for name in listed):
            raise self.invalid("metrics", listed, f"a list of {', '.join(METRICS)}")
        if listed and self.test is None:
            raise self.invalid("test", None, "the table that metrics= are of")
        try:
            checked(self.model)
        except ValueError as error:
            raise self.invalid("model", self.model, f"a name for the artifact ({error})") from error

    def _check_table(self, name: str, given: object) -> None:
        expected = "a table's name such as 'sales.orders', or a path or URI such as '/data/orders'"
        if given is None and name == "test":
            return
        if not isinstance(given, str) or has_macro(given):
            raise self.invalid(name, given, expected)
        try:
            source_of(given)
        except ValueError as error:
            raise self.invalid(name, given, expected) from error

    @property
    def code(self) -> Entry:
        """The entry: the user's function, and the fit of what it returns."""
        entry = super().code
        if not isinstance(entry, Function):
            return entry
        options = {
            "test": self.test,
            "evaluators": tuple(self.metrics),
            "label": self.label,
            "name": self.model,
        }
        return replace(entry, call=_fitting(entry.call, self.train, options))

    def fingerprint(self) -> dict[str, str]:
        """Return what makes two attempts the same work: of a job with other tables nothing is kept."""
        values = {"train": self.train, "test": self.test, "model": self.model}
        return super().fingerprint() | {name: digest(value) for name, value in values.items()}


def _fitting(build: Callable[..., Any], train: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Return a function that fits what another returns, under that one's name."""

    def fit(*args: Any, spark: Any, **kwargs: Any) -> dict[str, Any]:
        from rallypoint.frameworks.spark.ml import fit_pipeline  # noqa: PLC0415 - the function travels by value

        parameters = inspect.signature(build).parameters
        if "spark" in parameters and "spark" not in kwargs:
            # Positional arguments fill the other parameters: whoever wrote the call did not count this one.
            places = [each.name for each in parameters.values() if each.name != "spark"]
            kwargs = {**dict(zip(places, args, strict=False)), **kwargs, "spark": spark}
            args = args[len(places) :]
        return fit_pipeline(spark, build(*args, **kwargs), train, **options).to_json()

    # Its module says whether the function travels by name or by value, and its name belongs to the fingerprint. It is
    # no wrapper by signature: `spark` is asked for whatever the other's parameters are.
    names = ("__module__", "__name__", "__qualname__", "__doc__")
    functools.update_wrapper(fit, build, assigned=names, updated=())
    del fit.__wrapped__  # type: ignore[attr-defined]  # update_wrapper has set it
    return fit
