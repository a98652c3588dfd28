"""How good a ranking is, given which documents are relevant: pure functions over identifiers, best first.

References
----------
Manning, Raghavan, Schütze, Introduction to Information Retrieval, chapter 8; Järvelin and Kekäläinen (2002) for nDCG.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from superduper_nb.search.ids import id_key

__all__ = ["ndcg", "recall", "reciprocal_rank", "relevant_ranks"]


def relevant_ranks(ranked: Sequence[Any], relevant: Collection[Any]) -> list[int]:
    """Return the ranks (0 is the best) at which relevant documents come."""
    wanted = set(map(id_key, relevant))
    return [rank for rank, id in enumerate(ranked) if id_key(id) in wanted]


def recall(ranks: Sequence[int], relevant: int, k: int) -> float:
    """Return the share of the relevant documents that is among the first `k`."""
    return sum(rank < k for rank in ranks) / relevant


def reciprocal_rank(ranks: Sequence[int], relevant: int, k: int) -> float:
    """Return 1 / (1 + rank) of the first relevant document; 0 where none is among the first `k`."""
    first = min(ranks, default=k)
    return 1 / (1 + first) if first < k else 0.0


def ndcg(ranks: Sequence[int], relevant: int, k: int) -> float:
    """Return the discounted gain of the first `k`, as a share of the best that is possible."""
    gained = math.fsum(1 / math.log2(2 + rank) for rank in ranks if rank < k)
    return gained / math.fsum(1 / math.log2(2 + rank) for rank in range(min(relevant, k)))
