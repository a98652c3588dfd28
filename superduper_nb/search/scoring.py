"""The nearest in what an index shows at one moment: all of it, by codes, or a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from superduper_nb.search.blocks import near_rows
from superduper_nb.search.ids import sort_key, unpacked_id
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import Rows, View
from superduper_nb.search.scan import CALIBRATED_N, Slots

__all__ = ["NOTHING", "Hits", "Scorer"]

_GATHER_SHARE: Final = 0.25
_SCAN_GAIN: Final = 32
"""One candidate of a scan costs about as much as so many rows of the exact way."""


@dataclass(frozen=True, slots=True)
class Hits:
    """The best of an index for one query, best first, ties by ``_id``."""

    ids: list[Any]
    scores: Floats
    distances: Floats | None
    kind: str = "exact"
    candidates: int = 0


NOTHING: Final = Hits([], np.empty(0), None)


class Scorer:
    """Finds the nearest: candidates in float32 or by codes, their order in float64.

    Parameters
    ----------
    measure : Measure
        How near two vectors are.
    options : IndexOptions
        Whether codes are used where they gain little.
    """

    def __init__(self, measure: Measure, options: IndexOptions) -> None:
        self._measure, self._options = measure, options

    def nearest(self, view: View, query: Floats, n: int, *, exact: bool) -> Hits:
        """Return the `n` nearest of all: by codes, unless that would not be less than everything."""
        if not exact and (found := self._scanned(view, query[None], n)[0]) is not None:
            return found
        return self.among(view, None if view.alive is None else np.flatnonzero(view.alive), query, n)

    def many(self, view: View, queries: Sequence[Floats], n: int, *, exact: bool) -> list[Hits]:
        """Return the `n` nearest of each query: by codes where that is quicker, else by products of matrices."""
        found = [None] * len(queries) if exact or not queries else self._scanned(view, np.stack(queries), n)
        left = [query for query, hits in zip(queries, found, strict=True) if hits is None]
        rest = iter(self._products(view, left, n))
        return [next(rest) if hits is None else hits for hits in found]

    def _products(self, view: View, queries: Sequence[Floats], n: int) -> list[Hits]:
        """Score every row for each query, by products of matrices."""
        if not queries:
            return []
        rows, count = view.rows, view.count
        near = near_rows(np.stack(queries), rows.vectors[:count], rows.norms[:count], n, self._measure, view.alive)
        return [
            self._ranked(rows, slots, query, n, "exact", view.living)
            for slots, query in zip(near, queries, strict=True)
        ]

    def among(self, view: View, slots: Slots | None, query: Floats, n: int) -> Hits:
        """Return the `n` nearest of these slots, or of all there are, dead ones included."""
        rows, count = view.rows, view.count
        if slots is not None and not len(slots):
            return NOTHING
        if slots is not None and len(slots) <= _GATHER_SHARE * count:
            scores, error = self._measure.rough(query, rows.vectors[slots], rows.norms[slots])
        else:  # read in one go, also those that do not count: quicker than to gather many
            scores, error = self._measure.rough(query, rows.vectors[:count], rows.norms[:count])
            if slots is not None:
                scores, error = scores[slots], error[slots] if isinstance(error, np.ndarray) else error
        near = _candidates(scores, error, n)
        return self._ranked(rows, near if slots is None else slots[near], query, n, "exact", len(scores))

    def _scanned(self, view: View, queries: Floats, n: int) -> Sequence[Hits | None]:
        """Score, for each query, what the codes hold to be near, and the tail; None where all is to be compared."""
        if not view.segments or view.depth is None:
            return [None] * len(queries)
        depth = view.depth + 3 * max(0, n - CALIBRATED_N)
        if depth * len(view.segments) * _SCAN_GAIN > view.segments[-1].stop and not self._options.coded:
            return [None] * len(queries)
        near = np.hstack([segment.search(queries, depth) for segment in view.segments])
        return [self._of_codes(view, row, query, n, depth) for row, query in zip(near, queries, strict=True)]

    def _of_codes(self, view: View, near: Slots, query: Floats, n: int, depth: int) -> Hits | None:
        """Return the best of what codes hold to be near; None where most of that is dead."""
        coded = view.segments[-1].stop
        near = near[near < coded]  # what was added since is not of this moment
        if view.alive is not None:
            near = near[view.alive[near]]
        if len(near) < min(coded, max(n, depth // 2)):
            return None
        if coded < view.count:
            near = np.concatenate([near, self._tail(view, coded, query, n)])
        return self._ranked(view.rows, near, query, n, "scan", len(near))

    def _tail(self, view: View, start: int, query: Floats, n: int) -> Slots:
        """Return the slots of the best of the rows that have no codes yet."""
        rows, part = view.rows, slice(start, view.count)
        scores, error = self._measure.rough(query, rows.vectors[part], rows.norms[part])
        if view.alive is None:
            return _candidates(scores, error, n) + start
        slots = np.flatnonzero(view.alive[part])
        error = error[slots] if isinstance(error, np.ndarray) else error
        return slots[_candidates(scores[slots], error, n)] + start

    def _ranked(self, rows: Rows, slots: Slots, query: Floats, n: int, kind: str, candidates: int) -> Hits:
        """Score candidates in float64, and put the best `n` in order."""
        if not len(slots):
            return NOTHING
        scores, distances = self._measure.exact(query, rows.vectors[slots])
        if len(slots) > 2 * n:  # fewer identifiers to compare
            best = np.flatnonzero(scores >= np.partition(scores, len(scores) - n)[len(scores) - n])
            slots, scores, distances = slots[best], scores[best], None if distances is None else distances[best]
        ids = [unpacked_id(rows.ids[slot]) for slot in slots.tolist()]
        order = _order(scores, ids)[:n]
        kept = None if distances is None else distances[order]
        return Hits([ids[i] for i in order], scores[order], kept, kind, candidates)


def _order(scores: Floats, ids: list[Any]) -> list[int]:
    """Return the positions, best first, ties by identifier."""
    order = np.argsort(-scores, kind="stable")
    if (scores[order[1:]] != scores[order[:-1]]).all():
        return list(order.tolist())
    values = scores.tolist()
    return sorted(range(len(ids)), key=lambda i: (-values[i], sort_key(ids[i])))


def _candidates(scores: Floats, error: Floats | float, n: int) -> Slots:
    """Return positions that are sure to hold the `n` best and all that tie with the last of them."""
    if n >= len(scores):
        return np.arange(len(scores))
    surely = scores - error
    threshold = np.partition(surely, len(surely) - n)[len(surely) - n]
    return np.flatnonzero(scores + error >= threshold)
