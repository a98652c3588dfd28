"""Many queries at a time by blocked matrix products: exact, in bounded memory.

A product of matrices reads each vector once for a whole block of queries, so it runs at the speed of the processor
where single queries run at that of memory. Scores come in float32 first; what their error leaves open is scored again
in float64, so that the result is that of float64 over all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from superduper_nb.search.measures import Floats, Measure, tame

__all__ = ["BestPairs", "best_of", "blocked_topk", "near_rows", "overtaking", "row_norms"]

_QUERIES: Final = 256
_ROWS: Final = 4096
"""A block of scores is 4 MB: it stays in the cache while it is looked through."""
_WIDENED: Final = 512
_SLACK: Final = 8
"""Candidates are thinned out when they are so many times what is asked for."""
_OWN_ERROR: Final = 1e-6

Rows = NDArray[np.intp]


def blocked_topk(
    vectors: Floats, n: int, measure: Measure, block: int = _QUERIES, rows: Rows | None = None
) -> Iterator[tuple[int, Rows, Floats]]:
    """Find the `n` nearest others of rows: a kNN graph, some rows at a time.

    Parameters
    ----------
    vectors : array of shape (rows, d), float32
        Finite; under cosine, without zero vectors.
    n : int
        Neighbours a row; fewer where there are not so many others.
    measure : Measure
        How near two rows are.
    block : int, default 256
        Rows at a time.
    rows : array of int, optional
        Whose neighbours; default: those of every row.

    Yields
    ------
    start : int
        Where the block begins in `rows`.
    neighbours : array of shape (block, n)
        Rows, best first, ties by row.
    scores : array of shape (block, n), float64
        Higher is nearer.
    """
    norms = row_norms(vectors)
    wanted = min(n, len(vectors) - 1)
    rows = np.arange(len(vectors)) if rows is None else rows
    for start in range(0, len(rows), block):
        of = rows[start : start + block]
        found = np.empty((len(of), max(0, wanted)), dtype=np.intp)
        scores = np.empty(found.shape)
        near = near_rows(vectors[of], vectors, norms, wanted + 1, measure) if wanted > 0 else []
        for i, candidates in enumerate(near):
            found[i], scores[i] = best_of(vectors, of[i], candidates[candidates != of[i]], wanted, measure)
        yield start, found, scores


def best_of(vectors: Floats, row: int, others: Rows, n: int, measure: Measure) -> tuple[Rows, Floats]:
    """Return those `n` of some other rows that are the nearest to a row, best first, ties by row, and their scores."""
    exact, _ = measure.exact(vectors[row], vectors[others])
    order = np.lexsort((others, -exact))[:n]
    return others[order], exact[order]


def overtaking(
    vectors: Floats, rows: Rows, last: Rows, changed: Rows, measure: Measure
) -> Iterator[tuple[int, list[tuple[int, Rows]]]]:
    """Find the rows to which a changed row may be as near as the last of their neighbours is.

    Parameters
    ----------
    vectors : array of shape (rows, d), float32
        As for `blocked_topk`.
    rows, last : arrays of int
        Rows, and the last neighbour of each.
    changed : array of int
        Rows that are none of their neighbours.

    Yields
    ------
    done : int
        How many of the rows were looked at.
    found : list of (int, array of int)
        Of these, a row, and the changed rows that are sure to hold all that are so near.
    """
    others = vectors[changed]
    norms = row_norms(others)
    for start in range(0, len(rows), _QUERIES):
        of = rows[start : start + _QUERIES]
        bound = _pair_scores(vectors[of], vectors[last[start : start + _QUERIES]], measure)
        parts: list[tuple[Rows, Rows]] = []
        for at in range(0, len(changed), _ROWS):
            scores, error = _scores(vectors[of], others[at : at + _ROWS], norms[at : at + _ROWS], measure)
            i, column = np.nonzero(scores >= (bound - error - _OWN_ERROR * np.abs(bound))[:, None])
            parts.append((i, changed[column + at]))
        i, near = (np.concatenate(column) for column in zip(*parts, strict=True))
        yield start + len(of), [(int(of[one]), near[i == one]) for one in np.unique(i)]


def _pair_scores(queries: Floats, vectors: Floats, measure: Measure) -> Floats:
    """Score each query with the vector beside it, in float64 and on the scale of `_scores`."""
    if measure.function is not None:
        pairs = zip(queries, vectors, strict=True)
        return np.array([measure.own(query[None], vector[None])[0, 0] for query, vector in pairs])
    wide, rows = queries.astype(np.float64), vectors.astype(np.float64)
    products, squares = np.einsum("ij,ij->i", wide, rows), np.einsum("ij,ij->i", rows, rows)
    if measure.name == "cosine":
        return np.asarray(products / np.sqrt(squares * np.einsum("ij,ij->i", wide, wide)))
    return np.asarray(products if measure.name == "dot" else 2 * products - squares)


class BestPairs:
    """The pairs of rows that score at least `min_score`, the best `limit` of them, while blocks of rows go by.

    Parameters
    ----------
    vectors : array of shape (rows, d), float32
        Finite; under cosine, without zero vectors.
    min_score : float
    measure : Measure
        A symmetric one.
    limit : int
        Pairs that are kept; beyond twice as many, the worst are let go and `least` rises.

    Attributes
    ----------
    least : float
        What a pair has to score now.
    """

    def __init__(self, vectors: Floats, min_score: float, measure: Measure, limit: int) -> None:
        self._vectors, self._norms, self._measure, self._limit = vectors, row_norms(vectors), measure, limit
        self.least = min_score
        self._kept: list[tuple[Rows, Rows, Floats]] = []
        self._count = 0

    def look(self, block: int = _QUERIES) -> Iterator[int]:
        """Compare all rows with those behind them; yield how many are done, after each block."""
        for start in range(0, len(self._vectors), block):
            queries = self._vectors[start : start + block]
            rest, norms = self._vectors[start:], self._norms[start:]
            for i, near in enumerate(_rows_above(queries, rest, norms, self.least, self._measure)):
                self._keep(start + i, near[near > i] + start)
            if self._count > 2 * self._limit:
                self._kept, self._count = [self.found()], self._limit
                self.least = float(self._kept[0][2][-1])
            yield start + len(queries)

    def _keep(self, row: int, others: Rows) -> None:
        scores, _ = self._measure.exact(self._vectors[row], self._vectors[others])
        keep = scores >= self.least
        if count := int(keep.sum()):
            self._count += count
            self._kept.append((np.full(count, row, dtype=np.intp), others[keep], scores[keep]))

    def found(self) -> tuple[Rows, Rows, Floats]:
        """Return the pairs so far, best first, ties by row: first rows, second rows (the larger), scores in float64."""
        if not self._kept:
            return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp), np.empty(0)
        first, second, scores = (np.concatenate(column) for column in zip(*self._kept, strict=True))
        best = np.lexsort((second, first, -scores))[: self._limit]
        return first[best], second[best], scores[best]


def near_rows(
    queries: Floats,
    vectors: Floats,
    norms: Floats,
    n: int,
    measure: Measure,
    living: NDArray[np.bool_] | None = None,
) -> list[Rows]:
    """Return, for each query, rows that are sure to hold its `n` best and all that tie with the last of them.

    Parameters
    ----------
    queries : array of shape (m, d), float32
    vectors : array of shape (rows, d), float32
    norms : array of shape (rows,)
        Euclidean norms of the vectors; under cosine none of them is 0.
    n : int
    measure : Measure
    living : array of shape (rows,), bool, optional
        Which rows count; default: all.
    """
    found: list[Rows] = []
    for start in range(0, len(queries), _QUERIES):
        found += _Nearest(queries[start : start + _QUERIES], n).of(vectors, norms, measure, living)
    return found


def row_norms(vectors: Floats) -> Floats:
    """Return the Euclidean norm of each row."""
    norms = np.empty(len(vectors), dtype=np.float32)
    with np.errstate(over="ignore"):
        for start in range(0, len(vectors), _WIDENED):  # in the cache this takes half of what einsum takes
            wide = vectors[start : start + _WIDENED].astype(np.float64)
            norms[start : start + _WIDENED] = np.sqrt(np.vecdot(wide, wide))
    return norms


class _Nearest:
    """The candidates of a block of queries, while blocks of rows go by."""

    def __init__(self, queries: Floats, n: int) -> None:
        self._queries, self._n = queries, n
        self._floor = np.full(len(queries), -np.inf)
        """Of each query, a score that `n` rows surely reach."""
        self._kept: list[tuple[Rows, Rows, Floats, Floats]] = []
        self._count = 0

    def of(self, vectors: Floats, norms: Floats, measure: Measure, living: NDArray[np.bool_] | None) -> list[Rows]:
        """Look at all rows that count; return the candidates of each query."""
        for start in range(0, len(vectors), _ROWS):
            part = slice(start, start + _ROWS)
            scores, error = _scores(self._queries, vectors[part], norms[part], measure)
            if living is not None:
                scores[:, ~living[part]] = -np.inf
            self._look(start, scores, error)
        if not self._kept:
            return [np.empty(0, dtype=np.intp)] * len(self._queries)
        self._thin()
        of, rows, _, _ = self._kept[0]
        if living is not None:
            of, rows = of[living[rows]], rows[living[rows]]
        return np.split(rows, np.searchsorted(of, np.arange(1, len(self._queries))))

    def _look(self, start: int, scores: Floats, error: Floats) -> None:
        """Keep what may be among the best."""
        if not self._count and self._n < scores.shape[1]:
            place = scores.shape[1] - self._n
            self._floor = np.partition(scores, place, axis=1)[:, place] - error
        # The bound in the scores' own type: two types side by side would be compared in the wider, slowly.
        bound = np.nextafter((self._floor - error).astype(scores.dtype), scores.dtype.type(-np.inf))
        flat = np.flatnonzero(scores >= bound[:, None])
        of, column = np.divmod(flat, scores.shape[1])
        self._kept.append((of, column + start, scores.ravel()[flat], error[of]))
        self._count += len(flat)
        if self._count > _SLACK * self._n * len(self._queries):
            self._thin()

    def _thin(self) -> None:
        """Raise the floor to what the candidates say, and leave out those below it."""
        of, rows, scores, error = (np.concatenate(part) for part in zip(*self._kept, strict=True))
        order = np.lexsort((rows, of))
        of, rows, scores, error = of[order], rows[order], scores[order], error[order]
        ends = np.searchsorted(of, np.arange(len(self._queries) + 1))
        for i, (begin, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            if end - begin > self._n:
                surely = scores[begin:end] - error[begin:end]
                place = len(surely) - self._n
                self._floor[i] = max(self._floor[i], np.partition(surely, place)[place])
        keep = scores + error >= self._floor[of]
        self._kept = [(of[keep], rows[keep], scores[keep], error[keep])]
        self._count = int(keep.sum())


def _rows_above(queries: Floats, vectors: Floats, norms: Floats, least: float, measure: Measure) -> list[Rows]:
    """Return, for each query, rows that are sure to hold all that score at least so much."""
    bound = _bound(queries, least, measure)
    parts: list[tuple[Rows, Rows]] = []
    for start in range(0, len(vectors), _ROWS):
        part = slice(start, start + _ROWS)
        scores, error = _scores(queries, vectors[part], norms[part], measure)
        of, column = np.nonzero(scores >= (bound - error)[:, None])
        parts.append((of, column + start))
    of, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((rows, of))
    return np.split(rows[order], np.searchsorted(of[order], np.arange(1, len(queries))))


def _bound(queries: Floats, least: float, measure: Measure) -> Floats:
    """Return what a score means on the scale of `_scores`, for each query."""
    if measure.name != "l2":
        return np.full(len(queries), least)
    if not 0 < least <= 1:
        return np.full(len(queries), np.inf if least > 1 else -np.inf)
    squares = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)
    # Up to a few roundings, which decide nothing: whoever asks scores again.
    return np.asarray(squares * (1 - 1e-12) - (1 / least - 1) ** 2 * (1 + 1e-12))


def _scores(queries: Floats, vectors: Floats, norms: Floats, measure: Measure) -> tuple[Floats, Floats]:
    """Score a block: array of shape (m, rows), and by how much each query's may be off.

    For ``l2`` in the order of the scores, not the scores themselves.
    """
    if measure.function is not None:
        scores = measure.own(queries, vectors)
        finite = np.where(np.isfinite(scores), np.abs(scores), 0)
        return scores, _OWN_ERROR * finite.max(axis=1, initial=0)  # a block may round otherwise than a single query
    wide = queries.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    if measure.name == "cosine":
        wide, lengths = wide / lengths[:, None], np.ones(len(wide))
    safe = tame(norms) and tame(lengths)
    dtype: type[np.floating[Any]] = np.float32 if safe else np.float64
    if not safe:
        vectors = vectors.astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    scores = np.asarray(wide.astype(dtype) @ vectors.T)
    # A sum of d products, in whatever order (Higham, Accuracy and Stability, 3.1), and a few roundings more.
    unit, longest = 1.05 * (queries.shape[1] + 8) * float(np.finfo(dtype).eps) / 2, float(norms.max())
    if measure.name == "cosine":
        scores *= (1 / norms).astype(dtype)
        return scores, np.full(len(wide), unit)
    if measure.name == "dot":
        return scores, unit * lengths * longest
    scores *= 2
    scores -= norms * norms
    return scores, unit * (2 * lengths * longest + longest**2)
