"""In each trial of Ray Tune: calls the entry with the sampled values, and gives it the trial's own ``stage()``."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.train.worker import entry_words
from rallypoint.worker import context, process
from rallypoint.worker import stage as worker_stage
from rallypoint.worker.entry import load_function, run_entry
from rallypoint.worker.events import EventWriter
from rallypoint.worker.stage import Stage
from rallypoint.worker.storage import Storage, open_storage, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TRIALS = "trials"  # below the generation's data: a folder for each trial
RETURNED = "returned"  # in it: what the trial returned, once it has come to its own end
FAILED = "failed"  # in it: what failed last
_RECORD = "record.json"
_ALONE = context.Placement(rank=0, local_rank=0, world_size=1, restart=0)


class ExitError(RuntimeError):
    """A script ended itself with an exit code that is none of success."""


class TrialStage(Stage):
    """What user code sees of its stage in a trial.

    Args:
        context: The stage.
        data_uri: The trial's own part of the generation's data.
        metric: The metric that is optimised: a report without it waits for the next one.
    """

    def __init__(self, context: context.StageContext | None, data_uri: str, metric: str) -> None:
        super().__init__(context, _ALONE, data_uri)
        self._metric = metric
        self._waiting: dict[str, Any] = {}
        self._draft: str | None = None  # a checkpoint that waits for the report that it belongs to
        self._fetched: str | None = None
        self.last: dict[str, Any] = {}
        self.answer: Any = None

    @property
    def _events(self) -> EventWriter:
        return EventWriter(None, "trial")  # the driver tells of the trials

    def latest_checkpoint(self) -> str | None:
        """Return the local folder of the trial's newest checkpoint, or None if there is none to continue from."""
        if self._draft is not None:
            return self._draft
        checkpoint = importlib.import_module("ray.tune").get_checkpoint()
        if checkpoint is None:
            return None
        self._fetched = _replace_folder(self._fetched, tempfile.mkdtemp(prefix="rallypoint-"))
        return str(checkpoint.to_directory(self._fetched))

    def save_checkpoint(
        self, write: Callable[[str], object], *, step: int | None = None, keep: int | None = None
    ) -> str | None:
        """Keep a checkpoint of the trial: it is saved with the next report. `keep` is the job's.

        Returns:
            None: where it lies is known when it was reported.
        """
        del keep
        if step is not None and step < 0:
            msg = f"save_checkpoint(step=…): got {step}, expected 0 or more"
            raise ValueError(msg)
        folder = tempfile.mkdtemp(prefix="rallypoint-")
        try:
            write(folder)
        except BaseException:
            shutil.rmtree(folder)  # a disk that it filled has room again
            raise
        self._draft = _replace_folder(self._draft, folder)
        return None

    def report(self, *, step: int | None = None, total: int | None = None, unit: str = "step", **metrics: Any) -> None:
        """Report metrics of the trial; each report with the optimised metric is one to the scheduler.

        Args:
            step: How much is done; kept as the metric ``step``.
            total: How much there is to do; Ray Tune has no use for it.
            unit: What is counted; nor for it.
            **metrics: Names and numbers.
        """
        del total, unit
        self._waiting |= process.to_json_value(metrics)
        if step is not None:
            self._waiting["step"] = int(step)
        if self._metric in metrics:
            self.flush()

    def flush(self) -> None:
        """Report what waits, with the checkpoint that waits."""
        if not self._waiting and self._draft is None:
            return
        tune = importlib.import_module("ray.tune")
        checkpoint = tune.Checkpoint.from_directory(self._draft) if self._draft else None
        metrics, self._waiting = self._waiting, {}
        self.last = {**self.last, **metrics}
        tune.report(dict(self.last), checkpoint=checkpoint)
        self._draft = _replace_folder(self._draft, None)

    def finish(self, value: Any) -> None:
        """Report what is left, and the metric if the code never reported it but returned it."""
        if isinstance(value, dict) and self._metric in value and self._metric not in {**self.last, **self._waiting}:
            self._waiting[self._metric] = value[self._metric]
        self.flush()

    def result(self, value: Any) -> None:
        """Set what the trial returns, for scripts and modules."""
        self.answer = process.to_json_value(value)

    def link(self, name: str, url: str) -> None:
        """Do nothing: a trial has no place in the orchestrator's UI."""


@dataclass(frozen=True)
class Trainable:
    """What a trial runs; it travels by value.

    Args:
        entry: The words of `run_entry`.
        function: The file of a pickled function, if the entry is one.
        constants: Parameters that are the same in every trial.
        metric: The metric that is optimised.
    """

    entry: tuple[str, ...]
    function: bytes | None
    constants: Mapping[str, Any]
    metric: str

    def run(self, config: Mapping[str, Any]) -> None:
        """Run one trial.

        Args:
            config: The sampled values.
        """
        tune = importlib.import_module("ray.tune")
        logging.getLogger("ray.train").setLevel(logging.WARNING)  # a line per checkpoint
        trial = tune.get_context().get_trial_id()
        found = context.StageContext.from_environment()
        stage = TrialStage(found, trial_uri(found, trial), self.metric)
        storage = open_storage(stage.data_uri)
        done = read_record(storage, RETURNED)
        if done is not None and self.metric in done["metrics"]:
            tune.report(done["metrics"])  # it had ended, and the sweep's record did not know it yet
            return
        worker_stage.install(stage)
        try:
            value = process.to_json_value(self._call({**self.constants, **config}))
            value = stage.answer if value is None else value
            stage.finish(value)
            write_record(storage, RETURNED, {"value": value, "metrics": stage.last})
        except Exception as error:
            write_record(storage, FAILED, {"t": time.time(), "config": dict(config), **process.describe(error)})
            raise
        finally:
            worker_stage.install(None)

    def _call(self, values: Mapping[str, Any]) -> Any:
        words = entry_words(self.entry, self.function)
        if words[0] == "function":
            function, args, kwargs = load_function(words[1])
            Path(words[1]).unlink()
            return function(*args, **{**kwargs, **values})
        try:
            return run_entry([*words, *(f"--{name}={_word(value)}" for name, value in values.items())])
        except SystemExit as end:
            # Ray Tune ends a trial that a scheduler stopped with a SystemExit, too; its code is 0.
            if end.code in {None, 0}:
                return None
            msg = f"the code called sys.exit({end.code!r})"
            raise ExitError(msg) from end


def trial_uri(found: context.StageContext | None, trial: str) -> str:
    """Return where the data of a trial lies."""
    root = found.data_uri if found else "file://" + tempfile.mkdtemp(prefix="rallypoint-local-")
    return f"{root}/{TRIALS}/{trial}"


def write_record(storage: Storage, name: str, value: Mapping[str, Any]) -> None:
    """Keep a JSON object of a trial, whole or not at all."""
    with scratch_folder(storage) as folder:
        Path(folder, _RECORD).write_text(json.dumps(value), encoding="utf-8")
        storage.commit(folder, name)


def read_record(storage: Storage, name: str) -> dict[str, Any] | None:
    """Return a JSON object of a trial; None if there is none."""
    try:
        folder = storage.fetch(name)
    except FileNotFoundError:
        return None
    value: dict[str, Any] = json.loads(Path(folder, _RECORD).read_text(encoding="utf-8"))
    return value


def _replace_folder(old: str | None, new: str | None) -> str | None:
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return new


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
