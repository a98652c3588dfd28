"""The curves of a training as small charts: SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.widgets.clean import shorten, visible

__all__ = ["Chart", "Line", "charts"]

WIDTH: Final = 180
HEIGHT: Final = 56
_MARGIN: Final = 3
_MOST_CHARTS: Final = 4
_MOST_LINES: Final = 4
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name, its last value as text, and its points as SVG wants them."""

    name: str
    last: str
    points: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What is measured in one unit: a loss in training and in validation, say.

    Attributes
    ----------
    name : str
        What all lines are of.
    lines : tuple of Line
        At most four.
    low, high : str
        The ends of the scale.
    width, height : int
        In pixels.
    """

    name: str
    lines: tuple[Line, ...]
    low: str
    high: str
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def label(self) -> str:
        """What it shows, in words, for those who don't see it."""
        told = ", ".join(f"{line.name} {line.last}" for line in self.lines)
        return f"{self.name} between {self.low} and {self.high}; last: {told}"


def charts(curves: Iterable[Mapping[str, Any]]) -> tuple[Chart, ...]:
    """Draw curves, ``{"name", "steps", "values"}`` each; those whose names end alike share a chart."""
    together: dict[str, dict[str, list[Point]]] = {}
    for curve in curves:
        pairs = zip(map(float, curve["steps"]), map(float, curve["values"]), strict=False)
        if points := [pair for pair in pairs if math.isfinite(pair[1])]:
            name = visible(shorten(str(curve["name"]), 40))
            together.setdefault(name.rpartition(".")[2], {})[name] = points
    found = [_chart(name, dict(list(lines.items())[:_MOST_LINES])) for name, lines in together.items()]
    return tuple(found[:_MOST_CHARTS])


def _chart(name: str, lines: Mapping[str, Sequence[Point]]) -> Chart:
    steps, values = zip(*(point for points in lines.values() for point in points), strict=True)
    across, up = _scale(steps, WIDTH), _scale(values, HEIGHT)
    drawn = tuple(
        Line(each, f"{points[-1][1]:.4g}", " ".join(f"{across(x):.1f},{HEIGHT - up(y):.1f}" for x, y in points))
        for each, points in lines.items()
    )
    return Chart(name, drawn, f"{min(values):.3g}", f"{max(values):.3g}")


def _scale(values: Sequence[float], size: int) -> Any:
    low, high = min(values), max(values)
    return lambda value: _MARGIN + (value - low) / ((high - low) or 1.0) * (size - 2 * _MARGIN)
