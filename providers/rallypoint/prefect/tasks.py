"""Tasks whose function runs in a job: ``@torch_task``, ``@dask_task`` and the like."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.tasks import Task
from prefect.utilities.callables import get_call_parameters

from rallypoint.errors import InvalidEntryError, InvalidJobError
from rallypoint.frameworks.dask.job import DaskJob
from rallypoint.frameworks.python.job import PythonJob
from rallypoint.frameworks.ray.job import RayJob
from rallypoint.frameworks.ray.train.job import RayTrain
from rallypoint.frameworks.ray.tune.job import RayTune
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.frameworks.tensorflow.job import TensorFlowJob
from rallypoint.frameworks.torch.job import TorchElastic
from rallypoint.prefect.options import StageOptions, sort_options
from rallypoint.prefect.retries import retry_condition
from rallypoint.prefect.secrets import check_references
from rallypoint.prefect.trying import Try, Wish
from rallypoint.prefect.waiting import Waiting
from rallypoint.spec.entry import Function, Script, canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from rallypoint.spec.job import Job

P = ParamSpec("P")
R = TypeVar("R")

# Options by which a user says what Prefect is to keep under which key; with a policy beside them it ignores the second.
_KEYS = ("cache_key_fn", "result_storage_key")
_FIXED = frozenset({"version", "on_commit", "on_rollback"})  # what `Task.with_options` does not take


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a call of a task becomes a stage; it travels with the task to task runners in other processes.

    Args:
        call: The user's function; None where the job is given whole.
        job_class: The job's class.
        injected: Parameters that the job's driver fills in, not the caller.
        fills: The option of the job whose keys are such parameters, too.
        job: The job's options; a whole job under ``""`` where there is no function.
        stage: The stage's options.
        stage_name: A template or function of the parameters; the task's name by default.
        assets: Keys of assets, which may hold ``{parameter}``.
        secrets: References to the job's secrets.
        mapped: Whether the inputs tell the calls of one name apart.
    """

    call: Callable[..., Any] | None
    job_class: type[Job]
    injected: tuple[str, ...] = ()
    fills: str = ""
    job: Mapping[str, Any] = field(default_factory=dict)
    stage: StageOptions = field(default_factory=StageOptions)
    stage_name: str | Callable[..., str] | None = None
    assets: tuple[Any, ...] = ()
    secrets: Mapping[str, Any] = field(default_factory=dict)
    mapped: bool = False

    def signature(self) -> inspect.Signature:
        """Return the parameters as callers see them: without those that the driver fills in."""
        if self.call is None:
            return inspect.Signature()
        signature = inspect.signature(self.call)
        hidden = {*self.injected, *self.job.get(self.fills, ())}
        shown = [parameter for name, parameter in signature.parameters.items() if name not in hidden]
        return signature.replace(parameters=shown)

    def make(self, parameters: Mapping[str, Any]) -> Job:
        """Return the job of one call, whose parameters have their defaults filled in."""
        if self.call is None:
            return cast("Job", self.job[""])
        return self.job_class(Function(self.call, *self._arguments(parameters), by_value=True), **self.job)

    def _arguments(self, parameters: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments under their names where they can have them: by these the log says what has changed."""
        signature = self.signature()
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        bound = inspect.BoundArguments(signature, cast("Any", dict(parameters)))
        if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}:
            return bound.args, bound.kwargs
        named = dict(parameters)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(named.pop(name, {}))
        return (), named

    def wish(self, parameters: Mapping[str, Any]) -> Wish:
        """Return what is to run for one call; its name is the running task's."""
        context = TaskRunContext.get()
        task = context.task.name if context else getattr(self.call, "__name__", self.job_class.kind)
        without_flow = context is not None and context.task_run.flow_run_id is None
        inputs = hashlib.sha256(canonical(dict(parameters))).hexdigest()[:12] if self.mapped or without_flow else ""
        return Wish(
            job=self.make(parameters),
            name=_named(self.stage_name, parameters) or task,
            inputs=inputs,
            options=self.stage,
            secrets=dict(self.secrets),
            assets=tuple(_filled(asset, parameters) for asset in self.assets),
        )


class StageTask(Task[P, R]):
    """A Prefect task whose function runs in a job, as a stage that a retry continues.

    Call it, ``.submit()`` it, ``.map()`` it as any task; ``await task.aio(…)`` runs it in an async flow without
    blocking the flow's event loop.

    Args:
        recipe: How a call becomes a stage.
        asynchronous: Whether a call returns a coroutine.
        **options: Prefect's task options.
    """

    def __init__(self, recipe: Recipe, *, asynchronous: bool = False, **options: Any) -> None:
        self.recipe = recipe
        super().__init__(fn=_body(recipe, asynchronous=asynchronous), **{**_defaults(options), **options})

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task in an async flow and return its result."""
        return await cast("Coroutine[Any, Any, R]", self.asynchronous()(*args, **kwargs))

    def asynchronous(self) -> StageTask[P, R]:
        """Return the same task whose call is awaited."""
        return self._with(self.recipe, asynchronous=True)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Return the job that a call would run, for ``job.plan()`` and tests; its secrets are left out."""
        return self.recipe.make(get_call_parameters(self.fn, args, kwargs))

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """Map the task over iterables, as any Prefect task; each combination of inputs is a stage of its own.

        A retry finds a mapped stage by its inputs, so an upstream list may come in another order. Equal inputs twice
        are an error: give them a further argument that differs, such as a seed.
        """
        return super(StageTask, self._with(replace(self.recipe, mapped=True))).map(*args, **kwargs)

    def with_options(self, **options: Any) -> StageTask[P, R]:
        """Return a copy of the task with other options: of Prefect's task, of the job or of the stage."""
        found = sort_options(self.recipe.job_class, options)
        if found.job and self.recipe.call is None:
            name = next(iter(found.job))
            expected = "an option of the task or stage: the job was given whole"
            raise InvalidJobError(self.recipe.job_class.__name__, name, got=found.job[name], expected=expected)
        recipe = replace(
            self.recipe,
            job={**self.recipe.job, **found.job},
            stage=replace(self.recipe.stage, **found.stage),
            **_own(found.own),
        )
        _check(recipe)
        if self.cache_policy == NO_CACHE and found.task.get("result_storage_key"):
            found.task.setdefault("cache_policy", None)
        return self._with(recipe, **found.task)

    def _with(self, recipe: Recipe, *, asynchronous: bool | None = None, **options: Any) -> StageTask[P, R]:
        """Return a copy; Prefect's own method makes a plain `Task` of the options, whose settings are taken over."""
        fixed = {name: options.pop(name) for name in _FIXED & options.keys()}  # only the constructor takes them
        plain = Task.with_options(self, **options)
        twin = copy.copy(self)
        twin.__dict__.update(plain.__dict__)
        twin.version = fixed.get("version", self.version)
        twin.on_commit_hooks = list(fixed.get("on_commit", self.on_commit_hooks))
        twin.on_rollback_hooks = list(fixed.get("on_rollback", self.on_rollback_hooks))
        twin.recipe = recipe
        twin.isasync = self.isasync if asynchronous is None else asynchronous
        twin.fn = _body(recipe, asynchronous=twin.isasync)
        return twin


class StageDecorator:
    """Makes a function a `StageTask`, with and without options.

    Args:
        job_class: The job that the function runs in.
        injected: Parameters of the function that the job's driver fills in, such as a connected ``client``.
        fills: The option of the job whose keys are such parameters, too, such as the ``space`` of a search.
    """

    def __init__(self, job_class: type[Job], *, injected: tuple[str, ...] = (), fills: str = "") -> None:
        self._job_class = job_class
        self._injected = injected
        self._fills = fills
        self.__doc__ = (
            f"Run a function as a stage in a `{job_class.__name__}` job. Takes its options, those of Prefect's task "
            "(``name``, ``retries``, ``timeout_seconds``, …), those of `StageOptions`, and ``stage_name``, ``assets``, "
            "``secrets``."
        )

    @overload
    def __call__(self, call: Callable[P, R], /) -> StageTask[P, R]: ...

    @overload
    def __call__(self, /, **options: Any) -> Callable[[Callable[P, R]], StageTask[P, R]]: ...

    def __call__(self, call: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Return the task, or a decorator if only options are given.

        Raises:
            InvalidJobError: An option is not known, or its value is wrong.
            InvalidEntryError: The function is asynchronous.
        """
        if call is None:
            return functools.partial(self, **options)
        if inspect.iscoroutinefunction(call) or inspect.isgeneratorfunction(call):
            msg = (
                f"got {call!r} for a {self._job_class.__name__} task, expected a plain function: it runs in the job, "
                "not in the flow; in an async flow write 'await task.aio(…)'"
            )
            raise InvalidEntryError(msg)
        found = sort_options(self._job_class, options)
        recipe = Recipe(
            call=call,
            job_class=self._job_class,
            injected=self._injected,
            fills=self._fills,
            job=found.job,
            stage=StageOptions(**found.stage),
            **_own(found.own),
        )
        _check(recipe)
        return StageTask(recipe, **found.task)


def stage_task(job: Job, *, name: str, **options: Any) -> StageTask[[], Any]:
    """Return a task without parameters that runs a job: a script or module as a node of the flow.

    Args:
        job: The job.
        name: The task's name, which is the stage's too.
        **options: Those of Prefect's task and of `StageOptions`, and ``stage_name``, ``assets``, ``secrets``.

    Raises:
        InvalidJobError: An option is not known, or its value is wrong.
    """
    found = sort_options(type(job), options)
    if found.job:
        given = next(iter(found.job))
        raise InvalidJobError(
            type(job).__name__, given, got=found.job[given], expected="it in the job itself, which is given whole"
        )
    recipe = Recipe(call=None, job_class=type(job), job={"": job}, stage=StageOptions(**found.stage), **_own(found.own))
    _check(recipe)
    return StageTask(recipe, name=name, **found.task)


python_task = StageDecorator(PythonJob)
torch_task = StageDecorator(TorchElastic)
dask_task = StageDecorator(DaskJob, injected=("client",))
ray_task = StageDecorator(RayJob)
ray_train_task = StageDecorator(RayTrain)
ray_tune_task = StageDecorator(RayTune, fills="space")
spark_task = StageDecorator(SparkJob, injected=("spark",))
tensorflow_task = StageDecorator(TensorFlowJob, injected=("strategy",))


# How a call becomes a stage ------------------------------------------------------------------------------------------


def _defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of Prefect's task that a stage has unless it is given others.

    The ledger knows what succeeded, also where Prefect's result storage is gone. A result from Prefect's cache would
    announce no asset, and two equal calls would be one.
    """
    defaults: dict[str, Any] = {"retry_condition_fn": retry_condition}
    keyed = any(options.get(name) is not None for name in _KEYS)
    return defaults if keyed else {"cache_policy": NO_CACHE, **defaults}


def _body(recipe: Recipe, *, asynchronous: bool) -> Callable[..., Any]:
    """Return what Prefect calls: it has the user's signature and runs nothing of the user's code."""

    def run(*args: Any, **kwargs: Any) -> Any:
        attempt = Try(recipe.wish(get_call_parameters(visible, args, kwargs)))
        return Waiting(attempt.run, attempt.interrupt).wait()

    async def arun(*args: Any, **kwargs: Any) -> Any:
        attempt = Try(recipe.wish(get_call_parameters(visible, args, kwargs)))
        return await Waiting(attempt.run, attempt.interrupt).wait_async()

    visible: Any = arun if asynchronous else run
    if recipe.call is not None:
        functools.update_wrapper(visible, recipe.call)
    else:
        visible.__name__ = visible.__qualname__ = recipe.job_class.kind
        visible.__doc__ = cast("Job", recipe.job[""]).code.identity
    visible.__signature__ = recipe.signature()
    return cast("Callable[..., Any]", visible)


def _own(own: Mapping[str, Any]) -> dict[str, Any]:
    assets = own.get("assets", ())
    listed = {"assets": (assets,) if isinstance(assets, str) else tuple(assets)} if "assets" in own else {}
    return {**own, **listed}


def _check(recipe: Recipe) -> None:
    """Raise for what is wrong already, where the task is made."""
    check_references(recipe.secrets)
    if recipe.call is not None:
        recipe.job_class(Script("checked-later.py"), **recipe.job)


def _named(template: str | Callable[..., str] | None, parameters: Mapping[str, Any]) -> str:
    if template is None:
        return ""
    return template.format(**parameters) if isinstance(template, str) else str(template(**parameters))


def _filled(asset: Any, parameters: Mapping[str, Any]) -> Any:
    return asset.format(**parameters) if isinstance(asset, str) else asset
