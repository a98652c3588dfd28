"""The scores of a search as bars: where relevant hits end can be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.widgets import html
from superduper_nb.widgets.clean import shorten, spell, visible

__all__ = ["Bar", "ScorePlot", "score_plot"]

MOST: Final = 100
WIDTH: Final = 30
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Bar:
    """One hit: its rank, its score as text and as a share of the best, and what it is."""

    rank: int
    score: str
    share: float
    label: str


@dataclass(frozen=True, slots=True, repr=False)
class ScorePlot:
    """Scores as bars.

    Attributes
    ----------
    bars : tuple of Bar
        At most :data:`MOST`.
    gap : int
        After which rank the widest gap is; 0 where all are alike.
    count : int
        How many hits there are.
    """

    bars: tuple[Bar, ...]
    gap: int
    count: int

    def __repr__(self) -> str:
        return "\n".join([*(self._line(bar) for bar in self.bars), self._footer()])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        drawn = html.render("plot.html.j2", bars=self.bars, gap=self.gap, footer=self._footer())
        return {"text/plain": repr(self), "text/html": str(drawn)}

    def _line(self, bar: Bar) -> str:
        full, rest = divmod(round(bar.share * WIDTH * 8), 8)
        drawn = ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(WIDTH)
        ruled = "\n" + "─" * (WIDTH + 14) if bar.rank == self.gap else ""
        return f"{bar.rank:>3}  {drawn}  {bar.score:>7}  {' '.join(bar.label.split())}".rstrip() + ruled

    def _footer(self) -> str:
        shown = "" if len(self.bars) == self.count else f"{len(self.bars):,} shown of {self.count:,} hits · "
        return f"{shown}the widest gap comes after number {self.gap}" if self.gap else f"{shown}no gap"


def score_plot(documents: Sequence[Mapping[str, Any]], label: str | None = None) -> ScorePlot:
    """Return the scores of `documents` as bars.

    Parameters
    ----------
    documents : sequence of mapping
        The hits, best first; each has ``_score``.
    label : str, optional
        The field that tells what they are; default: the first that holds text.

    Raises
    ------
    InvalidInputError
        There is no hit, or none with that field.
    """
    if not documents:
        raise InvalidInputError("there is no score to plot: only a search by meaning ($like) has scores.")
    if label is not None and not any(label in document for document in documents):
        raise InvalidInputError(f"no document of the result has the field {label!r}.")
    name = label or _first_text(documents)
    scores = [float(document["_score"]) for document in documents[:MOST]]
    best = max((score for score in scores if math.isfinite(score)), default=1.0)
    bars = tuple(
        Bar(rank, f"{score:.3f}", _share(score, max(best, 1.0)), _label(document.get(name, "")))
        for rank, (score, document) in enumerate(zip(scores, documents, strict=False), 1)
    )
    return ScorePlot(bars, _gap(scores), len(documents))


def _first_text(documents: Sequence[Mapping[str, Any]]) -> str:
    return next((name for name, value in documents[0].items() if isinstance(value, str) and name[:1] != "_"), "_id")


def _label(value: Any) -> str:
    return visible(shorten(spell(value), 80))


def _share(score: float, full: float) -> float:
    return round(min(max(score / full, 0.0), 1.0), 4) if math.isfinite(score) else 0.0


def _gap(scores: Sequence[float]) -> int:
    """Return after which rank the widest gap comes; 0 where there is none."""
    steps = [(before - after, rank) for rank, (before, after) in enumerate(pairwise(scores), 1)]
    widest, rank = max(steps, default=(0.0, 0), key=lambda step: step[0])
    return rank if widest > 0 else 0
