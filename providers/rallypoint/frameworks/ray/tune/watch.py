"""In the driver, beside Ray Tune's loop: says how far the sweep is, and ends it when too much fails."""

from __future__ import annotations

import importlib
import json
import math
import time
from pathlib import Path
from types import new_class
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.tune.record import keep_record
from rallypoint.worker import process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DONE, FAILED, RUNNING = "TERMINATED", "ERROR", "RUNNING"  # Ray Tune's words
_INTERVAL = 2.0  # seconds between two copies


class Watch:
    """Reports the sweep's progress: trials done, running and failed, and the best so far.

    Args:
        total: How many trials there will be.
        before: How many earlier sweeps of this stage have done.
        metric: The metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        copy_to: The folder for copies of the record; None where the store needs none.
    """

    def __init__(self, total: int, before: int, metric: str, mode: str, copy_to: Path | None) -> None:
        self._total, self._before, self._metric, self._copy_to = total, before, metric, copy_to
        self._sign = 1 if mode == "min" else -1
        self._said: tuple[Any, ...] = ()
        self._copied = 0.0
        self._changed = False

    def on_step_end(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:  # noqa: ARG002 - Ray's signature
        """Report if something has changed."""
        counts = {status: sum(trial.status == status for trial in trials) for status in (DONE, FAILED, RUNNING)}
        best = min(filter(None, map(self._score, trials)), key=lambda each: each[0], default=None)
        reports = sum((trial.last_result or {}).get("training_iteration") or 0 for trial in trials)
        said = (*counts.values(), reports)
        if said != self._said:
            self._said, self._changed = said, True
            metrics: dict[str, Any] = {"running": counts[RUNNING], "failed": counts[FAILED], "reports": reports}
            if best:
                metrics[f"best_{self._metric}"] = best[0] * self._sign
                metrics |= {f"best_{name}": _plain(value) for name, value in best[1].items()}
            done = self._before + counts[DONE] + counts[FAILED]
            process.writer().report(metrics, {"step": done, "total": self._total, "unit": "trial"})
        if self._copy_to and self._changed and time.monotonic() - self._copied > _INTERVAL and trials:
            self._changed, self._copied = False, time.monotonic()
            keep_record(Path(trials[0].storage.experiment_driver_staging_path), self._copy_to)

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002 - Ray's signature
        """Say which values a trial was given."""
        _say(f"trial {trial.trial_id} starts: {json.dumps(trial.config, default=str)}")

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002 - Ray's signature
        """Say what came of a trial."""
        last = trial.last_result or {}
        _say(f"trial {trial.trial_id} ended after {last.get('training_iteration')} reports: "
             f"{self._metric}={last.get(self._metric)}")  # fmt: skip

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002 - Ray's signature
        """Say that a trial failed."""
        _say(f"trial {trial.trial_id} failed")
        TooManyFailed.seen += 1

    def _score(self, trial: Any) -> tuple[float, Mapping[str, Any]] | None:
        value = (trial.last_result or {}).get(self._metric)
        if trial.status == FAILED or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return value * self._sign, trial.config


class TooManyFailed:
    """Stops the sweep when more trials have failed than may.

    Args:
        most: How many may fail; None for any number.
    """

    seen = 0  # of this process

    def __init__(self, most: int | None) -> None:
        self._most = most

    def __call__(self, *_: object) -> bool:
        """Return whether one trial is to be stopped: never by this rule."""
        return False

    def stop_all(self) -> bool:
        """Return whether every trial is to be stopped."""
        return self._most is not None and self.seen > self._most


def in_ray(kind: type[Any], base: str) -> type[Any]:
    """Return a class of this module as one of Ray Tune's, which only the job has.

    Args:
        kind: `Watch` or `TooManyFailed`.
        base: ``"Callback"`` or ``"Stopper"``.
    """
    return new_class(kind.__name__, (kind, getattr(importlib.import_module("ray.tune"), base)))


def _plain(value: Any) -> Any:
    try:
        return process.to_json_value(value)
    except process.NotJSONError:
        return str(value)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the stage's log
