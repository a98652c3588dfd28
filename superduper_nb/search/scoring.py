"""The nearest in what an index shows at one moment: all of it, by codes, or a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from toolz import partition_all

from superduper_nb.search.blocks import near_rows
from superduper_nb.search.hits import NOTHING, Candidates, Hits, best, best_of_each
from superduper_nb.search.measures import Floats, Measure, tame
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import View
from superduper_nb.search.scan import CALIBRATED_N, Found, Searched, Slots, looked_up
from superduper_nb.search.subset import Places

__all__ = ["Scorer"]

_GATHER_SHARE: Final = 0.25
_SCAN_GAIN: Final = 32
"""One candidate of a scan costs about as much as so many rows of the exact way."""
_DEEPER: Final = 4
_MASKED: Final = 24
"""To gather a row and compare it takes about as long as to scan the codes of so many."""
_TOGETHER: Final = 16
_ROWS: Final = 4096
"""Queries whose candidates are scored at a time, and candidates of them all: so many fit the cache."""


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
        return self._compared(view, None if view.alive is None else np.flatnonzero(view.alive), query, n)

    def among(self, view: View, places: Places, query: Floats, n: int, *, exact: bool) -> Hits:
        """Return the `n` nearest of some: by codes where these are many."""
        if not exact and len(places.slots) * _MASKED >= view.count:
            found = self._scanned(view, query[None], n, places)[0]
            if found is not None:
                return found
        return self._compared(view, places.slots, query, n)

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
            best(rows, slots, query, n, self._measure, "exact", view.living)[0]
            for slots, query in zip(near, queries, strict=True)
        ]

    def _compared(self, view: View, slots: Slots | None, query: Floats, n: int) -> Hits:
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
        near = _surely(scores, error, n)
        return best(rows, near if slots is None else slots[near], query, n, self._measure, "exact", len(scores))[0]

    def _scanned(self, view: View, queries: Floats, n: int, only: Places | None = None) -> list[Hits | None]:
        """Score, for each query, what the codes hold to be near, and the tail; None where all is to be compared."""
        found: list[Hits | None] = [None] * len(queries)
        left, depth = list(range(len(queries))), (view.depth or 0) + 2 * max(0, n - CALIBRATED_N)
        coded = view.coded if only is None else only.before(view.coded)
        if not tame(np.sqrt(np.vecdot(queries, queries, dtype=np.float64))):
            return found  # too large or too small for codes
        parts: Sequence[Searched] = view.segments if only is not None else view.parts(depth)
        while left and coded and view.depth is not None and self._gains(view, depth):
            together = max(1, min(_TOGETHER, _ROWS // (depth * len(parts))))
            by_graph = parts is not view.segments
            for some in map(list, partition_all(together, left)):
                asked = queries[some] if len(queries) > 1 else queries
                candidates = self._candidates(view, parts, asked, depth, n, only)
                kind = "graph" if by_graph else "scan"
                for i, hits in zip(
                    some, best_of_each(view.rows, candidates, asked, n, self._measure, kind), strict=True
                ):
                    found[i] = hits
            left = [i for i in left if found[i] is None]
            if by_graph:
                parts = view.segments
            elif depth >= coded:
                break
            else:
                depth *= _DEEPER
        return found

    def _gains(self, view: View, depth: int) -> bool:
        return self._options.coded or depth * len(view.segments) * _SCAN_GAIN <= view.coded

    def _candidates(
        self, view: View, parts: Sequence[Searched], queries: Floats, depth: int, n: int, only: Places | None
    ) -> Candidates:
        """Return what the codes hold to be near, and the best of the tail."""
        allowed = None if only is None else only.allowed(view, self._measure)
        found = looked_up(parts, queries, depth, allowed)
        if parts is not view.segments:  # where the graph knows nothing, the best of the rest are not the best
            own = found.doubtful[:, : min(depth, parts[0].stop)]
            found = found._replace(doubtful=found.doubtful | own.all(axis=1, keepdims=True))
        made = Candidates(found.slots, None, found.doubtful)
        if only is None and (view.alive is not None or view.segments[-1].overgrown):
            made = _living(view, parts, found, n)
        elif found.slots.shape[1] < min(n, view.coded if only is None else only.before(view.coded)):
            made = made._replace(doubtful=np.ones_like(found.doubtful))
        return made if view.coded == view.count else made.beside(self._tails(view, queries, n, only))

    def _tails(self, view: View, queries: Floats, n: int, only: Places | None) -> list[Slots]:
        """Return, for each query, the slots of the best of the rows that have no codes yet."""
        rows, start = view.rows, view.coded
        vectors, norms = rows.vectors[start : view.count], rows.norms[start : view.count]
        counts: Slots | slice = slice(None)
        if only is not None:
            counts = only.slots[only.before(start) :] - start
        elif view.alive is not None:
            counts = np.flatnonzero(view.alive[start:])
        tails = []
        for query in queries:
            scores, error = self._measure.rough(query, vectors, norms)
            error = error[counts] if isinstance(error, np.ndarray) else error
            near = _surely(scores[counts], error, n)
            tails.append((near if isinstance(counts, slice) else counts[near]) + start)
        return tails


def _living(view: View, parts: Sequence[Searched], found: Found, n: int) -> Candidates:
    """Return those that are of this moment and alive; all in doubt where a part gave too few of more."""
    known = found.slots < view.coded
    slots = np.where(known, found.slots, 0)
    there = known if view.alive is None else known & view.alive[slots]
    short = np.zeros(len(slots), dtype=bool)
    for part in parts:
        here = (found.slots >= part.start) & (found.slots < part.stop)
        short |= ((here & there).sum(axis=1) < n) & (here.sum(axis=1) < part.stop - part.start)
    return Candidates(slots, there, found.doubtful | short[:, None])


def _surely(scores: Floats, error: Floats | float, n: int) -> Slots:
    """Return positions that are sure to hold the `n` best and all that tie with the last of them."""
    if n >= len(scores):
        return np.arange(len(scores))
    surely = scores - error
    threshold = np.partition(surely, len(surely) - n)[len(surely) - n]
    return np.flatnonzero(scores + error >= threshold)
