"""Which run this is: what a stage's key is made of, and what Prefect says of the run while a stage is waited for."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound, PrefectException

from rallypoint.errors import RallypointError
from rallypoint.stages.key import StageKey

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

LOCAL = "local"  # the first part of the key of a stage that belongs to no flow run
UNREACHABLE = (httpx.HTTPError, PrefectException, OSError)  # what a call raises when the server does not answer


class StageLeftError(RallypointError):
    """This process no longer runs its flow run; the job goes on, and a retry of the flow run finds it."""


class Verdict(StrEnum):
    """What Prefect's state of a run says about the job that the run waits for."""

    GO_ON = "go on"
    STOP = "stop"  # somebody cancelled the run
    TIMED_OUT = "timed out"
    LEAVE = "leave"  # this process has lost the run: the job is left for the next one


@dataclass(frozen=True, kw_only=True)
class Run:
    """The flow run and task run of a stage's try; outside of a flow, nothing.

    Args:
        flow_run: The flow run's id.
        flow: The flow's name.
        task_run: The task run's id.
        tries: How often the task run was started; a task's own retries keep its id.
        root: The id of the outermost flow run: a retry makes new flow runs for the inline subflows of a flow.
        execution: Names one execution of the outermost flow's code; a retry or a resumption is another one.
        deployed: Whether the outermost flow run has a deployment, so that it can be retried.
    """

    flow_run: UUID | None = None
    flow: str = ""
    task_run: UUID | None = None
    tries: int = 0
    root: UUID | None = None
    execution: str = ""
    deployed: bool = False

    def key(self, name: str, inputs: str = "") -> StageKey:
        """Return the key of the stage of a name: the same over every kind of retry.

        Args:
            name: The stage's name.
            inputs: A digest of the inputs, where one name stands for several stages.
        """
        which = (inputs,) if inputs else ()
        if self.root is None:
            return StageKey((LOCAL, name, *which))
        return StageKey((str(self.root), self.flow, name, *which))

    def owner(self) -> str:
        """Return a name of this try that no other try has."""
        return f"prefect/{self.flow_run or '-'}/{self.task_run or '-'}/{self.tries}/{uuid.uuid4().hex[:8]}"

    def claims(self) -> list[tuple[str, str]]:
        """Return what this try claims its key for: executions, and the step that it is in each of them.

        In one execution of the flow a key belongs to one task run, whose retries keep its id; in one try of a task run
        it belongs to one call.
        """
        if not self.execution:
            return []
        call = str(uuid.uuid4())
        tried = f"{self.execution}/{self.task_run}/{self.tries}"
        return [(self.execution, str(self.task_run or call)), (tried, call)]


def owner_flow_run(owner: str) -> str:
    """Return the id of the flow run in the name of an attempt's owner; empty if a flow run is not its owner."""
    kind, _, rest = owner.partition("/")
    return rest.partition("/")[0] if kind == "prefect" else ""


async def this_run(client: PrefectClient) -> Run:
    """Return the run of this context.

    Raises:
        PrefectException: The server does not know the run; `httpx.HTTPError` if it does not answer.
    """
    task = TaskRunContext.get()
    context = FlowRunContext.get()
    flow_run_id = (context.flow_run.id if context and context.flow_run else None) or (
        task.task_run.flow_run_id if task else None
    )
    task_run, tries = (task.task_run.id, task.task_run.run_count) if task else (None, 0)
    if task and flow_run_id and task.task_run.flow_run_id != flow_run_id:
        task_run, tries = None, 0  # an inline subflow of that task: the call is the flow's own
    if flow_run_id is None:
        return Run(task_run=task_run, tries=tries)
    flow_run = await client.read_flow_run(flow_run_id)
    root = await root_of(client, flow_run)
    flow = context.flow.name if context and context.flow else (await client.read_flow(flow_run.flow_id)).name
    # Of a deployed child whose parent has ended, the child is what is executed again.
    executed = root if root.state is not None and root.state.type is StateType.RUNNING else flow_run
    return Run(
        flow_run=flow_run.id,
        flow=flow,
        task_run=task_run,
        tries=tries,
        root=root.id,
        # Counters do not tell executions apart: one that was suspended and resumed still counts 1.
        execution=f"{root.id}/{executed.id}/{executed.run_count}/{executed.state.id if executed.state else ''}",
        deployed=root.deployment_id is not None,
    )


async def root_of(client: PrefectClient, flow_run: FlowRun) -> FlowRun:
    """Return the outermost flow run: that of the flow which called this one, and so on."""
    while flow_run.parent_task_run_id is not None:
        parent = await client.read_task_run(flow_run.parent_task_run_id)
        if parent.flow_run_id is None:
            return flow_run
        flow_run = await client.read_flow_run(parent.flow_run_id)
    return flow_run


async def look(client: PrefectClient, run: Run) -> Verdict:
    """Return what Prefect's states say now. A task in a thread or on a cluster gets no signal: it has to look.

    Raises:
        PrefectException: Something is wrong with the answer; `httpx.HTTPError` if there is none.
    """
    for flow_run_id in dict.fromkeys(filter(None, (run.flow_run, run.root))):
        verdict = _of_flow(await _state_of(client.read_flow_run(flow_run_id)))
        if verdict is not Verdict.GO_ON:
            return verdict
    if run.task_run is not None:
        state = await _state_of(client.read_task_run(run.task_run))
        if state is not None and state.type in _CANCELLED:
            return Verdict.STOP
    return Verdict.GO_ON


async def is_given_up(client: PrefectClient, run: Run) -> bool:
    """Return whether this process's task runner was told to end in the middle of the flow.

    A signal reaches the main thread only. There Prefect tells its threads by an event each, which it looks at before a
    task begins, and then waits for them without a word to the server: a task that does not look waits for ever. At the
    end of a flow it does the same, with the flow run's last state already set.
    """
    context = FlowRunContext.get()
    # Not public; where it is missing, the flow run's process ends when the platform kills it.
    events: Any = getattr(context.task_runner, "_cancel_events", None) if context else None
    event = events.get(run.task_run) if isinstance(events, dict) else None
    if run.flow_run is None or not isinstance(event, threading.Event) or not event.is_set():
        return False
    state = await _state_of(client.read_flow_run(run.flow_run))
    return state is not None and not state.is_final()


_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)


def _of_flow(state: Any) -> Verdict:
    if state is None:
        return Verdict.GO_ON
    if state.type in _CANCELLED:
        return Verdict.STOP
    if state.name == "TimedOut":
        return Verdict.TIMED_OUT
    return Verdict.LEAVE if state.type is StateType.CRASHED else Verdict.GO_ON


async def _state_of(reading: Any) -> Any:
    """Return the state of a run; None if the server does not know it (yet): it learns of task runs a little later."""
    try:
        return (await reading).state
    except ObjectNotFound:
        return None
