"""Inside the job: runs the sweeps of a stage, or goes on with them, and says what was found."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.storage import RayStorage, open_ray_storage
from rallypoint.frameworks.ray.train.worker import read_function
from rallypoint.frameworks.ray.tune import searching
from rallypoint.frameworks.ray.tune.record import copies_of, mend_record
from rallypoint.frameworks.ray.tune.table import FAILED, FINISHED, STOPPED, TrialRow, write_table
from rallypoint.frameworks.ray.tune.trial import Trainable
from rallypoint.frameworks.ray.tune.trials import best_of, rows_of, tell_failures
from rallypoint.frameworks.ray.tune.watch import TooManyFailed, Watch, in_ray
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SWEEP = re.compile(r"^tune-(\d+)-(\d+)$")  # its number, and how many samples it has


class SweepFailedError(RuntimeError):
    """Too many trials failed; the events of the failed trials tell why."""


class NoResultError(RuntimeError):
    """No trial has reported the metric."""


def tune(settings: Mapping[str, Any], entry: list[str]) -> dict[str, Any]:
    """Search, without the trials that have finished in an earlier attempt.

    Returns:
        The best ``config``, its ``metrics``, what its trial ``returned``, its ``checkpoint``, the number of ``trials``
        by how they ended, and the URIs of the ``table`` and its ``picture``.

    Raises:
        SweepFailedError: More trials failed than may, or all.
        NoResultError: No trial reported the metric.
    """
    # Ray Tune writes its record every ten seconds or more; a trial whose end is in no record would run again.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a CSV, a JSON and a TensorBoard file per trial
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables are for a terminal; `Watch` tells what happens
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it misses those files
    here = stage()
    sweeps = Sweeps(settings, entry, open_ray_storage(here.data_uri))
    rows, checkpoints = sweeps.run()
    here.report(step=len(rows), total=max(len(rows), sweeps.total), unit="trial")
    counts = {status: sum(row.status == status for row in rows) for status in (FINISHED, STOPPED, FAILED)}
    table = write_table(rows, metric=settings["metric"], mode=settings["mode"], stage=here)
    most = settings["max_failed_trials"]
    if (most is not None and counts[FAILED] > most) or (rows and counts[FAILED] == len(rows)):
        tell_failures(rows)
        allowed = "one at the least has to succeed" if most is None else f"max_failed_trials is {most}"
        msg = f"{counts[FAILED]} of {len(rows)} trials failed, and {allowed}"
        raise SweepFailedError(msg)
    best = best_of(rows, settings["mode"])
    if best is None:
        msg = (
            f"got {len(rows)} trials without a number as the metric {settings['metric']!r}, expected one in every "
            "report: call stage().report() with it, or return it; correct metric=, or raise time_budget="
        )
        raise NoResultError(msg)
    checkpoint = checkpoints[best.trial]
    saved = None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = here.save_artifact(folder, name="checkpoint")
    return {
        "config": best.config,
        "metrics": best.metrics,
        "returned": best.returned,
        "checkpoint": saved,
        "trial": best.trial,
        "trials": {"total": len(rows), **counts},
        **table,
    }


class Sweeps:
    """The runs of Ray Tune that make up the search: one, and another for each time that more samples were asked for.

    Args:
        settings: The job's.
        entry: The words of the entry.
        storage: Where Ray Tune keeps them; a folder's name says how many samples a sweep has.
    """

    def __init__(self, settings: Mapping[str, Any], entry: list[str], storage: RayStorage) -> None:
        self._settings = settings
        self._storage = storage
        self._domains, self._constants = searching.split(settings["space"])
        self._call = Trainable(tuple(entry), read_function(entry), self._constants, settings["metric"])
        self._rows: list[TrialRow] = []
        self._checkpoints: dict[str, Any] = {}
        budget = settings["time_budget"]
        self._deadline = time.monotonic() + budget if budget is not None else None
        found = [(int(match[1]), int(match[2])) for name in storage.names() if (match := _SWEEP.match(name))]
        self._sweeps = sorted(found)
        have = sum(samples for _, samples in found)
        if have < settings["num_samples"]:
            self._sweeps.append((len(found) + 1, settings["num_samples"] - have))
        self.total = sum(samples for _, samples in self._sweeps) * settings["grid"]

    def run(self) -> tuple[list[TrialRow], dict[str, Any]]:
        """Run what is left, and return the trials and their checkpoints by trial."""
        for number, samples in self._sweeps:
            results = self._run(number, samples)
            if results is None:
                break
            rows, checkpoints = rows_of(results, self._settings["metric"], self._constants)
            self._rows += rows
            self._checkpoints |= checkpoints
        return self._rows, self._checkpoints

    def _run(self, number: int, samples: int) -> Any:
        """Run one sweep; None if there is no time left for it."""
        from ray.tune import Tuner

        left = self._deadline - time.monotonic() if self._deadline is not None else None
        name = f"tune-{number}-{samples}"
        path = f"{self._storage.path}/{name}"
        filesystem = self._storage.filesystem
        if self._storage.is_folder and Path(path).is_dir():
            mend_record(Path(path))
        if Tuner.can_restore(path, storage_filesystem=filesystem) and self._has_record(path):
            tuner = Tuner.restore(path, trainable=self._trainable(), resume_errored=True, storage_filesystem=filesystem)
            results = _whole(tuner, samples * self._settings["grid"])
            if results is not None:
                return results
            _set_limits(tuner, self._settings, left, Path(path) if self._storage.is_folder else None)
        else:
            if left is not None and left <= 0:
                return None
            copies = copies_of(Path(path)) if self._storage.is_folder else None
            tuner = self._new(number, samples, name, left, copies)
        return tuner.fit()

    def _has_record(self, path: str) -> bool:
        """Return whether Ray Tune has written a record of a sweep's trials: before, there is nothing to restore."""
        if self._storage.is_folder:
            return any(Path(path).glob("experiment_state*.json"))
        from pyarrow.fs import FileSelector

        found = self._storage.filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return any(info.base_name.startswith("experiment_state") for info in found)

    def _new(self, number: int, samples: int, name: str, left: float | None, copies: Path | None) -> Any:
        from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

        settings = self._settings
        optuna = settings["search"] == "optuna"
        known = [
            (row.config, row.objective) for row in self._rows if row.objective is not None and row.status != FAILED
        ]
        watch = in_ray(Watch, "Callback")(self.total, len(self._rows), settings["metric"], settings["mode"], copies)
        return Tuner(
            self._trainable(),
            param_space={} if optuna else {key: searching.ray_domain(each) for key, each in self._domains.items()},
            tune_config=TuneConfig(
                metric=settings["metric"],
                mode=settings["mode"],
                num_samples=samples,
                search_alg=searching.search_algorithm(settings, self._domains, number, known),
                scheduler=searching.scheduler(settings["scheduler"]),
                time_budget_s=left,
                reuse_actors=settings["reuse_actors"],
            ),
            run_config=RunConfig(
                name=name,
                storage_path=self._storage.path,
                storage_filesystem=self._storage.filesystem,
                failure_config=FailureConfig(max_failures=settings["max_failures"]),
                checkpoint_config=CheckpointConfig(num_to_keep=settings["num_to_keep"]),
                callbacks=[watch],
                stop=in_ray(TooManyFailed, "Stopper")(settings["max_failed_trials"]),
                verbose=0,
            ),
        )

    def _trainable(self) -> Any:
        from ray import tune

        amounts = dict(self._settings["resources_per_trial"])
        return tune.with_resources(_trial_function(self._call), tune.PlacementGroupFactory([amounts]))


