"""The trials of a search as a table and as a picture, for people."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import math
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.worker.stage import Stage

FINISHED = "finished"  # its code came to its end
STOPPED = "stopped"  # by the scheduler or the time budget
FAILED = "failed"
_COLORS = {FINISHED: "#1f6f8b", STOPPED: "#99a8b2", FAILED: "#c8553d"}
_MAX_PARAMETERS = 8  # that one picture has room for
_DECADE = 30  # a wider range of a parameter is drawn on a logarithmic scale


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial.

    Args:
        trial: Its id.
        status: ``finished``, ``stopped`` or ``failed``.
        config: Its parameters.
        metrics: The last value of each metric.
        objective: The last value of the metric that is optimised; None if there is none.
        reports: How many reports it made.
        seconds: How long it ran.
        returned: What its code returned.
        failure: Why it failed.
    """

    trial: str
    status: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    objective: float | None = None
    reports: int = 0
    seconds: float | None = None
    returned: Any = None
    failure: Mapping[str, Any] | None = None


def write_table(rows: Sequence[TrialRow], *, metric: str, mode: str, stage: Stage) -> dict[str, Any]:
    """Save the trials as artifacts: ``trials.csv``, ``trials.json`` and, where matplotlib is, ``trials.png``.

    Returns:
        The URIs of the ``table`` and its ``picture`` (None without matplotlib).
    """
    with tempfile.TemporaryDirectory(prefix="rallypoint-") as folder:
        table, whole, picture = (Path(folder, f"trials.{kind}") for kind in ("csv", "json", "png"))
        write_csv(rows, table)
        everything = {"metric": metric, "mode": mode, "trials": [asdict(row) for row in rows]}
        whole.write_text(json.dumps(everything, indent=1), encoding="utf-8")
        stage.save_artifact(whole)
        found: dict[str, Any] = {"table": stage.save_artifact(table), "picture": None}
        if importlib.util.find_spec("matplotlib") is None:
            print("no picture of the trials: matplotlib is not installed", flush=True)  # noqa: T201 - the stage's log
        elif any(row.objective is not None for row in rows):
            draw(rows, metric=metric, mode=mode, path=picture)
            found["picture"] = stage.save_artifact(picture)
        return found


def write_csv(rows: Sequence[TrialRow], path: Path) -> None:
    """Write one line for each trial: status, parameters, metrics, reports, seconds, and the error of a failed one."""
    parameters = list(dict.fromkeys(name for row in rows for name in row.config))
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    titles = [f"metrics/{name}" if name in parameters else name for name in metrics]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "status", *parameters, *titles, "reports", "seconds", "error"])
        for row in rows:
            error = row.failure or {}
            told = ": ".join(str(error[key]).partition("\n")[0] for key in ("exception", "message") if error.get(key))
            values = [*(row.config.get(name) for name in parameters), *(row.metrics.get(name) for name in metrics)]
            writer.writerow([row.trial, row.status, *map(_cell, values), row.reports, row.seconds, _cell(told)])


def draw(rows: Sequence[TrialRow], *, metric: str, mode: str, path: Path) -> None:
    """Draw the metric by trial, with the best so far, and against each parameter."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    shown = [(number, row, row.objective) for number, row in enumerate(rows, start=1) if row.objective is not None]
    names = list(dict.fromkeys(name for row in rows for name in row.config))
    varied = [name for name in names if len({str(row.config.get(name)) for row in rows}) > 1][:_MAX_PARAMETERS]
    columns = min(3, max(1, len(varied) + 1))
    lines = math.ceil((len(varied) + 1) / columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(4.6 * columns, 3.4 * lines), squeeze=False)
    panels = list(grid.flat)
    _scatter(panels[0], [number for number, _, _ in shown], [row for _, row, _ in shown])
    best, so_far = math.inf if mode == "min" else -math.inf, []
    for _, row, value in shown:
        if row.status != FAILED:
            best = min(best, value) if mode == "min" else max(best, value)
        so_far.append(best)
    panels[0].step([number for number, _, _ in shown], so_far, where="post", color="#222222", lw=1, label="best so far")
    panels[0].set(xlabel="trial", ylabel=metric)
    panels[0].legend(frameon=False, fontsize=8)
    for panel, name in zip(panels[1:], varied, strict=False):
        values = [row.config.get(name) for _, row, _ in shown]
        numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
        _scatter(
            panel, numbers if len(numbers) == len(values) else list(map(str, values)), [row for _, row, _ in shown]
        )
        if len(numbers) == len(values) and min(numbers) > 0 and max(numbers) / min(numbers) > _DECADE:
            panel.set_xscale("log")
        panel.set(xlabel=name, ylabel=metric)
    for panel in panels[len(varied) + 1 :]:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _scatter(panel: Any, values: Sequence[Any], rows: Sequence[TrialRow]) -> None:
    for status, color in _COLORS.items():
        points = [(value, row.objective) for value, row in zip(values, rows, strict=True) if row.status == status]
        if points:
            panel.scatter(*zip(*points, strict=True), s=22, color=color, label=status, zorder=3)


def _cell(value: Any) -> Any:
    """Return a value as a cell; a text that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@"}:
        return f"'{value}"
    return value
