"""Temporary clusters as set-up and teardown tasks: whatever job is a service."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from rallypoint.airflow.operators.base import StageOperator, stage_key, task_place
from rallypoint.airflow.place import DEFAULT_CONN_ID, resolve_secrets
from rallypoint.airflow.rendering import rendered_object
from rallypoint.errors import InvalidJobError
from rallypoint.spec.service import ServiceRef, services_of
from rallypoint.stages.key import StageKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context
    from airflow.sdk.definitions.xcom_arg import XComArg

    from rallypoint.spec.service_job import ServiceJob
    from rallypoint.stages.attempt import Attempt
    from rallypoint.stages.place import Place


class ServiceOperator(StageOperator):
    """Starts a service, such as a temporary cluster, and ends when it is ready; the service goes on.

    Use it as a set-up task, with a `StopClusterOperator` as its teardown. A retry reattaches to a service that is still
    there. So does a clear, unless the service's parameters have changed: Airflow clears the set-up with every task that
    uses it, while others may be using it. After its end (the teardown has run) the set-up starts a new one.

    Nobody has to run the teardown for it to end: if no task that names it in ``uses`` (or ``address``) runs for
    ``lease`` seconds, it ends by itself. Queues and retry delays between such tasks have to be shorter.

    Args:
        env: Environment variables of its processes. They are shown in the UI: secrets go into `secrets`.
        secrets: Environment variables by reference: ``variable:NAME``, ``connection:ID`` or ``env:NAME``.
        python: The job's interpreter, where it is not the connection's.
        rallypoint_conn_id: The connection of store and launcher.
        poll_interval: Seconds between looks, until it is ready.
        deferrable: Whether to wait in the triggerer, without a worker slot.
        service_options: The parameters of `job_class`.

    Returns:
        The address object, as XCom.
    """

    job_class: ClassVar[type[ServiceJob]]

    template_fields: Sequence[str] = ("env", "python", "job_options", "launcher_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"env": "json", "job_options": "json"}
    ui_color = "#e3f1e3"

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        python: str | None = None,
        rallypoint_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = 1.0,
        deferrable: bool = True,
        service_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            module="rallypoint.service",
            env=env,
            secrets=secrets,
            python=python,
            rallypoint_conn_id=rallypoint_conn_id,
            poll_interval=poll_interval,
            deferrable=deferrable,
            job_options=service_options,
            **kwargs,
        )

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        self.job_class(env=env, **options)

    def job(self) -> ServiceJob:
        """Return the job, from the rendered fields.

        Raises:
            InvalidJobError: A rendered value is wrong.
        """
        return self.job_class(
            env={key: str(value) for key, value in self.env.items()},
            secrets=resolve_secrets(self.secrets),
            python=self.python,
            **self.job_options,
        )

    def _finish(self, context: Context, attempt: Attempt) -> Any:
        if attempt.outcome is not None:
            return super()._finish(context, attempt)
        place, key = self._place(), stage_key(context["ti"])
        address = asyncio.run(_address(place, key, attempt))
        if address is None:  # it has ended since it was seen to be ready
            ended = asyncio.run(place.engine(key).read(attempt.record.number))
            return super()._finish(context, ended)
        self._running = None  # from here on it is the teardown's to stop
        self.log.info("attempt %s is ready", attempt.record.id)
        return address


class StopClusterOperator(BaseOperator):
    """Stops a service that a set-up task has started; one that has ended already is fine.

    Airflow runs a teardown task when the tasks between it and its set-up have ended, also when they failed. It stops
    whatever attempt of the service's stage is live, so that none is left.

    Args:
        cluster: The set-up task's result.
        grace: Seconds that its processes have for their own end.
        rallypoint_conn_id: The connection of store and launcher; the set-up's.
        launcher_conn_id: The connection of the launcher, if the set-up names one.
    """

    template_fields: Sequence[str] = ("cluster", "launcher_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"cluster": "json"}
    ui_color = "#f1e3e3"

    def __init__(
        self,
        *,
        cluster: Mapping[str, Any] | XComArg | str,
        grace: float = 20.0,
        rallypoint_conn_id: str = DEFAULT_CONN_ID,
        launcher_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.grace = grace
        self.rallypoint_conn_id = rallypoint_conn_id
        self.launcher_conn_id = launcher_conn_id
        if grace < 0:
            raise InvalidJobError(type(self).__name__, "grace", got=grace, expected="seconds, 0 or more")

    def execute(self, context: Context) -> None:
        """Stop the service."""
        del context
        try:
            ref = services_of(rendered_object(self.cluster), job=type(self).__name__, name="cluster")[0]
        except InvalidJobError as error:
            raise AirflowFailException(str(error)) from error
        place = task_place(self)
        if ref.store != place.store:
            msg = (
                f"got a cluster whose record is in {ref.store}, expected the store {place.store} of the connection "
                f"{self.rallypoint_conn_id!r}: give this task the connection of the set-up task"
            )
            raise AirflowFailException(msg)
        stopped = asyncio.run(_stop(place, ref, timedelta(seconds=self.grace)))
        self.log.info("%s: %s", "/".join(ref.stage), f"{stopped} is stopped" if stopped else "it had ended before")


class Cluster:
    """A set-up task and its teardown, as one context manager: the tasks within it run on the cluster.

    Args:
        start: Starts the service.
        stop_id: The teardown's task id.
        stop_options: More keyword arguments of the teardown.

    Attributes:
        start: The set-up task.
        stop: The teardown task.
        address: The set-up's result, for ``uses=`` or ``address=`` of the tasks within.
    """

    def __init__(self, start: ServiceOperator, *, stop_id: str | None = None, **stop_options: Any) -> None:
        self.start = start
        self.address = start.output
        self.stop = StopClusterOperator(
            task_id=stop_id or f"{start.task_id}_stop",
            cluster=self.address,
            rallypoint_conn_id=start.rallypoint_conn_id,
            launcher_conn_id=start.launcher_conn_id,
            **{"retries": 2, "retry_delay": timedelta(seconds=10), **stop_options},
        ).as_teardown(setups=start)

    def __enter__(self) -> Self:
        self.stop.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.__exit__(*error)


async def _address(place: Place, key: StageKey, attempt: Attempt) -> dict[str, Any] | None:
    async for update in place.engine(key).watch(attempt, interval=timedelta(seconds=1)):
        if update.ready is not None:
            return dict(update.ready)
    return None


async def _stop(place: Place, ref: ServiceRef, grace: timedelta) -> str | None:
    engine = place.engine(StageKey(ref.stage))
    last = await engine.ledger.last()
    if last is None or last.outcome is not None or not last.record.service:
        return None
    await engine.cancel(last.record.number, owner=None, why="its teardown task ran", grace=grace)
    return last.record.id
