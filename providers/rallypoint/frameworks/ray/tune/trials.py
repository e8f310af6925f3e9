"""Reads what came of the trials: from Ray Tune's results, and from what each trial has kept itself."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.failures import is_task_error, of_task
from rallypoint.frameworks.ray.tune.table import FAILED, FINISHED, STOPPED, TrialRow
from rallypoint.frameworks.ray.tune.trial import FAILED as FAILURE
from rallypoint.frameworks.ray.tune.trial import RETURNED, read_record, trial_uri
from rallypoint.worker import context, process
from rallypoint.worker.events import EventWriter
from rallypoint.worker.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MAX_TOLD = 20  # failed trials: the first ones tell the cause
# What Ray Tune adds to every report, beside what the code reported.
_OWN = {
    "checkpoint_dir_name", "config", "date", "done", "experiment_tag", "hostname", "iterations_since_restore",
    "node_ip", "pid", "should_checkpoint", "time_since_restore", "time_this_iter_s", "time_total_s", "timestamp",
    "trial_id", "training_iteration",
}  # fmt: skip


def rows_of(results: Iterable[Any], metric: str, constants: Mapping[str, Any]) -> tuple[list[TrialRow], dict[str, Any]]:
    """Return the trials of a sweep, and their checkpoints by trial.

    Args:
        results: Ray Tune's ``ResultGrid``.
        metric: The metric that is optimised.
        constants: Parameters that are the same in every trial.
    """
    rows, checkpoints = [], {}
    for number, result in enumerate(results):
        metrics = result.metrics or {}
        trial = str(metrics.get("trial_id") or _trial_of(result.path) or f"trial-{number}")
        storage = open_storage(trial_uri(context.StageContext.from_environment(), trial))
        done = read_record(storage, RETURNED)
        failure = _failure(result.error, read_record(storage, FAILURE)) if result.error is not None else None
        rows.append(
            TrialRow(
                trial=trial,
                status=FAILED if failure else FINISHED if done else STOPPED,
                config={**constants, **_plain(result.config or {})},
                metrics={name: each for name, each in _plain(metrics).items() if name not in _OWN},
                objective=_number(metrics.get(metric)),
                reports=int(metrics.get("training_iteration") or 0),
                seconds=_number(metrics.get("time_total_s")),
                returned=(done or {}).get("value"),
                failure=failure,
            )
        )
        checkpoints[trial] = result.checkpoint
    return rows, checkpoints


def best_of(rows: Sequence[TrialRow], mode: str) -> TrialRow | None:
    """Return the trial with the best last value of the metric; None if none has a number."""
    able = [row for row in rows if row.objective is not None and row.status != FAILED]
    pick = min if mode == "min" else max
    return pick(able, key=lambda row: row.objective or 0.0, default=None)


def tell_failures(rows: Sequence[TrialRow]) -> None:
    """Write a ``failed`` event for each failed trial, the first one first, under the trial's name.

    They are written only where the stage fails because of them: a failure that the search has borne is no cause.
    """
    uri = os.environ.get(context.EVENTS_URI)
    failed = sorted((row for row in rows if row.failure), key=lambda row: (row.failure or {}).get("t", math.inf))
    for row in failed[:_MAX_TOLD]:
        told = {name: value for name, value in (row.failure or {}).items() if name not in {"t", "config"}}
        told["message"] = f"{told.get('message', '')} (trial {row.trial} with {_short(row.config)})"
        events = EventWriter(uri, f"trial-{row.trial}")
        events.write("failed", kind="trial", **told)
        events.flush()


def _failure(error: BaseException, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return why a trial failed: its own word if it could say one, and what Ray saw otherwise."""
    if record is not None and is_task_error(error):
        return dict(record)
    if is_task_error(error):
        return of_task(error)
    return {**process.describe(error), "traceback": ""}


def _short(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in config.items())[:500]  # fmt: skip


def _trial_of(path: object) -> str:
    """Return the id in the name of a trial's folder: ``trial_<id>_<number>_<values>_<time>``."""
    parts = Path(str(path or "")).name.split("_")
    return "_".join(parts[1:3]) if len(parts) > 2 else ""  # noqa: PLR2004 - its prefix and two parts of the id


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        try:
            found[str(name)] = process.to_json_value(value)
        except TypeError:
            found[str(name)] = str(value)[:200]
    return found
