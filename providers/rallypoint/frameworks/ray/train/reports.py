"""In Ray Train's controller: turns ``ray.train.report`` of the workers into progress and checkpoints of the stage."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.train import snapshot
from rallypoint.worker import context
from rallypoint.worker.events import EventWriter
from rallypoint.worker.process import NotJSONError, to_json_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.frameworks.ray.storage import RayStorage

_STEPS = ("step", "epoch")  # metrics that say how far the training is
NAME = "train-controller"


def controller_reports(storage: RayStorage) -> Any:
    """Return the callback of the controller, an actor; it opens its event file there.

    Args:
        storage: Where Ray Train keeps its checkpoints.
    """
    base = importlib.import_module("ray.train").UserCallback

    class ControllerReports(base):  # type: ignore[misc, valid-type]  # Ray's class is known only where Ray is
        def __init__(self) -> None:
            self._reports: Reports | None = None

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002 - Ray's
            self._reports = self._reports or Reports(storage)
            self._reports.report(metrics[0] if metrics else {}, checkpoint)

    return ControllerReports()


class Reports:
    """Writes what the controller hears.

    Args:
        storage: Where Ray Train keeps its checkpoints.
    """

    def __init__(self, storage: RayStorage) -> None:
        self._storage = storage
        self._count = 0
        self._events = EventWriter(os.environ.get(context.EVENTS_URI), NAME)

    def report(self, metrics: Mapping[str, Any], checkpoint: Any) -> None:
        """Take in a report of the workers: rank 0's metrics, and the checkpoint that they made together."""
        self._count += 1
        step = next((metrics[name] for name in _STEPS if type(metrics.get(name)) is int), self._count)
        unit = "epoch" if metrics.get("step") is None and metrics.get("epoch") == step else "step"
        self._events.report(_json(metrics), {"step": step, "total": None, "unit": unit})
        if checkpoint is None:
            return
        name = Path(checkpoint.path).name
        uri = self._storage.child_uri(checkpoint.path)
        self._events.write("artifact", kind="checkpoint", name=name, uri=uri, step=step)
        if self._storage.is_folder:
            snapshot.keep(Path(checkpoint.path).parent)


def _json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = to_json_value(value)
        except NotJSONError:
            found[str(name)] = str(value)[:200]
    return found
