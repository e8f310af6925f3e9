"""A small client of Airflow's REST API, for the demo and the tests: every wait has a deadline and explains itself.

The requests are the ones Airflow's own UI sends, so a test that clears a task does what a person's click does.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from graphlib import TopologicalSorter
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from airflow_records import DagRun, TaskInstance, log_text

__all__ = ["FINISHED_RUN", "AirflowApi", "AirflowApiError", "DagRun", "TaskInstance"]

_POLL_SECONDS = 0.3
_PAGE = 100  # the most entries Airflow gives at once by default
_TAIL_LINES = 30

FINISHED_RUN = frozenset({"success", "failed"})

T = TypeVar("T")


class AirflowApiError(RuntimeError):
    """Airflow refused a request, or what was waited for did not come."""


class AirflowApi:
    """A client of one Airflow that treats everyone as an admin; threads may share it.

    Args:
        url: The address of the api-server, for example `AirflowInstance.url`.
        timeout: Seconds one request may take; the first run of a DAG took over 30 s to be made on a busy machine.
    """

    def __init__(self, url: str, *, timeout: float = 120) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)
        self._writing = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request to `/api/v2` and return the JSON of the answer.

        Args:
            method: The HTTP method.
            path: The path under `/api/v2`.
            **options: Further arguments of `httpx.Client.request`, for example `json` or `params`.

        Raises:
            AirflowApiError: If the answer is an error; the message shows it.
        """
        # In an api-server on SQLite two requests that write at the same time hold each other up, until the wait of one
        # for the database's lock is over.
        with nullcontext() if method == "GET" else self._writing:
            response = self._send(method, path, **options)
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._log_in()
                response = self._send(method, path, **options)
        if response.is_error:
            raise AirflowApiError(f"{method} {path} was answered with {response.status_code}: {response.text[:2000]}")
        return response.json() if response.content else None

    def wait_until_parsed(self, dag_id: str, *, timeout: float = 60) -> None:
        """Wait until the dag-processor has stored a DAG, and has not missed it since.

        Raises:
            AirflowApiError: At the deadline; the message shows the import errors.
        """

        def parsed() -> bool | None:
            response = self._send("GET", f"/dags/{quote(dag_id)}")
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._log_in()
            return (response.is_success and not response.json()["is_stale"]) or None

        def explain() -> str:
            errors = "\n".join(f"{file}:\n{trace}" for file, trace in self.import_errors().items())
            return errors or "there are no import errors: does a file in the DAG folder define it?"

        self.wait_until(parsed, f"DAG {dag_id} to be parsed", timeout=timeout, explain=explain)

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler start the runs of a DAG."""
        self.request("PATCH", f"/dags/{quote(dag_id)}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Have the scheduler start no run of a DAG, and no task of its runs."""
        self.request("PATCH", f"/dags/{quote(dag_id)}", json={"is_paused": True})

    def task_ids(self, dag_id: str) -> list[str]:
        """Return the tasks of a DAG, each after those it depends on."""
        tasks = self.request("GET", f"/dags/{quote(dag_id)}/tasks")["tasks"]
        sorter: TopologicalSorter[str] = TopologicalSorter()
        for task in tasks:
            sorter.add(task["task_id"])
            for downstream in task["downstream_task_ids"]:
                sorter.add(downstream, task["task_id"])
        return list(sorter.static_order())

    def run_page(self, dag_id: str, run_id: str) -> str:
        """Return the address of a run's page in the UI."""
        return f"{self.url}/dags/{quote(dag_id)}/runs/{quote(run_id)}"

    def import_errors(self) -> dict[str, str]:
        """Return the traceback of each DAG file that could not be imported."""
        return {error["filename"]: error["stack_trace"] for error in self._pages("/importErrors", "import_errors")}

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, run_id: str | None = None) -> str:
        """Start a run of a DAG and return its run id."""
        body: dict[str, Any] = {"logical_date": None, "conf": dict(conf or {})}
        if run_id is not None:
            body["dag_run_id"] = run_id
        created: str = self.request("POST", f"/dags/{quote(dag_id)}/dagRuns", json=body)["dag_run_id"]
        return created

    def dag_runs(self, dag_id: str) -> list[DagRun]:
        """Return every run of a DAG, the newest last."""
        runs = self._pages(f"/dags/{quote(dag_id)}/dagRuns", "dag_runs", order_by="id")
        return [DagRun.from_json(run) for run in runs]

    def dag_run(self, dag_id: str, run_id: str) -> DagRun:
        """Return a run of a DAG."""
        return DagRun.from_json(self.request("GET", _run(dag_id, run_id)))

    def mark_run(self, dag_id: str, run_id: str, state: str, *, note: str | None = None) -> None:
        """Mark a run as a person does in the UI: success, failed or queued; a note is shown beside it."""
        body = {"state": state} if note is None else {"state": state, "note": note}
        self.request("PATCH", _run(dag_id, run_id), json=body)

    def end_other_runs(self, dag_id: str, run_id: str) -> None:
        """Mark every unfinished run of a DAG failed but one: those of its own schedule, or of a demo that was stopped.

        A DAG that runs one at a time takes the run with the earliest date first, which is its schedule's.
        """
        for other in self.dag_runs(dag_id):
            if other.run_id != run_id and other.state not in FINISHED_RUN:
                note = f"Nothing failed: this run was ended so that {run_id} has the machine for itself."
                self.mark_run(dag_id, other.run_id, "failed", note=note)

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the task instances of a run, each in its latest try."""
        path = f"{_run(dag_id, run_id)}/taskInstances"
        return [TaskInstance.from_json(task) for task in self._pages(path, "task_instances")]

    def task_instance(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> TaskInstance:
        """Return a task instance in its latest try."""
        return TaskInstance.from_json(self.request("GET", _task(dag_id, run_id, task_id, map_index)))

    def tries(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> list[TaskInstance]:
        """Return every try of a task instance, the first one first."""
        tries = self.request("GET", f"{_task(dag_id, run_id, task_id, map_index)}/tries")["task_instances"]
        return sorted((TaskInstance.from_json(one) for one in tries), key=lambda one: one.try_number)

    def clear(
        self,
        dag_id: str,
        run_id: str,
        task_ids: Sequence[str | tuple[str, int]],
        *,
        only_failed: bool = False,
        include_downstream: bool = True,
    ) -> list[str]:
        """Clear tasks as the UI's Clear button does; its defaults are the UI's.

        Args:
            dag_id: The DAG.
            run_id: The run.
            task_ids: The tasks; a pair is a mapped task and its map index.
            only_failed: Clear only those of them that failed.
            include_downstream: Clear the tasks after them, too.

        Returns:
            The labels of the tasks that were cleared.
        """
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [one if isinstance(one, str) else list(one) for one in task_ids],
            "only_failed": only_failed,
            "include_downstream": include_downstream,
        }
        cleared = self.request("POST", f"/dags/{quote(dag_id)}/clearTaskInstances", json=body)["task_instances"]
        return [TaskInstance.from_json(task).label for task in cleared]

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, *, map_index: int = -1) -> None:
        """Mark a task instance as a person does in the UI: success, failed or skipped."""
        self.request("PATCH", _task(dag_id, run_id, task_id, map_index), json={"new_state": state})

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """Return the value of an XCom.

        Raises:
            AirflowApiError: If there is none.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        return self.request("GET", path, params={"map_index": map_index, "deserialize": True})["value"]

    def links(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> dict[str, str | None]:
        """Return the extra links of a task instance: their names and addresses."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/links"
        links: dict[str, str | None] = self.request("GET", path, params={"map_index": map_index})["extra_links"]
        return links

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int | None = None, *, map_index: int = -1) -> str:
        """Return the log of a try as plain text, one line per message, tracebacks included.

        Args:
            dag_id: The DAG.
            run_id: The run.
            task_id: The task.
            try_number: The number of the try, from 1; None is the latest.
            map_index: The index of a mapped task, else -1.
        """
        if try_number is None:
            try_number = self.task_instance(dag_id, run_id, task_id, map_index=map_index).try_number
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/logs/{try_number}"
        answer = self.request("GET", path, params={"map_index": map_index, "full_content": True})
        return log_text(answer["content"])

    def asset_events(self, *, dag_id: str | None = None, run_id: str | None = None) -> list[dict[str, Any]]:
        """Return asset events as Airflow gives them, the oldest first; of one DAG or run, if asked for."""
        wanted = {"source_dag_id": dag_id, "source_run_id": run_id}
        filters = {name: value for name, value in wanted.items() if value is not None}
        return list(self._pages("/assets/events", "asset_events", order_by="timestamp", **filters))

    def wait_for_run(self, dag_id: str, run_id: str, *, state: str = "success", timeout: float) -> DagRun:
        """Wait until a run has ended in a state.

        Raises:
            AirflowApiError: If it ended in the other one, or at the deadline; the message shows every task's state
                and the ends of the logs.
        """

        def ended() -> DagRun | None:
            run = self.dag_run(dag_id, run_id)
            return run if run.state in FINISHED_RUN else None

        what = f"run {run_id} of DAG {dag_id} to end in {state}"
        run = self.wait_until(ended, what, timeout=timeout, explain=lambda: self.describe(dag_id, run_id))
        if run.state != state:
            raise AirflowApiError(f"waited for {what}, got {run.state}\n{self.describe(dag_id, run_id)}")
        return run

    def wait_for_task(  # noqa: PLR0913 - every option is named at the call
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        states: str | Collection[str],
        *,
        timeout: float,
        map_index: int = -1,
        try_number: int = 0,
    ) -> TaskInstance:
        """Wait until a task instance is in one of the states, in a try of at least this number.

        Raises:
            AirflowApiError: If the run ended otherwise, or at the deadline; the message shows every task's state and
                the ends of the logs.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        what = f"task {task_id} of run {run_id} of DAG {dag_id} to be {' or '.join(sorted(wanted))}"
        if try_number:
            what += f" in try {try_number} or later"

        def reached() -> TaskInstance | None:
            run = self.dag_run(dag_id, run_id)  # read before the task, so that an ended run's tasks are final
            task = self.task_instance(dag_id, run_id, task_id, map_index=map_index)
            if task.state in wanted and task.try_number >= try_number:
                return task
            if run.state in FINISHED_RUN:
                raise AirflowApiError(
                    f"waited for {what}, but the run ended in {run.state} and the task is {task.state} "
                    f"in try {task.try_number}\n{self.describe(dag_id, run_id)}"
                )
            return None

        return self.wait_until(reached, what, timeout=timeout, explain=lambda: self.describe(dag_id, run_id))

    def wait_until(
        self, condition: Callable[[], T | None], what: str, *, timeout: float, explain: Callable[[], str] | None = None
    ) -> T:
        """Poll a condition until it returns something other than None, and return that.

        A connection that fails counts as "not yet", so that a wait outlasts a restart of the api-server.

        Args:
            condition: What to poll.
            what: What is waited for, for the error.
            timeout: Seconds until the deadline.
            explain: What to say after the deadline beside `what`.

        Raises:
            AirflowApiError: At the deadline.
        """
        deadline = time.monotonic() + timeout
        trouble = ""
        while True:
            try:
                if (value := condition()) is not None:
                    return value
            except httpx.TransportError as error:
                trouble = f"\nthe last failed connection: {error}"
            if time.monotonic() > deadline:
                explanation = f"\n{explain()}" if explain else ""
                raise AirflowApiError(f"waited {timeout:.0f} s for {what}{explanation}{trouble}")
            time.sleep(_POLL_SECONDS)

    def describe(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run's tasks, and the ends of the logs of those that failed or have not ended."""
        tasks = self.task_instances(dag_id, run_id)
        parts = [f"run {run_id} of DAG {dag_id} is {self.dag_run(dag_id, run_id).state}"]
        parts += [f"  {task.label}: {task.state}, try {task.try_number} of {task.max_tries + 1}" for task in tasks]
        for task in tasks:
            if task.try_number and task.state not in {"success", "skipped", "upstream_failed", "removed"}:
                text = self.log(dag_id, run_id, task.task_id, task.try_number, map_index=task.map_index)
                parts += [f"--- log of {task.label}, try {task.try_number}", *text.splitlines()[-_TAIL_LINES:]]
        return "\n".join(parts)

    def _log_in(self) -> None:
        answer = self._client.get("/auth/token")
        if answer.is_error:
            raise AirflowApiError(
                f"{self.url} gave no token ({answer.status_code}): it has to run with "
                "[core] simple_auth_manager_all_admins = True"
            )
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._client.request(method, f"/api/v2{path}", **options)

    def _pages(self, path: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self.request("GET", path, params={"limit": _PAGE, "offset": offset, **parameters})[key]
            yield from page
            if len(page) < _PAGE:
                return
            offset += _PAGE


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{quote(dag_id)}/dagRuns/{quote(run_id)}"


def _task(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}"
    return path if map_index < 0 else f"{path}/{map_index}"
