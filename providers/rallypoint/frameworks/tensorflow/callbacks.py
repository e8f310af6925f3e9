"""Callbacks for ``Model.fit`` of Keras 3 and Keras 2: a retry continues, and metrics are live in the orchestrator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.tensorflow.folders import own_folder
from rallypoint.frameworks.tensorflow.session import tensorflow
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from collections.abc import Mapping


def backup_and_restore() -> Any:
    """Return a callback that saves the training after every epoch, and has ``fit`` go on after the last one saved.

    It is `BackupAndRestore` of Keras, wired to the stage. Under Keras 3 each backup is a checkpoint of the stage, whole
    or not at all, in any store: Keras's own callback overwrites its files in place, and a process that is killed in
    between leaves a backup that cannot be read. Under Keras 2 (``keras="legacy"``) it is the callback itself, which
    knows `MultiWorkerMirroredStrategy` and writes with ``tf.train.CheckpointManager``; every worker has to have it.

    The backup stays after the last epoch, so a retry of code that fails after ``fit`` trains nothing again. A model of
    Keras 3 has to be built before ``fit`` (give it an ``Input``). ``fit`` may be called once in a stage with it.

    Raises:
        StoreNotWritableError: Under Keras 2, the store is neither ``file://`` nor ``gs://``.
    """
    keras = tensorflow().keras
    if _is_legacy(keras):
        return keras.callbacks.BackupAndRestore(own_folder("backup"), delete_checkpoint=False)

    base: Any = keras.callbacks.Callback

    class StageBackup(base):  # type: ignore[misc]  # Keras has no types
        """Saves through the stage what `BackupAndRestore` writes."""

        def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
            if folder := stage().latest_checkpoint():
                self._in(folder).on_train_begin(logs)

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            stage().save_checkpoint(lambda folder: self._in(folder).on_epoch_end(epoch, logs), step=epoch + 1)

        def _in(self, folder: str) -> Any:
            backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
            backup.set_model(self.model)
            return backup

    return StageBackup()


def report_callback(*, every: int | None = None) -> Any:
    """Return a callback that reports epochs and metrics of ``fit`` to the stage. Rank 0 reports.

    Args:
        every: Also report the metrics after so many batches.
    """
    base: Any = tensorflow().keras.callbacks.Callback

    class StageReport(base):  # type: ignore[misc]  # Keras has no types
        """Reports to the stage."""

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            stage().report(step=epoch + 1, total=self.params.get("epochs"), unit="epoch", **(logs or {}))

        def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
            if every and (batch + 1) % every == 0:
                stage().report(**(logs or {}))

    return StageReport()


def _is_legacy(keras: Any) -> bool:
    return str(keras.callbacks.Callback.__module__).partition(".")[0] == "tf_keras"
