"""What every operator is: a job that runs as a stage, launched once, watched, continued by a retry."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import Asset, BaseOperator, BaseOperatorLink, conf
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout, TaskDeferralTimeout

from rallypoint.airflow.hooks import RallypointHook
from rallypoint.airflow.links import StageLink
from rallypoint.airflow.place import DEFAULT_CONN_ID, check_references, resolve_secrets
from rallypoint.airflow.rendering import is_jinja, rendered_object, without_templates
from rallypoint.airflow.retries import StageRetryPolicy
from rallypoint.airflow.triggers import StageTrigger
from rallypoint.errors import InvalidEntryError, InvalidJobError, LaunchError, StageUserError, StoreError
from rallypoint.spec.entry import Entry, Function, Module, Script
from rallypoint.spec.job import DEFAULT_STALL_TIMEOUT, Job
from rallypoint.spec.resources import Resources
from rallypoint.stages.attempt import Attempt, Request
from rallypoint.stages.key import StageKey
from rallypoint.stages.news import Narrator
from rallypoint.stages.rule import Resume

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import jinja2
    from airflow.sdk import Context

    from rallypoint.spec.failure import FailureRule
    from rallypoint.stages.place import Place

ATTEMPT_KEY = "rallypoint_attempt"  # the XCom that names the attempt, there from its start
_KILL_WAIT = 4.0  # seconds; Airflow kills the process 5 s after it has asked
_BACKSTOP = timedelta(minutes=2)  # the trigger enforces the timeout itself; this is for one that is stuck


class StageOperator(BaseOperator):
    """Runs a job as a stage; a retry continues it, and nothing ever runs twice.

    Failures that a retry cannot help end the task at once (`AirflowFailException`); others follow ``retries``, with a
    back-off that fits the cause (`rallypoint.airflow.retries.StageRetryPolicy`, unless there is a ``retry_policy=``).

    Give the code in one of three ways: `script`, `module`, or `python_callable`.

    Args:
        script: A Python script; a relative path is taken from the DAG file's folder.
        module: A Python module of the job's Python.
        args: The arguments of the script or module.
        python_callable: A Python function; it travels to the job and nothing comes back but JSON.
        op_args: The function's positional arguments.
        op_kwargs: The function's keyword arguments.
        job_params: JSON values that the code reads with ``rallypoint.stage().params``.
        env: Environment variables of the job. They are shown in the UI: secrets go into `secrets`.
        secrets: Environment variables by reference: ``variable:NAME``, ``connection:ID`` or ``env:NAME``.
        python: The job's interpreter, where it is not the connection's. Nothing of Rallypoint or Airflow has to be
            installed there.
        job_resources: What each process of the job asks of its host.
        keep_checkpoints: How many checkpoints to keep.
        stall_timeout: Seconds without an event or a line of output from any process after which the job counts as
            hung, and is ended and retried. None waits for ever.
        failure_rules: What failures of this job mean, before Rallypoint's own table is asked.
        uses: The results of the set-up tasks of the services that this job uses, such as a `RayClusterOperator`'s. They
            live on while this task waits for its job.
        resume: When a retry may use earlier checkpoints: ``"if_same_work"``, ``"always"`` or ``"never"``.
        rallypoint_conn_id: The connection of store and launcher. The default one need not exist.
        launcher_conn_id: A connection that says where this task's job runs instead, such as one of the type ``ray`` or
            ``ssh``. A run's conf may choose it: ``"{{ params.launcher or '' }}"``.
        poll_interval: Seconds between looks at the job.
        deferrable: Whether to wait in the triggerer, without a worker slot.

    Returns:
        The entry's JSON result, as XCom; also when another try than the one that launched the job delivers it.
    """

    job_class: ClassVar[type[Job]]
    ways: ClassVar[tuple[str, ...]] = ("script", "module", "python_callable")  # to give the code

    template_fields: Sequence[str] = (
        "script", "module", "args", "op_args", "op_kwargs", "job_params", "env", "python", "uses",
        "job_options", "launcher_conn_id",
    )  # fmt: skip
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "args": "py", "op_args": "py", "op_kwargs": "py", "job_params": "json", "env": "json", "job_options": "json",
    }  # fmt: skip
    operator_extra_links: Collection[BaseOperatorLink] = (StageLink(),)
    shallow_copy_attrs: Sequence[str] = ("python_callable",)
    ui_color = "#dbe7f6"

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        script: str | None = None,
        module: str | None = None,
        args: Sequence[Any] | None = None,
        python_callable: Callable[..., Any] | None = None,
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        job_params: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        python: str | None = None,
        job_resources: Resources | None = None,
        keep_checkpoints: int = 3,
        stall_timeout: float | None = DEFAULT_STALL_TIMEOUT,
        failure_rules: Sequence[FailureRule] = (),
        uses: Sequence[Any] = (),
        resume: str = Resume.IF_SAME_WORK.value,
        rallypoint_conn_id: str = DEFAULT_CONN_ID,
        launcher_conn_id: str | None = None,
        poll_interval: float = 1.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        job_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"retry_policy": StageRetryPolicy(), **kwargs})
        self.script = script
        self.module = module
        self.args = args or []
        self.python_callable = python_callable
        self.op_args = op_args or []
        self.op_kwargs = op_kwargs or {}
        self.job_params = job_params or {}
        self.env = env or {}
        self.secrets = secrets or {}
        self.python = python
        self.job_resources = job_resources or Resources()
        self.keep_checkpoints = keep_checkpoints
        self.stall_timeout = stall_timeout
        self.failure_rules = failure_rules
        self.uses = uses
        self.resume = resume
        self.rallypoint_conn_id = rallypoint_conn_id
        self.launcher_conn_id = launcher_conn_id
        self.poll_interval = poll_interval
        self.deferrable = deferrable
        self.job_options = job_options or {}
        self.runs_on: str | None = None  # the launcher's URI, known while the task runs
        self._running: tuple[Place, StageKey, Attempt, str] | None = None
        self._check()

    # What a DAG file's reader is told ----------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise for what is wrong already, while the DAG file is read; templates are left for later."""
        name = type(self).__name__
        given = [way for way in self.ways if getattr(self, way) is not None]
        if len(given) != 1:
            expected = f"exactly one of {'=, '.join(self.ways[:-1])}= and {self.ways[-1]}="
            raise InvalidJobError(name, "script", got=given or None, expected=expected)
        if self.resume not in {choice.value for choice in Resume}:
            expected = " or ".join(repr(choice.value) for choice in Resume)
            raise InvalidJobError(name, "resume", got=self.resume, expected=expected)
        if self.poll_interval <= 0:
            raise InvalidJobError(name, "poll_interval", got=self.poll_interval, expected="seconds above 0")
        check_references(self.secrets)
        self._check_job(without_templates(self.job_options), without_templates(self.env))

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        self.job_class(
            Script("checked-later.py"),
            keep_checkpoints=self.keep_checkpoints,
            stall_timeout=self.stall_timeout,
            env=env,
            **options,
        )

    def job(self) -> Job:
        """Return the job, from the rendered fields.

        Raises:
            InvalidJobError: A rendered value is wrong.
        """
        return self.job_class(
            self._entry(),
            params=self.job_params,
            env={key: str(value) for key, value in self.env.items()},
            secrets=resolve_secrets(self.secrets),
            python=self.python,
            resources=self.job_resources,
            keep_checkpoints=self.keep_checkpoints,
            stall_timeout=self.stall_timeout,
            failure_rules=self.failure_rules,
            uses=[rendered_object(each) for each in self.uses],
            **self.job_options,
        )

    def _entry(self) -> Entry:
        words = tuple(str(arg) for arg in self.args)
        if self.script is not None:
            return Script(str(Path(self.dag.fileloc).parent / self.script), words)
        if self.module is not None:
            return Module(self.module, words)
        call = getattr(self.python_callable, "__rallypoint_call__", self.python_callable)
        if call is None:
            msg = f"{self.task_id} has no python_callable; give it one, or a script= or module="
            raise InvalidEntryError(msg)
        args, kwargs = _by_name(self.python_callable, self.op_args, self.op_kwargs)
        return Function(call, args, kwargs)

    # Life of a try -------------------------------------------------------------------------------------------------

    def execute(self, context: Context) -> Any:
        """Launch the stage, reattach to it, or return what it returned before."""
        ti = context["ti"]
        key = stage_key(ti)
        place = self._place()
        request = Request(owner=str(ti.id), marker=ti.max_tries, resume=Resume(self.resume))
        try:
            started = asyncio.run(place.engine(key).start(self.job(), request))
        except (InvalidJobError, InvalidEntryError) as error:
            raise AirflowFailException(str(error)) from error
        except StageUserError as error:
            raise self._failed(error) from error
        attempt = started.attempt
        self._running = (place, key, attempt, request.owner)
        narrator = Narrator()
        for news in narrator.opening(started, key.text):
            self.log.info("%s", news)
        ti.xcom_push(key=ATTEMPT_KEY, value={
            "attempt": attempt.record.id, "number": attempt.record.number, "stage": key.text, "store": place.store,
        })  # fmt: skip
        # Airflow pushes links when a task ends; this one is for watching, so it is there from the start.
        for link in self.operator_extra_links:
            ti.xcom_push(key=link.xcom_key, value=link.get_link(self, ti_key=ti))  # type: ignore[arg-type]  # as Airflow does
        if attempt.outcome is None and self.deferrable:
            self._defer(context, place, key, attempt, request.owner)
        return self._finish(context, asyncio.run(self._watch(place, key, attempt, narrator)))

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Deliver the result of an attempt that the trigger saw end."""
        place = self._place()
        ti = context["ti"]
        key = stage_key(ti)
        engine = place.engine(key)
        mine = asyncio.run(engine.owned(str(ti.id)))
        if mine and mine.record.number != event["attempt"]:
            # On SQLite Airflow gives the id of a deleted trigger to the next one: an older try's trigger, which is
            # still being ended, then speaks for this try.
            self.log.info("attempt %s was not ours: waiting for %s", event["attempt"], mine.record.id)
            self._defer(context, place, key, mine, str(ti.id))
        if event["what"] == "timeout":
            msg = f"{event['message']} ({self.execution_timeout}): the job was stopped; a retry continues it"
            raise AirflowTaskTimeout(msg)
        if event["what"] == "unreachable":
            raise RuntimeError(event["message"])
        return self._finish(context, asyncio.run(engine.read(event["attempt"])))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral; a deferral that timed out stops the job first, since nothing else would."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            place = self._place()
            engine = place.engine(stage_key(context["ti"]))
            asyncio.run(_cancel_last(engine, "the task's deferral timed out"))
            raise

    def on_kill(self) -> None:
        """Stop the job when the task is cleared, marked or timed out while it runs."""
        if self._running is None:
            return
        place, key, attempt, owner = self._running
        why = "the task was cleared, marked or timed out in Airflow"

        def cancel() -> None:
            asyncio.run(place.engine(key).cancel(attempt.record.number, owner=owner, why=why))

        # A thread of its own: this runs in a signal handler, inside the event loop that watches the job. The end is
        # on record before the first wait, so that it comes also if this process is killed now.
        thread = threading.Thread(target=cancel, name="rallypoint-cancel")
        thread.start()
        thread.join(_KILL_WAIT)

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a field; text without Jinja stays text, where a DAG with native types makes a number of ``"3"``."""
        if isinstance(content, str) and not is_jinja(content) and not content.endswith(tuple(self.template_ext)):
            return content
        return super().render_template(content, context, jinja_env, seen_oids)

    # How it is done ------------------------------------------------------------------------------------------------

    def _place(self) -> Place:
        from rallypoint.launchers.registry import open_launcher  # noqa: PLC0415 - DAG files import this module

        try:
            place = task_place(self)
            open_launcher(place.launcher, place.launcher_options or None)
        except (StoreError, LaunchError) as error:
            # Nothing was asked yet, so it is a URI or an option that is wrong, and would be at every retry.
            raise AirflowFailException(str(error)) from error
        self.runs_on = place.launcher
        return place

    def _defer(self, context: Context, place: Place, key: StageKey, attempt: Attempt, owner: str) -> None:
        deadline = None
        if self.execution_timeout is not None:
            deadline = context["ti"].start_date.timestamp() + self.execution_timeout.total_seconds()
        self.defer(
            trigger=StageTrigger(
                stage=list(key.parts),
                attempt=attempt.record.number,
                owner=owner,
                store=place.store,
                rallypoint_conn_id=self.rallypoint_conn_id,
                launcher_conn_id=self.launcher_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=deadline - time.time()) + _BACKSTOP if deadline is not None else None,
        )

    async def _watch(self, place: Place, key: StageKey, attempt: Attempt, narrator: Narrator) -> Attempt:
        engine = place.engine(key)
        async for update in engine.watch(attempt, interval=timedelta(seconds=self.poll_interval)):
            for news in narrator.tell(update):
                self.log.log(news.level, "%s", news)
        return await engine.read(attempt.record.number)

    def _finish(self, context: Context, attempt: Attempt) -> Any:
        from rallypoint.stages.outcome import raise_for  # noqa: PLC0415 - DAG files import this module

        outcome = attempt.outcome
        if outcome is None:
            msg = f"{attempt.record.id} has ended without an outcome in the ledger; clear the task to look again"
            raise RuntimeError(msg)
        try:
            raise_for(outcome)
        except StageUserError as error:
            raise self._failed(error) from error
        except Exception:
            self._log_report(attempt)
            raise
        artifacts = {str(item["name"]): item["uri"] for item in outcome.artifacts}
        extra: dict[str, Any] = {"attempt": attempt.record.id, "metrics": dict(outcome.metrics), "artifacts": artifacts}
        if artifacts:
            extra["uri"] = list(artifacts.values())[-1]
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra = extra
        self.log.info("attempt %s succeeded", attempt.record.id)
        return outcome.result

    def _failed(self, error: StageUserError) -> AirflowFailException:
        """Return the error that ends the task without a retry, which could not help."""
        self.log.error("%s", error.report.render())
        return AirflowFailException(error.report.headline)

    def _log_report(self, attempt: Attempt) -> None:
        if attempt.outcome and attempt.outcome.failure:
            self.log.error("%s", attempt.outcome.failure.render())


def task_place(task: Any) -> Place:
    """Return the store and the launcher that a task's connections name.

    Args:
        task: An operator with ``rallypoint_conn_id`` and ``launcher_conn_id``.

    Raises:
        AirflowNotFoundException: A connection does not exist, or is of another type.
        StoreError: The store's URI or credentials are wrong.
        LaunchError: The launcher's connection is wrong.
    """
    return RallypointHook(task.rallypoint_conn_id, task.launcher_conn_id).get_conn()


def stage_key(ti: Any) -> StageKey:
    """Return the key of a task instance's stage: dag id / run id / task id (/ map index)."""
    mapped = (str(ti.map_index),) if ti.map_index is not None and ti.map_index >= 0 else ()
    return StageKey((ti.dag_id, ti.run_id, ti.task_id, *mapped))


def _by_name(call: Any, args: Collection[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's positional arguments under their names, by which the log says what has changed."""
    places = [p.name for p in inspect.signature(call).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = dict(zip(places, args, strict=False))
    return tuple(args)[len(places) :], {**named, **kwargs}


async def _cancel_last(engine: Any, why: str) -> None:
    last = await engine.ledger.last()
    if last is not None:
        await engine.cancel(last.record.number, owner=None, why=why)
