"""One search in one index: the nearest, a batch of them, or what is made of the nearest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from superduper_nb.search.hits import Hits
from superduper_nb.search.measures import Floats
from superduper_nb.search.plan import Hints, Matching, Plan, offered, planned, planned_many
from superduper_nb.search.refine import Groups, Ranking, best_of_groups, fused, only, pool_size, spread
from superduper_nb.search.searchable import Searchable
from superduper_nb.search.stages import Stages
from superduper_nb.search.values import SearchRequest

__all__ = ["Finding"]


class Finding:
    """Answers a request from an index.

    Parameters
    ----------
    request : SearchRequest
        What is asked.
    index : Searchable
        Where.
    matching : Matching or None
        Which documents match the filter; None: all.
    hints : Hints
        How many matched the last time.
    stages : Stages
        What is being timed.
    """

    def __init__(
        self, request: SearchRequest, index: Searchable, matching: Matching | None, hints: Hints, stages: Stages
    ) -> None:
        self.request = request
        self._index, self._matching, self._hints, self._stages = index, matching, hints, stages

    def nearest(self, query: Floats) -> Plan:
        """Return the nearest `n` within the range of scores; or candidates, where those will do."""
        request = self.request
        if request.untested and self._matching is not None and not (self._in_range or request.exact):
            plan = offered(self._index, self._matching, query, request.n, self._hints, unusual=request.of_several)
            if plan is not None:
                return plan
        ranking = self._ranking(query)
        return _as(ranking, ranking.take(request.n))

    @property
    def _in_range(self) -> bool:
        return self.request.min_score is not None or self.request.max_score is not None

    def batch(self, queries: Sequence[Floats]) -> list[Plan]:
        """Return the nearest for each query."""
        request = self.request
        if request.max_score is not None:
            return [self.nearest(query) for query in queries]
        plans = planned_many(self._index, self._matching, queries, request.n, exact=request.exact, hints=self._hints)
        if request.min_score is None:
            return plans
        kept = [int((plan.hits.scores >= request.min_score).sum()) for plan in plans]
        return [replace(plan, hits=only(plan.hits, range(count))) for plan, count in zip(plans, kept, strict=True)]

    def spread(self, query: Floats) -> Plan:
        """Return `n` that are near and unlike each other."""
        ranking = self._ranking(query)
        pool = ranking.take(pool_size(self.request.n))
        there, vectors = self._index.vectors(pool.ids)
        pool = only(pool, there)
        hits = spread(pool, vectors, self._index.measure, self.request.diversity, self.request.n)
        return _as(ranking, hits, ", then spread")

    def grouped(self, query: Floats, groups: Groups) -> Plan:
        """Return the best of each of the `n` best groups."""
        ranking = self._ranking(query)
        hits = best_of_groups(ranking, groups, self.request.n, self._stages)
        return _as(ranking, hits, ", then grouped")

    def fused(self, query: Floats, by_words: Callable[[int], list[Any]]) -> Plan:
        """Return the best by nearness and by words together."""
        ranking, pool = self._ranking(query), pool_size(self.request.n)
        near = ranking.take(pool).ids
        with self._stages("text"):
            said = by_words(pool)
        return _as(ranking, fused([near, said], self.request.n), ", fused with text")

    def _ranking(self, query: Floats) -> Ranking:
        request = self.request

        def search(n: int) -> Plan:
            how: Any = {"exact": request.exact, "unusual": request.of_several}
            return planned(self._index, self._matching, query, n, hints=self._hints, **how)

        return Ranking(search, request.min_score, request.max_score)


def _as(ranking: Ranking, hits: Hits, then: str = "") -> Plan:
    """Return what was made of a ranking."""
    assert ranking.plan is not None
    return replace(ranking.plan, hits=hits, strategy=ranking.plan.strategy + then)
