"""What has been fitted, kept in the store as soon as it is there: models and scores, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.ml import paths
from rallypoint.worker import process
from rallypoint.worker.storage import Storage, open_storage, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from rallypoint.worker.stage import Stage

FOLDER = "spark-ml"  # below the generation's data: a folder for each pipeline, in it one for each fit
_SCORE = "score.json"
_SUCCESS = "_SUCCESS"  # Spark's committer writes it last, on the driver
_PARTS = "part-"


class NotSavedError(RuntimeError):
    """A model or table cannot be saved, or its files are not where the driver looks for them."""


class Kept:
    """The results of a pipeline's fits.

    Args:
        stage: The stage.
        name: The pipeline's name.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        self._prefix = f"{FOLDER}/{name}"
        self._storage: Storage = open_storage(stage.data_uri)
        self._there = set(self._storage.names(self._prefix))

    def model(self, key: str) -> Any | None:
        """Return a fitted model of an earlier attempt, None if there is none."""
        name = f"fit-{key}"
        if name not in self._there:
            return None
        folder = Path(self._storage.fetch(f"{self._prefix}/{name}"))
        from pyspark.ml import PipelineModel

        return PipelineModel.load(paths.of_folder(folder)).stages[0]

    def score(self, key: str) -> float | None:
        """Return a metric of an earlier attempt, None if there is none."""
        name = f"score-{key}"
        if name not in self._there:
            return None
        path = Path(self._storage.fetch(f"{self._prefix}/{name}")) / _SCORE
        return float(json.loads(path.read_text(encoding="utf-8"))["metric"])

    def keep_model(self, key: str, model: Any, step: int) -> None:
        """Keep a fitted model.

        Args:
            key: The fit's name.
            model: What was fitted.
            step: How many fits are done, for the record.

        Raises:
            NotSavedError: It cannot be saved.
        """
        from pyspark.ml import PipelineModel

        # A pipeline of one stage: Spark then reads it again as what it is, whichever class that is.
        self._keep(f"fit-{key}", lambda folder: save_model(PipelineModel([model]), folder), step)

    def keep_score(self, key: str, metric: float, step: int) -> None:
        """Keep a metric, as `keep_model`."""
        text = json.dumps({"metric": metric})
        self._keep(f"score-{key}", lambda folder: (folder / _SCORE).write_text(text, encoding="utf-8"), step)

    def _keep(self, name: str, write: Callable[[Path], object], step: int) -> None:
        with scratch_folder(self._storage) as folder:
            write(Path(folder))
            uri = self._storage.commit(folder, f"{self._prefix}/{name}")
        process.writer().write("artifact", kind="checkpoint", name=name, uri=uri, step=step)


def save_model(model: Any, folder: Path) -> None:
    """Write a ``PipelineModel`` into a folder of the driver's host.

    Raises:
        NotSavedError: A stage of it has no writer, or the executors wrote to disks that the driver does not see.
    """
    from pyspark.ml.util import MLWritable

    for stage in model.stages:
        if not isinstance(stage, MLWritable):
            msg = (
                f"got the fitted stage {type(stage).__qualname__}, which Spark cannot save, expected one with a "
                "writer: give its class the mix-ins DefaultParamsWritable and DefaultParamsReadable of pyspark.ml.util"
            )
            raise NotSavedError(msg)
    model.write().overwrite().save(paths.of_folder(folder))
    check_parts(folder)


def check_parts(folder: Path) -> None:
    """Make sure that every part is here: executors write them, and the driver alone says that all is well.

    Raises:
        NotSavedError: There is a part that is not.
    """
    marks = sorted(folder.rglob(_SUCCESS))
    empty = [mark.parent for mark in marks if not any(mark.parent.glob(f"{_PARTS}*"))]
    if empty or not marks:
        where = empty[0].relative_to(folder) if empty else "."
        msg = (
            f"got {folder} without the files of its part {where}, expected those that the executors wrote: "
            "they run on hosts that do not see this folder. Use a store in a folder that all hosts see (file://), or "
            "a master of this host"
        )
        raise NotSavedError(msg)
