"""Temporary clusters as context managers: started once for a flow run, used by its stages, and stopped."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client

from rallypoint.errors import InvalidJobError
from rallypoint.prefect.guard import GRACE
from rallypoint.prefect.options import StageOptions, sort_options
from rallypoint.prefect.places import find_place
from rallypoint.prefect.running import arun_stage, run_stage
from rallypoint.prefect.runs import UNREACHABLE, Verdict, look, this_run
from rallypoint.prefect.waiting import Waiting
from rallypoint.spec.service import SERVICE, ServiceRef
from rallypoint.spec.service_job import ServiceJob
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

_WHY = "the flow no longer needs it"


@contextmanager
def service(job: ServiceJob, *, name: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Start a service, such as a temporary cluster, yield its address object, and stop it.

    Give the address to the jobs that use it (``uses=[cluster]``, or the parameter that their job has for it): while a
    stage with such a job is waited for, the service's lease is renewed. It is stopped at the end of the block, also
    after an error, and where the flow run is cancelled in it. A flow whose process dies leaves it: a retry within the
    lease finds it again, and without one it ends by itself.

    Args:
        job: The service, such as a `rallypoint.RayCluster`.
        name: The stage's name.
        **options: As of `rallypoint.prefect.run_stage`.

    Raises:
        InvalidJobError: The job is no service.
        StageFailedError: It did not become ready.
    """
    end = _End(job, options, run_stage(_checked(job), name=name, **options))
    Waiting(end.remember, _nothing).wait()
    try:
        yield end.address
    except Exception:
        Waiting(end.stop, _nothing).wait()
        raise
    except BaseException:
        Waiting(end.stop_if_cancelled, _nothing).wait()
        raise
    else:
        Waiting(end.stop, _nothing).wait()


@asynccontextmanager
async def aservice(job: ServiceJob, *, name: str, **options: Any) -> AsyncIterator[dict[str, Any]]:
    """Do the same as `service` without blocking the event loop."""
    end = _End(job, options, await arun_stage(_checked(job), name=name, **options))
    await Waiting(end.remember, _nothing).wait_async()
    try:
        yield end.address
    except Exception:
        await Waiting(end.stop, _nothing).wait_async()
        raise
    except BaseException:
        Waiting(end.stop_if_cancelled, _nothing).wait()  # this task is being cancelled: it cannot await
        raise
    else:
        await Waiting(end.stop, _nothing).wait_async()


class _End:
    """Stops a service, unless a newer try has taken it over."""

    def __init__(self, job: ServiceJob, options: Mapping[str, Any], address: dict[str, Any]) -> None:
        self.address = address
        self._options = StageOptions(**sort_options(type(job), options).stage)
        self._ref = ServiceRef.from_json(address[SERVICE])
        self._owner = ""

    async def remember(self) -> None:
        """Note who owns the service now."""
        place = await find_place(self._options.store, self._options.launcher)
        entry = await Ledger(place.open_store(), StageKey(self._ref.stage)).read(self._ref.attempt)
        self._owner = entry.owner if entry else ""

    async def stop(self) -> None:
        """Stop it."""
        place = await find_place(self._options.store, self._options.launcher)
        engine = place.engine(StageKey(self._ref.stage))
        await engine.cancel(self._ref.attempt, owner=self._owner, why=_WHY, grace=GRACE)

    async def stop_if_cancelled(self) -> None:
        """Stop it if that is why the flow ends here; a retry goes on with one that was left."""
        try:
            async with get_client() as client:
                ends = (Verdict.STOP, Verdict.TIMED_OUT)
                cancelled = await look(client, await this_run(client)) in ends
        except UNREACHABLE:
            return
        if cancelled:
            await self.stop()


def _checked(job: ServiceJob) -> ServiceJob:
    given: object = job
    if not isinstance(given, ServiceJob):
        raise InvalidJobError("service", "job", got=type(given).__name__, expected="a service, such as RayCluster(…)")
    return job


def _nothing(reason: BaseException | None) -> None:
    """What interrupts a stop does not change it: it has its own limits."""
