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
from superduper_nb.search.scan import CALIBRATED_N, Flags, Slots, looked_up

__all__ = ["NOTHING", "Hits", "Scorer"]

_GATHER_SHARE: Final = 0.25
_SCAN_GAIN: Final = 32
"""One candidate of a scan costs about as much as so many rows of the exact way."""
_DEEPER: Final = 4


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
            self._ranked(rows, slots, query, n, "exact", view.living)[0]
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
        return self._ranked(rows, near if slots is None else slots[near], query, n, "exact", len(scores))[0]

    def _scanned(self, view: View, queries: Floats, n: int) -> list[Hits | None]:
        """Score, for each query, what the codes hold to be near, and the tail; None where all is to be compared."""
        found: list[Hits | None] = [None] * len(queries)
        left, depth = list(range(len(queries))), (view.depth or 0) + 3 * max(0, n - CALIBRATED_N)
        while left and view.segments and view.depth is not None and self._gains(view, depth):
            near, deep = looked_up(view.segments, queries[left], depth)
            for j, i in enumerate(left):
                found[i] = self._of_codes(view, near[j], deep[j], queries[i], n)
            if depth >= view.segments[-1].stop:
                break
            left, depth = [i for i in left if found[i] is None], _DEEPER * depth
        return found

    def _gains(self, view: View, depth: int) -> bool:
        return self._options.coded or depth * len(view.segments) * _SCAN_GAIN <= view.segments[-1].stop

    def _of_codes(self, view: View, near: Slots, deep: Flags, query: Floats, n: int) -> Hits | None:
        """Return the best of what codes hold to be near; None where there may be better ones behind it."""
        coded, seen = view.segments[-1].stop, len(near)
        if view.segments[-1].overgrown:  # what was added since is not of this moment
            known = near < coded
            near, deep, seen = near[known], deep[known], int(known.sum())
        if view.alive is not None:
            alive = view.alive[near]
            near, deep = near[alive], deep[alive]
        if len(near) < n and seen < coded:
            return None
        if coded < view.count:
            tail = self._tail(view, coded, query, n)
            near, deep = np.concatenate([near, tail]), np.concatenate([deep, np.zeros(len(tail), dtype=bool)])
        hits, order = self._ranked(view.rows, near, query, n, "scan", len(near))
        return None if deep[order].any() else hits

    def _tail(self, view: View, start: int, query: Floats, n: int) -> Slots:
        """Return the slots of the best of the rows that have no codes yet."""
        rows, part = view.rows, slice(start, view.count)
        scores, error = self._measure.rough(query, rows.vectors[part], rows.norms[part])
        if view.alive is None:
            return _candidates(scores, error, n) + start
        slots = np.flatnonzero(view.alive[part])
        error = error[slots] if isinstance(error, np.ndarray) else error
        return slots[_candidates(scores[slots], error, n)] + start

    def _ranked(
        self, rows: Rows, slots: Slots, query: Floats, n: int, kind: str, candidates: int
    ) -> tuple[Hits, Slots]:
        """Score candidates in float64; return the best `n` in order, and which of the candidates they are."""
        if not len(slots):
            return NOTHING, slots
        scores, distances = self._measure.exact(query, rows.vectors.take(slots, axis=0))
        order, ids = _in_order(scores, slots, rows.ids, n)
        return Hits(ids, scores[order], None if distances is None else distances[order], kind, candidates), order


def _in_order(scores: Floats, slots: Slots, ids: list[Any], n: int) -> tuple[Slots, list[Any]]:
    """Return which are the best `n`, best first, ties by identifier; and their identifiers."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = len(order) if n >= len(order) else n + int(np.count_nonzero(ranked[n:] == ranked[n - 1]))
    order, ranked = order[:last], ranked[:last]
    found = [unpacked_id(ids[slot]) for slot in slots[order].tolist()]
    if (ranked[1:] == ranked[:-1]).any():
        values = ranked.tolist()
        places = sorted(range(last), key=lambda i: (-values[i], sort_key(found[i])))
        order, found = order[places], [found[i] for i in places]
    return order[:n], found[:n]


def _candidates(scores: Floats, error: Floats | float, n: int) -> Slots:
    """Return positions that are sure to hold the `n` best and all that tie with the last of them."""
    if n >= len(scores):
        return np.arange(len(scores))
    surely = scores - error
    threshold = np.partition(surely, len(surely) - n)[len(surely) - n]
    return np.flatnonzero(scores + error >= threshold)