def _trial_function(call: Trainable) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:  # its name is part of the sweep's record
        call.run(config)

    return trial


def _whole(tuner: Any, total: int) -> Any:
    """Return the results of a restored sweep in which every trial has come to an end; None if one has not."""
    try:
        results = tuner.get_results()
    except RuntimeError:
        return None
    ended = [result for result in results if result.error is None and (result.metrics or {}).get("done")]
    return results if len(ended) == len(results) >= total else None


def _set_limits(tuner: Any, settings: Mapping[str, Any], left: float | None, sweep: Path | None) -> None:
    """Give a restored sweep the limits of this attempt; Ray Tune has only those of the first one.

    Args:
        tuner: The restored tuner.
        settings: The job's.
        left: Seconds that are left of the time budget; None if there is none.
        sweep: The sweep's folder; None in a bucket.
    """
    inner = getattr(tuner, "_local_tuner", None)
    if inner is None:  # another Ray Tune: the limits of the first attempt hold
        return
    tuned, ran = inner._tune_config, inner._run_config  # noqa: SLF001 - Ray has no other way
    tuned.time_budget_s = None if left is None else max(1.0, left)
    unfinished = searching.unfinished_trials(sweep) if sweep else None
    tuned.max_concurrent_trials = None  # the search algorithm has the limit
    tuned.search_alg = searching.set_concurrency(tuned.search_alg, settings["max_concurrent_trials"], unfinished)
    ran.failure_config.max_failures = settings["max_failures"]
    ran.stop = in_ray(TooManyFailed, "Stopper")(settings["max_failed_trials"])
