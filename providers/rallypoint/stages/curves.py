"""Numbers over steps, as few points as a small picture needs: what a stage's page draws.

Names and numbers come from a job: there are bounds on how many are kept, whatever it writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rallypoint.stages.text import one_line

MAX_CURVES = 40
MAX_POINTS = 400  # of one curve
_MAX_NAME = 120  # characters
_MARGIN = 2.0  # of a picture, so that its line is not cut


@dataclass
class Curve:
    """One quantity over steps.

    Args:
        name: What it is, such as ``loss``.
        points: Steps and values, in the order of steps, thinned out.
        newest: The last step and value, which is always there.
        not_finite: How many values were NaN or infinite; they are no points.
    """

    name: str
    points: list[tuple[float, float]] = field(default_factory=list)
    newest: tuple[float, float] | None = None
    not_finite: int = 0
    _every: int = 1
    _seen: int = 0

    def add(self, step: float, value: float) -> None:
        """Take in a value. A step that is smaller than the last one takes the place of all from it on: a restart."""
        if not math.isfinite(value) or not math.isfinite(step):
            self.not_finite += 1
            return
        if self.newest is not None and step < self.newest[0]:
            self.points = [point for point in self.points if point[0] < step]
        self.newest = (step, value)
        if self._seen % self._every == 0:
            self.points.append(self.newest)
        self._seen += 1
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self._every *= 2

    def all_points(self) -> list[tuple[float, float]]:
        """Return the points that were kept, and the newest."""
        newest = [self.newest] if self.newest is not None and self.newest not in self.points[-1:] else []
        return self.points + newest

    @property
    def low(self) -> float:
        """The smallest value."""
        return min((value for _, value in self.all_points()), default=0.0)

    @property
    def high(self) -> float:
        """The largest value."""
        return max((value for _, value in self.all_points()), default=0.0)

    def polyline(self, width: float, height: float) -> str:
        """Return the curve in a picture of this size, as SVG's ``points``: text of numbers only."""
        points = self.all_points()
        first, last = (points[0][0], points[-1][0]) if points else (0.0, 0.0)
        across = [_share(step, first, last) for step, _ in points]
        up = [_share(value, self.low, self.high) for _, value in points]
        return " ".join(
            f"{_MARGIN + x * (width - 2 * _MARGIN):.1f},{height - _MARGIN - y * (height - 2 * _MARGIN):.1f}"
            for x, y in zip(across, up, strict=True)
        )


class Curves:
    """Curves by name.

    Attributes:
        left_out: Names that came when there were `MAX_CURVES` already, at the most as many as are shown.
    """

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self._curves: dict[str, Curve] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._curves

    def add(self, name: str, step: float, value: float) -> None:
        """Take in a value of the curve of this name."""
        if name not in self._curves:
            if len(self._curves) >= MAX_CURVES:
                if len(self.left_out) < MAX_CURVES:
                    self.left_out.add(name[:_MAX_NAME])
                return
            self._curves[name] = Curve(one_line(name)[:_MAX_NAME] or "(no name)")
        self._curves[name].add(step, value)

    def sorted(self) -> list[Curve]:
        """Return the curves by name."""
        return sorted(self._curves.values(), key=lambda curve: curve.name)


def _share(value: float, low: float, high: float) -> float:
    """Return where a value lies between two others, from 0 to 1; halved, because a difference may overflow."""
    span = high / 2 - low / 2
    return (value / 2 - low / 2) / span if span > 0 else 0.5
