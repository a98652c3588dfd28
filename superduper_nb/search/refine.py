"""More than the nearest: ranges of scores, results unlike each other, the best of each group, two rankings in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from pymongo.collection import Collection
from toolz import partition_all

from superduper_nb.search.ids import id_key, sort_key
from superduper_nb.search.index import Hits
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.plan import Plan
from superduper_nb.search.stages import Stages

__all__ = ["Groups", "Ranking", "best_of_groups", "fused", "only", "pool_size", "spread"]

_WIDER: Final = 4
_FIRST_GROUPS: Final = 64
_POOL: Final = (100, 10, 10_000)
_RRF_K: Final = 60
_IDS: Final = 20_000
_FINITE: Final = 1e300


def pool_size(n: int) -> int:
    """Return among how many of the nearest a search for `n` looks that does more than take the nearest."""
    least, times, most = _POOL
    return max(n, min(most, max(least, times * n)))


def only(hits: Hits, keep: Sequence[int] | Any) -> Hits:
    """Return some hits, by position, in this order."""
    rows = np.asarray(keep, dtype=np.intp)
    distances = None if hits.distances is None else hits.distances[rows]
    return Hits([hits.ids[i] for i in rows.tolist()], hits.scores[rows], distances, hits.kind, hits.candidates)


class Ranking:
    """All that match, best first, within a range of scores: searched as far as is asked for.

    Parameters
    ----------
    search : callable
        ``n -> Plan``: the `n` best that match.
    least, most : float, optional
        The range.
    """

    def __init__(self, search: Callable[[int], Plan], least: float | None, most: float | None) -> None:
        self._search, self._least, self._most = search, least, most
        self.plan: Plan | None = None
        """The search that answered last."""

    def take(self, n: int) -> Hits:
        """Return the best `n` of the range; fewer only where there are no more."""
        asked = n
        while True:
            self.plan = self._search(asked)
            if self._least is None and self._most is None:
                return self.plan.hits
            scores = self.plan.hits.scores
            keep = np.ones(len(scores), dtype=bool)
            if self._least is not None:
                keep &= scores >= self._least
            if self._most is not None:
                keep &= scores <= self._most
            below = self._least is not None and len(scores) and scores[-1] < self._least
            if keep.sum() >= n or len(scores) < asked or below:
                return (
                    self.plan.hits if keep.all() and len(keep) <= n else only(self.plan.hits, np.flatnonzero(keep)[:n])
                )
            asked *= _WIDER


def spread(hits: Hits, vectors: Floats, measure: Measure, diversity: float, n: int) -> Hits:
    """Choose `n` that are near, and unlike each other: maximal marginal relevance, in the order in which it chooses.

    Parameters
    ----------
    hits : Hits
        The pool.
    vectors : array of shape (len(hits), d)
        Theirs.
    diversity : float
        1 - lambda.

    References
    ----------
    Carbonell and Goldstein (1998), The use of MMR, diversity-based reranking.
    """
    near = _between(vectors, measure)
    worth = (1 - diversity) * _finite(hits.scores)
    likest = np.full(len(vectors), -_FINITE)
    left = np.ones(len(vectors), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(n, len(vectors)):
        margin = worth - diversity * likest if chosen else hits.scores
        chosen.append(int(np.argmax(np.where(left, margin, -np.inf))))
        left[chosen[-1]] = False
        likest = np.maximum(likest, _finite(near(chosen[-1])))
    return only(hits, chosen)


def _finite(scores: Floats) -> Floats:
    # A measure of the user's own may answer infinity.
    return np.asarray(np.clip(scores, -_FINITE, _FINITE))


def _between(vectors: Floats, measure: Measure) -> Callable[[int], Floats]:
    """Return what scores all rows against one of them."""
    if measure.function is not None:
        return lambda i: measure.exact(vectors[i], vectors)[0]
    rows = vectors.astype(np.float64)
    if measure.name == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if measure.name == "l2":
        return lambda i: 1 / (1 + np.linalg.norm(rows - rows[i], axis=1))
    return lambda i: rows @ rows[i]


class Groups:
    """To which group documents belong: the value of a field, as MongoDB's ``$group`` sees it.

    Parameters
    ----------
    collection : pymongo.collection.Collection
        Where the documents are.
    field : str
        Dotted; null and missing are one group.
    """

    def __init__(self, collection: Collection[dict[str, Any]], field: str) -> None:
        self._collection, self._field = collection, field
        self._known: dict[Any, Any] = {}

    def of(self, ids: Sequence[Any]) -> list[tuple[bool, Any]]:
        """Return for each document whether it is still there, and its group."""
        new = [id for id in ids if id_key(id) not in self._known]
        for part in partition_all(_IDS, new):
            stages: list[dict[str, Any]] = [
                {"$match": {"_id": {"$in": list(part)}}},
                {"$project": {"g": f"${self._field}"}},
            ]
            for document in self._collection.aggregate(stages, batchSize=_IDS):
                self._known[id_key(document["_id"])] = id_key(document.get("g"))
        return [(id_key(id) in self._known, self._known.get(id_key(id))) for id in ids]


def best_of_groups(ranking: Ranking, groups: Groups, n: int, stages: Stages) -> Hits:
    """Return the best document of each of the `n` best groups: looked for until there are `n`, or no more documents."""
    asked = max(_FIRST_GROUPS, _WIDER * n)
    while True:
        hits = ranking.take(asked)
        first: dict[Any, int] = {}
        with stages("group"):
            for i, (there, group) in enumerate(groups.of(hits.ids)):
                if there:
                    first.setdefault(group, i)
        if len(first) >= n or len(hits.ids) < asked:
            return only(hits, list(first.values())[:n])
        asked *= _WIDER


def fused(rankings: Sequence[Sequence[Any]], n: int) -> Hits:
    """Return the best `n` of several rankings by the sum of 1 / (60 + rank), ties by ``_id``.

    References
    ----------
    Cormack, Clarke and Büttcher (2009), Reciprocal rank fusion outperforms Condorcet and individual rank learning
    methods.
    """
    ids: dict[Any, Any] = {}
    scores: dict[Any, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            key = id_key(id)
            ids.setdefault(key, id)
            scores[key] = scores.get(key, 0.0) + 1 / (_RRF_K + rank)
    best = sorted(scores, key=lambda key: (-scores[key], sort_key(ids[key])))[:n]
    return Hits([ids[key] for key in best], np.array([scores[key] for key in best]), None)
