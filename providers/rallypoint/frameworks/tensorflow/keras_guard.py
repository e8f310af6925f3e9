"""Says at once what of Keras 3 does not work with several workers, instead of a page about PerReplica values.

With `MultiWorkerMirroredStrategy`, ``fit``, ``evaluate`` and ``train_on_batch`` of Keras 3 fail on distributed values
in the middle of a step ("unsupported type PerReplica"); a custom loop works, and so does Keras 2 (``tf_keras``).
"""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_METHODS = ("fit", "evaluate", "train_on_batch", "test_on_batch")


class KerasFitError(RuntimeError):
    """A method of Keras 3 that does not work with several workers."""


def install(settings: Mapping[str, Any]) -> None:
    """Guard the methods, if this job is one where they do not work."""
    affected = settings["strategy"] == "multi_worker_mirrored" and settings["keras"] == "3"
    if not affected or len(settings["ranks"]) < 2 or find_spec("keras") is None:  # noqa: PLR2004 - several
        return
    model = importlib.import_module("keras").Model
    for name in _METHODS:
        owner = next((each for each in model.__mro__ if name in vars(each)), None)
        if owner is not None:
            setattr(owner, name, _guarded(vars(owner)[name], name))


def _guarded(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(model: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_multi_worker(getattr(model, "distribute_strategy", None)):
            msg = (
                f"Model.{name}() of Keras 3 does not work with MultiWorkerMirroredStrategy; use "
                'TensorFlowJob(keras="legacy"), which is Keras 2 (pip install tf-keras), or write the loop with '
                'strategy.run(), or take strategy="mirrored" on one host'
            )
            raise KerasFitError(msg)
        return method(model, *args, **kwargs)

    return guarded


def _is_multi_worker(strategy: object) -> bool:
    # The class behind `tf.distribute.MultiWorkerMirroredStrategy` and its older experimental name.
    return any(each.__name__ == "CollectiveAllReduceStrategy" for each in type(strategy).__mro__)
