"""A search and its answer, as values that travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bson import Timestamp

from superduper_nb.errors import InvalidInputError

__all__ = ["MAX_N", "SearchReply", "SearchRequest", "check_n"]

MAX_N: Final = 10_000


def check_n(n: object) -> None:
    """Raise `InvalidInputError` unless `n` is a number of results that may be asked for."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_N:
        raise InvalidInputError(f"n={n!r:.80}: it must be a whole number from 1 to {MAX_N}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What to find. Exactly one of `like`, `vector` and `id` says near to what.

    Attributes
    ----------
    semantic_index : str or None
        None: the only one of the collection.
    like : mapping, optional
        Values for a key of the index, encoded by its model.
    vector : sequence of float, shape (d,), optional
        A query vector.
    id : object, optional
        A document, whose stored vector is the query.
    filter : mapping, optional
        Only documents that match it.
    n : int, default 10
        How many, at most `MAX_N`.
    exact : bool, default False
        Compare with every vector, whatever the index is.
    min_score : float, optional
        Leave out what scores less.
    after : bson.Timestamp, optional
        See at least the writes up to this cluster time.
    """

    database: str
    collection: str
    semantic_index: str | None = None
    like: Mapping[str, Any] | None = None
    vector: Sequence[float] | None = None
    id: Any = None
    filter: Mapping[str, Any] | None = None
    n: int = 10
    exact: bool = False
    min_score: float | None = None
    after: Timestamp | None = None

    def __post_init__(self) -> None:
        check_n(self.n)
        if sum(given is not None for given in (self.like, self.vector, self.id)) != 1:
            raise InvalidInputError("Say near to what: exactly one of like={...}, vector=[...] or id=.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReply:
    """What was found, best first.

    Attributes
    ----------
    ids : list
        The documents' ``_id``.
    scores : list of float
        Higher is better: cosine, dot product, or 1 / (1 + distance) for ``l2``.
    distances : list of float or None
        Euclidean, for ``l2`` only.
    strategy : str
        How it was searched: ``"exact"``, ``"exact, then filter"`` or ``"filter, then exact"``.
    candidates : int
        Vectors scored, or documents tested against the filter.
    pending : int
        Documents whose outputs queued jobs have still to compute.
    took_ms : float
        Time in the engine, milliseconds.
    index : str
        The semantic index that answered.
    """

    ids: list[Any]
    scores: list[float]
    distances: list[float] | None
    strategy: str
    candidates: int
    pending: int
    took_ms: float
    index: str
