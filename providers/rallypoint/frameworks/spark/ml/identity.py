"""What a fit is, told in the same way by every process: the name under which its result is kept.

Spark names each instance at random (``LogisticRegression_3f2a…``), and the name stands in its parameters too: a column
that was not named is ``StringIndexer_3f2a…__output``. Here an instance goes by its class and its place in the pipeline.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyspark.ml.param import Params

# How a split is computed, not what comes of it; the folds and the parameter maps stand in the name of each fit.
_NOT_IDENTITY = {"parallelism", "collectSubModels"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SEED = "seed"


def pinned(instance: Any) -> Any:
    """Return a copy of an estimator in which every random seed has a value that is the same in each process.

    Spark's own default is the hash of the class's name, which Python salts anew in every process: without this, a
    retry would split and fit in another way. A seed that was set stays.

    Args:
        instance: An estimator, transformer or evaluator, with what it is made of.
    """
    copied = instance.copy()
    if copied.hasParam(_SEED) and not copied.isSet(copied.getParam(_SEED)):
        copied.set(copied.getParam(_SEED), zlib.crc32(type(copied).__name__.encode()) & 0x7FFFFFFF)
    for param in copied.params:
        if copied.isSet(param):
            value = copied.getOrDefault(param)
            replaced = _pinned_value(value)
            if replaced is not value:
                copied.set(param, replaced)
    return copied


def _pinned_value(value: Any) -> Any:
    """Return a parameter's value with its instances pinned; the same object where it holds none."""
    if _is_estimator(value):
        return pinned(value)
    if isinstance(value, list | tuple) and any(_is_estimator(each) for each in value):
        return [pinned(each) if _is_estimator(each) else each for each in value]
    if isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value):  # parameter maps
        return [{param: _pinned_value(inner) for param, inner in each.items()} for each in value]
    return value


class Naming:
    """Names that do not change between processes.

    Args:
        root: The estimator that is fitted, and all that it is made of.
    """

    def __init__(self, root: Params) -> None:
        self._names: dict[str, str] = {}
        for number, instance in enumerate(_instances(root)):
            # A fitted model is more than its parameters: only its own name tells it from another.
            if not _is_model(instance):
                self._names.setdefault(instance.uid, f"{type(instance).__name__}#{number}")
        uids = sorted(self._names, key=len, reverse=True)
        self._uids = re.compile("|".join(map(re.escape, uids))) if uids else None

    def digest(self, *parts: Any) -> str:
        """Return a short name of values that is different for different ones."""
        text = json.dumps([self.describe(part) for part in parts], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def describe(self, value: Any) -> Any:
        """Return a value as JSON that is equal in every process.

        Args:
            value: An instance with parameters, a parameter map, or any value of a parameter. What an instance of the
                user's own class holds beside its parameters is not looked at.
        """
        if _is_instance(value):
            return {
                "class": type(value).__qualname__,
                "name": self._stable(value.uid),
                "params": {
                    param.name: self.describe(value.getOrDefault(param))
                    for param in value.params
                    if value.isDefined(param) and param.name not in _NOT_IDENTITY
                },
            }
        if isinstance(value, dict):
            return [[self._key(key), self.describe(value[key])] for key in sorted(value, key=self._key)]
        if isinstance(value, list | tuple):
            return [self.describe(each) for each in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        if hasattr(value, "toArray"):  # vectors and matrices, whose text leaves numbers out
            return self.describe(value.toArray().tolist())
        return self._stable(value if isinstance(value, str) else _ADDRESS.sub("", repr(value)))

    def _key(self, key: Any) -> str:
        parent = getattr(key, "parent", None)
        return f"{self._stable(parent)}.{key.name}" if parent else str(key)

    def _stable(self, text: str) -> str:
        return self._uids.sub(lambda match: self._names[match[0]], text) if self._uids else text


def readable(param_map: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a parameter map for people: ``{"LogisticRegression.regParam": 0.1}``."""
    return {
        f"{str(param.parent).rpartition('_')[0] or param.parent}.{param.name}": value
        if isinstance(value, str | int | float | bool)
        else _readable(value)
        for param, value in param_map.items()
    }


def adopt(fitted: Any, estimator: Any) -> Any:
    """Give a model that was read from the store the parameters of the estimator that would be fitted now.

    They have the same name here, so they are the same but for columns that Spark named at random.
    """
    for param in estimator.params:
        if not estimator.isDefined(param) or not fitted.hasParam(param.name):
            continue
        own, value = fitted.getParam(param.name), estimator.getOrDefault(param)
        if not _holds_names(value) or (fitted.isDefined(own) and fitted.getOrDefault(own) == value):
            continue
        if estimator.isSet(param):
            fitted.set(own, value)
        else:
            # A default stays one: Spark refuses an output column that is set beside several input columns.
            fitted._setDefault(**{param.name: value})  # noqa: SLF001 - Spark has no other way
    return fitted


def _holds_names(value: object) -> bool:
    """Return whether a parameter's value may name a column."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _readable(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_readable(each) for each in value) + "]"
    return type(value).__name__ if _is_instance(value) else str(value)


def _instances(value: Any) -> Iterator[Any]:
    """Yield the instances in a value, those that they are made of after them, always in the same order."""
    if _is_instance(value):
        yield value
        for param in sorted(value.params, key=lambda each: str(each.name)):
            if value.isDefined(param):
                yield from _instances(value.getOrDefault(param))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _instances(each)
    elif isinstance(value, dict):
        for key in sorted(value, key=lambda each: str(getattr(each, "name", each))):
            yield from _instances(value[key])


def _is_instance(value: Any) -> bool:
    from pyspark.ml.param import Params

    return isinstance(value, Params)


def _is_estimator(value: Any) -> bool:
    from pyspark.ml import Estimator

    return isinstance(value, Estimator)


def _is_model(value: Any) -> bool:
    from pyspark.ml import Model

    return isinstance(value, Model)
