"""Turns what Ray raises in a driver into the failures behind it: the user's own exception, the rank that was lost."""

from __future__ import annotations

import os
import re
from typing import Any

from rallypoint.worker import context, process

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class ClusterUnreachableError(ConnectionError):
    """Nothing answers at the cluster's address."""


def causes(error: BaseException) -> list[dict[str, Any]]:
    """Return a ``failed`` event for each failure that an exception of Ray stands for; none for any other exception."""
    failures: Any = getattr(error, "worker_failures", None)  # Ray Train's WorkerGroupError
    if isinstance(failures, dict) and failures:
        return [_of_rank(rank, each) for rank, each in sorted(failures.items())]
    if is_task_error(error):
        return [{"kind": "process", **of_task(error)}]
    inner = getattr(error, "controller_failure", None)  # Ray Train's ControllerError
    if isinstance(inner, Exception):
        return causes(inner) or [{"kind": "process", **process.describe(inner)}]
    return []


def is_task_error(error: object) -> bool:
    """Return whether this is Ray's ``RayTaskError``, which wraps what was raised in a worker."""
    return any(each.__name__ == "RayTaskError" for each in type(error).__mro__)


def of_task(error: BaseException) -> dict[str, Any]:
    """Return what a ``RayTaskError`` says of the exception that was raised in a worker."""
    cause: Any = getattr(error, "cause", None) or error
    while is_task_error(cause) and isinstance(getattr(cause, "cause", None), Exception) and cause.cause is not cause:
        cause = cause.cause
    kind = type(cause)
    text = _ANSI.sub("", getattr(error, "traceback_str", None) or str(error))
    host = re.search(r"\bip=([^,)\s]+)", text)
    return {
        "exception": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        "message": str(cause)[: process.MAX_TRACEBACK],
        "traceback": text[-process.MAX_TRACEBACK :],
        "host": host[1] if host else context.host(),
    }


def _of_rank(rank: int, error: BaseException) -> dict[str, Any]:
    """Return the event of a rank that Ray Train saw fail; one that raised an exception has told more itself."""
    seen = {"kind": "rank", "rank": rank, "seen_by": os.environ.get(context.PROCESS, "driver-0")}
    inner = getattr(error, "_base_exc", None)  # Ray Train's UserExceptionWithTraceback
    if isinstance(inner, BaseException):
        told = process.describe(inner)
        text = _ANSI.sub("", str(getattr(error, "_traceback_str", "") or told["traceback"]))
        return {**seen, **told, "traceback": text[-process.MAX_TRACEBACK :]}
    lost = next((each for each in _chain(error) if type(each).__module__ == "ray.exceptions"), error)
    return {**seen, **process.describe(lost), "traceback": "", "message": _ANSI.sub("", str(lost))}


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception and those that it came from, the innermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__ or getattr(error, "health_check_failure", None)
    return found[::-1]
