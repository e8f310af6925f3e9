"""``@task.torch``, ``@task.dask`` and the like: a function of the DAG file as a distributed stage."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from rallypoint.airflow.operators import (
    DaskOperator,
    PythonJobOperator,
    RayJobOperator,
    RayTrainOperator,
    RayTuneOperator,
    SparkOperator,
    StageOperator,
    TensorFlowOperator,
    TorchElasticOperator,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence


class _DecoratedStage(DecoratedOperator, StageOperator):  # type: ignore[misc]  # one base may have no function
    """A stage whose entry is the decorated function."""

    template_fields: Sequence[str] = StageOperator.template_fields
    template_fields_renderers: ClassVar[dict[str, str]] = StageOperator.template_fields_renderers
    injected: ClassVar[tuple[str, ...]] = ()  # parameters that the driver fills in, not the caller

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        visible = _without(python_callable, self.injected)
        call: dict[str, Any] = {"python_callable": visible, "op_args": op_args, "op_kwargs": op_kwargs}
        super().__init__(**call, kwargs_to_upstream=call, **kwargs)

    def execute(self, context: Any) -> Any:
        """Run the stage; the function itself runs in the job, not here."""
        return StageOperator.execute(self, context)


class PythonJobDecoratedOperator(_DecoratedStage, PythonJobOperator):  # type: ignore[misc]  # as above
    """What ``@task.python_job`` makes."""

    custom_operator_name = "@task.python_job"


class TorchDecoratedOperator(_DecoratedStage, TorchElasticOperator):  # type: ignore[misc]  # as above
    """What ``@task.torch`` makes."""

    custom_operator_name = "@task.torch"


class RayDecoratedOperator(_DecoratedStage, RayJobOperator):  # type: ignore[misc]  # as above
    """What ``@task.ray`` makes."""

    custom_operator_name = "@task.ray"


class RayTrainDecoratedOperator(_DecoratedStage, RayTrainOperator):  # type: ignore[misc]  # as above
    """What ``@task.ray_train`` makes."""

    custom_operator_name = "@task.ray_train"


class RayTuneDecoratedOperator(_DecoratedStage, RayTuneOperator):  # type: ignore[misc]  # as above
    """What ``@task.ray_tune`` makes; the parameters of the space are filled in by each trial."""

    custom_operator_name = "@task.ray_tune"

    def __init__(self, *, space: Mapping[str, Any], python_callable: Callable[..., Any], **kwargs: Any) -> None:
        given: object = space  # what it is worth is for the job to say
        names = tuple(map(str, given)) if isinstance(given, Mapping) else ()
        super().__init__(space=space, python_callable=_without(python_callable, names), **kwargs)


class DaskDecoratedOperator(_DecoratedStage, DaskOperator):  # type: ignore[misc]  # as above
    """What ``@task.dask`` makes; a parameter called ``client`` is the connected client."""

    custom_operator_name = "@task.dask"
    injected = ("client",)


class SparkDecoratedOperator(_DecoratedStage, SparkOperator):  # type: ignore[misc]  # as above
    """What ``@task.spark`` makes; a parameter called ``spark`` is the session."""

    template_fields: Sequence[str] = SparkOperator.template_fields
    custom_operator_name = "@task.spark"
    injected = ("spark",)


class TensorFlowDecoratedOperator(_DecoratedStage, TensorFlowOperator):  # type: ignore[misc]  # as above
    """What ``@task.tensorflow`` makes; a parameter called ``strategy`` is the ready strategy."""

    custom_operator_name = "@task.tensorflow"
    injected = ("strategy",)


def _decorator(operator: type[_DecoratedStage], what: str) -> Callable[..., TaskDecorator]:
    def decorator(
        python_callable: Callable[..., Any] | None = None,
        multiple_outputs: bool | None = None,  # noqa: FBT001 - Airflow calls it by position
        **kwargs: Any,
    ) -> TaskDecorator:
        return task_decorator_factory(
            python_callable, multiple_outputs=multiple_outputs, decorated_operator_class=operator, **kwargs
        )

    decorator.__doc__ = f"""{what}

    Args:
        python_callable: The function.
        multiple_outputs: Whether to push each key of a returned dict as an XCom of its own.
        **kwargs: `{operator.__mro__[2].__name__}`'s.
    """
    return decorator


def _without(call: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return `call` as its callers see it: without the parameters that the driver fills in."""
    signature = inspect.signature(call)
    if not set(names) & set(signature.parameters):
        return call

    @functools.wraps(call)
    def visible(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    shown = [parameter for name, parameter in signature.parameters.items() if name not in names]
    visible.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    visible.__rallypoint_call__ = call  # type: ignore[attr-defined]
    return visible


python_job_task = _decorator(PythonJobDecoratedOperator, "Run a function in one Python process outside of the worker.")
torch_task = _decorator(
    TorchDecoratedOperator,
    "Run a function on every rank of an elastic PyTorch job; rank 0's return value is the result.",
)
ray_task = _decorator(RayDecoratedOperator, "Run a function with a connected Ray.")
ray_train_task = _decorator(
    RayTrainDecoratedOperator,
    "Run a function on every worker of Ray Train; what it returns on rank 0 is the result.",
)
ray_tune_task = _decorator(
    RayTuneDecoratedOperator,
    "Run a function once for each trial of Ray Tune, which fills in the parameters that are in `space`.",
)
dask_task = _decorator(DaskDecoratedOperator, "Run a function with a connected Dask client, which it gets as `client`.")
spark_task = _decorator(SparkDecoratedOperator, "Run a function with a Spark session, which it gets as `spark`.")
tensorflow_task = _decorator(
    TensorFlowDecoratedOperator,
    "Run a function under a strategy of tf.distribute, which it gets as `strategy`; rank 0's value is the result.",
)
