"""How well an index finds what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from toolz import partition_all

from superduper_nb.errors import InvalidInputError
from superduper_nb.search.ids import id_key
from superduper_nb.search.metrics import ndcg, recall, reciprocal_rank, relevant_ranks
from superduper_nb.search.values import MAX_QUERIES, MAX_RESULTS, Like

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluation", "evaluated"]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How well an index found the relevant documents of some queries.

    Attributes
    ----------
    semantic_index : str
        Which index.
    n : int
        Among how many results.
    queries : tuple of mapping
        For each query ``like``, ``relevant`` (how many documents), ``ranks`` of those that were found (0 is the best),
        ``recall``, ``mrr`` and ``ndcg``.
    """

    semantic_index: str
    n: int
    queries: tuple[Mapping[str, Any], ...]

    @property
    def recall(self) -> float:
        """Mean share of the relevant documents that were found."""
        return fmean(query["recall"] for query in self.queries)

    @property
    def mrr(self) -> float:
        """Mean of 1 / (1 + rank) of the first relevant document."""
        return fmean(query["mrr"] for query in self.queries)

    @property
    def ndcg(self) -> float:
        """Mean of the discounted gain, as a share of the best that is possible."""
        return fmean(query["ndcg"] for query in self.queries)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each query."""
        import pandas as pd

        return pd.DataFrame(list(self.queries))

    def __repr__(self) -> str:
        values = f"recall@{self.n} {self.recall:.3f}, MRR {self.mrr:.3f}, nDCG@{self.n} {self.ndcg:.3f}"
        return f"<Evaluation of {self.semantic_index!r} on {len(self.queries)} queries: {values}>"


def evaluated(
    search: Callable[[Sequence[Like]], list[list[Any]]],
    semantic_index: str,
    queries: Iterable[tuple[Like, Iterable[Any]]],
    n: int,
) -> Evaluation:
    """Search for each query; compare what is found with what is relevant.

    Parameters
    ----------
    search : callable
        ``likes -> identifiers for each``.
    """
    rows: list[Mapping[str, Any]] = []
    for part in partition_all(min(MAX_QUERIES, MAX_RESULTS // n), map(_checked, queries)):
        found = search([like for like, _ in part])
        rows += [_row(like, relevant, ids, n) for (like, relevant), ids in zip(part, found, strict=True)]
    if not rows:
        raise InvalidInputError("queries= is empty: give pairs of a like and the identifiers that are relevant to it.")
    return Evaluation(semantic_index, n, tuple(rows))


def _checked(pair: Any) -> tuple[Like, list[Any]]:
    like, relevant = pair if isinstance(pair, (list, tuple)) and len(pair) == 2 else (None, None)
    if not isinstance(like, Mapping) or not isinstance(relevant, (list, tuple, set, frozenset)) or not relevant:
        raise InvalidInputError(
            f"queries= holds pairs such as ({{'text': 'warm'}}, [_id, …]), with at least one _id; given {pair!r:.80}."
        )
    return like, list(relevant)


def _row(like: Like, relevant: list[Any], ids: list[Any], n: int) -> Mapping[str, Any]:
    ranks, count = relevant_ranks(ids, relevant), len(set(map(id_key, relevant)))
    values = {"recall": recall(ranks, count, n), "mrr": reciprocal_rank(ranks, count, n), "ndcg": ndcg(ranks, count, n)}
    return {"like": like, "relevant": count, "ranks": ranks, **values}
