"""``tf.train.CheckpointManager`` on a stage, for loops that are not Keras's."""

from __future__ import annotations

import tempfile
from typing import Any

from rallypoint.frameworks.tensorflow.folders import own_folder
from rallypoint.frameworks.tensorflow.session import tensorflow
from rallypoint.worker import process
from rallypoint.worker.stage import stage


def checkpoint_manager(checkpoint: Any, *, keep: int = 3) -> Any:
    """Return a ``tf.train.CheckpointManager`` whose checkpoints belong to the stage.

    ``restore_or_initialize()`` restores the newest checkpoint of an earlier attempt, and ``save()`` keeps another one.
    With `MultiWorkerMirroredStrategy` every worker has to call both, because saving reads variables of all of them:
    rank 0's files are the checkpoint, and what the others write goes to a temporary folder. With
    `ParameterServerStrategy` the parameter servers write them, so their hosts have to see the store.

    Args:
        checkpoint: A ``tf.train.Checkpoint`` of the model, the optimizer and the counters.
        keep: How many to keep.

    Raises:
        StoreNotWritableError: The store is neither ``file://`` nor ``gs://``.
    """
    tf = tensorflow()
    kept = own_folder("checkpoints")
    leads = stage().rank == 0

    base: Any = tf.train.CheckpointManager

    class StageCheckpointManager(base):  # type: ignore[misc]  # TensorFlow has no types
        """Restores what rank 0 saved, and tells the orchestrator what it saves."""

        def restore_or_initialize(self) -> str | None:
            newest: str | None = tf.train.latest_checkpoint(kept)
            if newest is not None:
                self.checkpoint.restore(newest)
            return newest

        def save(self, *args: Any, **kwargs: Any) -> Any:
            path = super().save(*args, **kwargs)
            if leads and path:
                name = str(path).rpartition("/")[2]
                number = name.rpartition("-")[2]
                step = int(number) if number.isdigit() else None
                process.writer().write("artifact", kind="checkpoint", name=name, uri=path, step=step)
            return path

    folder = kept if leads else tempfile.mkdtemp(prefix="rallypoint-")
    return StageCheckpointManager(checkpoint, folder, max_to_keep=keep)
