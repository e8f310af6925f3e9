"""``@task.torch``, ``@task.dask`` and the like: a function of the DAG file as a distributed stage."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from rallypoint.airflow.operators import DaskOperator, StageOperator, TorchElasticOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence


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


class TorchDecoratedOperator(_DecoratedStage, TorchElasticOperator):  # type: ignore[misc]  # as above
    """What ``@task.torch`` makes."""

    custom_operator_name = "@task.torch"


class DaskDecoratedOperator(_DecoratedStage, DaskOperator):  # type: ignore[misc]  # as above
    """What ``@task.dask`` makes; a parameter called ``client`` is the connected client."""

    custom_operator_name = "@task.dask"
    injected = ("client",)


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


torch_task = _decorator(
    TorchDecoratedOperator,
    "Run a function on every rank of an elastic PyTorch job; rank 0's return value is the result.",
)
dask_task = _decorator(DaskDecoratedOperator, "Run a function with a connected Dask client, which it gets as `client`.")
