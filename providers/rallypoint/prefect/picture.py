"""A picture of how a stage's metrics go, as SVG: no plotting package in the process of the flow."""

from __future__ import annotations

import base64
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rallypoint.stages.curves import Curve

_WIDTH, _HEIGHT, _MARGIN = 640, 150, 34
_LEFT, _TOP, _INNER = 70, 16, 108
_POINTS = 100
_LINE, _GRID, _TEXT = "#2563eb", "#d4d4d8", "#52525b"


def draw(curves: Sequence[Curve], title: str) -> str:
    """Return an SVG picture with a panel for each curve.

    Args:
        curves: The curves.
        title: The picture's title.
    """
    height = _MARGIN + len(curves) * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"',
        f' font-family="sans-serif" font-size="12" fill="{_TEXT}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    parts += [_panel(_thin(curve), top=_MARGIN + row * _HEIGHT) for row, curve in enumerate(curves)]
    return "".join((*parts, "</svg>"))


def data_uri(svg: str) -> str:
    """Return a picture as an address that holds all of it."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode(errors="replace")).decode()


def _thin(curve: Curve) -> Curve:
    """Return the curve with as many points as the picture can show: its address is shown as text, too."""
    every = 1 + len(curve.points) // _POINTS
    return replace(curve, points=curve.points[::every])


def _panel(curve: Curve, *, top: int) -> str:
    points = curve.all_points()
    first, last = (points[0][0], points[-1][0]) if points else (0.0, 0.0)
    newest = points[-1][1] if points else 0.0
    width, right, bottom = _WIDTH - _LEFT - 16, _WIDTH - 16, _TOP + _INNER
    return (
        f'<g transform="translate(0,{top})">'
        f'<path d="M{_LEFT} {_TOP} V{bottom} H{right}" fill="none" stroke="{_GRID}"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 8}" text-anchor="end">{curve.high:.4g}</text>'
        f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">{curve.low:.4g}</text>'
        f'<text x="{_LEFT}" y="{bottom + 16}">{first:g}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{last:g}</text>'
        f'<text x="{right}" y="{_TOP - 2}" text-anchor="end">{escape(curve.name)}: {newest:.4g}</text>'
        f'<polyline transform="translate({_LEFT},{_TOP})" points="{curve.polyline(width, _INNER)}" fill="none" '
        f'stroke="{_LINE}" stroke-width="2"/></g>'
    )
