"""What Airflow's REST API answers, as data."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class DagRun:
    """A run of a DAG.

    Attributes:
        dag_id: The DAG.
        run_id: The run's name.
        state: queued, running, success or failed.
        run_type: manual, scheduled, asset_triggered or backfill.
        conf: What it was triggered with.
        duration: Seconds from its start to its end, None before its end.
    """

    dag_id: str
    run_id: str
    state: str
    run_type: str
    conf: Mapping[str, Any]
    duration: float | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read a DAG run of an API response."""
        return cls(
            dag_id=value["dag_id"],
            run_id=value["dag_run_id"],
            state=value["state"],
            run_type=value["run_type"],
            conf=value["conf"] or {},
            duration=value["duration"],
        )


@dataclasses.dataclass(frozen=True)
class TaskInstance:
    """One task of a DAG run, in one of its tries.

    Attributes:
        id: Airflow's id, new for every try; None for an earlier try.
        task_id: The task.
        map_index: The index of a mapped task, else -1.
        state: For example running, deferred, up_for_retry or success; None before it was scheduled.
        try_number: The number of its try, from 1; 0 before the first.
        max_tries: The number of retries it may use; a clear raises it.
        start_date: When the try began, in ISO 8601.
        duration: Seconds of the try, None before its end.
        operator: The class of its operator.
    """

    id: str | None
    task_id: str
    map_index: int
    state: str | None
    try_number: int
    max_tries: int
    start_date: str | None
    duration: float | None
    operator: str | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read a task instance of an API response."""
        return cls(
            id=value.get("id"),
            task_id=value["task_id"],
            map_index=value["map_index"],
            state=value["state"],
            try_number=value["try_number"],
            max_tries=value["max_tries"],
            start_date=value["start_date"],
            # Airflow leaves the last try's duration there while the next one runs.
            duration=value["duration"] if value["end_date"] else None,
            operator=value.get("operator_name") or value["operator"],
        )

    @property
    def label(self) -> str:
        """The task's id, with the map index of a mapped task."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


def log_text(messages: Iterable[Mapping[str, Any] | str]) -> str:
    """Write the messages of a log as Airflow's UI shows them, without the group that says where they were read."""
    lines = [line for message in messages for line in _log_lines(message)]
    if lines and lines[0] == "::group::Log message source details":
        del lines[: lines.index("::endgroup::") + 1]
    return "\n".join(lines)


def _log_lines(message: Mapping[str, Any] | str) -> Iterator[str]:
    """Write one message, with the traceback it carries."""
    if isinstance(message, str):
        yield message
        return
    level = message.get("level")
    yield " ".join(
        part for part in (message.get("timestamp"), f"{level.upper()} -" if level else None, message["event"]) if part
    )
    for error in message.get("error_detail") or ():
        yield "Traceback (most recent call last):"
        for frame in error.get("frames", ()):
            yield f'  File "{frame["filename"]}", line {frame["lineno"]}, in {frame["name"]}'
        yield f"{error['exc_type']}: {error['exc_value']}"
