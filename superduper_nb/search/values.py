"""A search and its answer, as values that travel."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Timestamp

from superduper_nb.documents.paths import check_path
from superduper_nb.errors import InvalidInputError

__all__ = [
    "MAX_EXAMPLES",
    "MAX_N",
    "MAX_QUERIES",
    "MAX_RESULTS",
    "Like",
    "SearchReply",
    "SearchRequest",
    "check_n",
    "check_range",
    "expected",
]

MAX_N: Final = 10_000
MAX_QUERIES: Final = 1_000
"""Queries a batch."""
MAX_RESULTS: Final = 100_000
"""Of all queries of a batch."""
MAX_EXAMPLES: Final = 100
MAX_SPREAD: Final = 1_000
MAX_TOGETHER: Final = 100
"""Results of a search with diversity: each is compared with all before it."""

Like = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What to find. Exactly one of `like`, `likes`, `vector` and `id` says near to what.

    Several vectors, or `likes`, are a batch: as many searches in one call, each with the same options. A batch takes
    none of `unlike`, `diversity`, `text` and `group_by`; of the last three a search takes one.

    Attributes
    ----------
    semantic_index : str or None
        None: the only one of the collection.
    like : mapping or sequence of mapping, optional
        Values for a key of the index, encoded by its model, or ``{"_id": …}``. Of several examples, their mean (of
        their directions, under cosine).
    likes : sequence of mapping, optional
        A batch of them.
    vector : sequence of float, shape (d,), or of such sequences, shape (m, d), optional
        A query vector, or a batch of them.
    id : object, optional
        A document, whose stored vector is the query.
    unlike : mapping or sequence of mapping, optional
        Examples to stay away from, given as those of `like`: the query is ``2 p - q`` for means p of the positive and q
        of the negative examples (Rocchio 1971).
    filter : mapping, optional
        Only documents that match it.
    n : int, default 10
        How many, at most `MAX_N`.
    exact : bool, default False
        Compare with every vector, whatever the index is.
    min_score, max_score : float, optional
        Only what scores in this range, its ends included.
    diversity : float, default 0
        From 0, the nearest, to 1, those least like each other: maximal marginal relevance (Carbonell and Goldstein
        1998) with lambda = 1 - diversity, among the ``10 n`` nearest (at least 100, at most 10 000).
    text : str, optional
        Words for MongoDB's text search. The ranking by nearness and that by words are fused: a document's score is the
        sum over both of 1 / (60 + rank), ranks from 1 (reciprocal rank fusion, Cormack et al. 2009); each ranking
        counts as far as its first ``10 n`` documents (at least 100, at most 10 000).
    group_by : str, optional
        A field: only the best document of each of its values; those without it are one group.
    after : bson.Timestamp, optional
        See at least the writes up to this cluster time.
    untested : bool, default False
        Candidates will do of which `n` should match the filter, where it is known how many do: whoever asks reads the
        documents by the filter anyway, the first `n` that match are the answer, and where fewer match, he asks again.
    """

    database: str
    collection: str
    semantic_index: str | None = None
    like: Like | Sequence[Like] | None = None
    likes: Sequence[Like] | None = None
    vector: Sequence[float] | Sequence[Sequence[float]] | None = None
    id: Any = None
    unlike: Like | Sequence[Like] | None = None
    filter: Mapping[str, Any] | None = None
    n: int = 10
    exact: bool = False
    min_score: float | None = None
    max_score: float | None = None
    diversity: float = 0.0
    text: str | None = None
    group_by: str | None = None
    after: Timestamp | None = None
    untested: bool = False

    def __post_init__(self) -> None:
        check_n(self.n)
        if sum(given is not None for given in (self.like, self.likes, self.vector, self.id)) != 1:
            raise InvalidInputError("Say near to what: exactly one of like={...}, likes=[...], vector=[...] or id=.")
        for name in ("like", "unlike"):
            if getattr(self, name) is not None:
                _check_examples(name, getattr(self, name))
        if self.likes is not None:
            _check_batch(self.likes)
        check_range(self.min_score, self.max_score)
        if not _is_number(self.diversity) or not 0 <= self.diversity <= 1:
            raise InvalidInputError(f"diversity={self.diversity!r:.80}: it must be a number from 0 to 1.")
        words: object = self.text
        if words is not None and (not isinstance(words, str) or not words.strip()):
            raise InvalidInputError(f"text={words!r:.80}: it must be words to search for.")
        if self.group_by is not None:
            check_path(self.group_by)
        self._check_combination()

    @property
    def of_several(self) -> bool:
        """It is near to several examples, or away from one: near to no document, perhaps."""
        return self.unlike is not None or (isinstance(self.like, Sequence) and len(self.like) > 1)

    @property
    def many(self) -> bool:
        """It is a batch."""
        return self.likes is not None or _is_matrix(self.vector)

    @property
    def queries(self) -> int:
        """How many searches it is."""
        batch: Any = self.vector if self.likes is None else self.likes
        return len(batch) if self.many else 1

    @property
    def company(self) -> Hashable | None:
        """Requests of which this is the same can be answered in one go; None: only alone."""
        more = (self.unlike, self.text, self.group_by, self.min_score, self.max_score, self.after)
        plain = not (self.filter or self.diversity or self.many or self.exact)
        if self.vector is None or not plain or any(option is not None for option in more) or self.n > MAX_TOGETHER:
            return None
        return self.database, self.collection, self.semantic_index, self.n

    def _check_combination(self) -> None:
        given = [name for name in ("diversity", "text", "group_by") if getattr(self, name)]
        if len(given) > 1:
            raise InvalidInputError(f"{' and '.join(f'{name}=' for name in given)} don't combine: give one of them.")
        if self.many and (given or self.unlike is not None):
            name = given[0] if given else "unlike"
            raise InvalidInputError(f"{name}= is for one query, not for a batch of them: search for each alone.")
        if self.many and not 1 <= self.queries <= min(MAX_QUERIES, MAX_RESULTS // self.n):
            most = min(MAX_QUERIES, MAX_RESULTS // self.n)
            raise InvalidInputError(f"{self.queries} queries with n={self.n}: at most {most} in one call.")
        if self.text is not None and (self.min_score is not None or self.max_score is not None):
            raise InvalidInputError("min_score= and max_score= don't combine with text=: its scores are made of ranks.")
        if self.diversity and self.n > MAX_SPREAD:
            raise InvalidInputError(f"n={self.n} with diversity=: at most {MAX_SPREAD}.")


def _is_matrix(vector: Any) -> bool:
    shape = getattr(vector, "shape", None)
    if shape is not None:
        return len(shape) == 2
    return isinstance(vector, (list, tuple)) and bool(vector) and hasattr(vector[0], "__len__")


def check_n(n: object) -> None:
    """Raise `InvalidInputError` unless `n` is a number of results that may be asked for."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_N:
        raise InvalidInputError(f"n={n!r:.80}: it must be a whole number from 1 to {MAX_N}.")


def expected(n: int) -> float:
    """Return how many should match on average, so that `n` do: two standard deviations more, and two."""
    return n + 2 * math.sqrt(n) + 2


def examples(given: Like | Sequence[Like]) -> Sequence[Like]:
    """Return one example, or several, as a sequence."""
    return [given] if isinstance(given, Mapping) else given


def _check_examples(name: str, given: Any) -> None:
    several = examples(given) if isinstance(given, (Mapping, list, tuple)) else ()
    if not 1 <= len(several) <= MAX_EXAMPLES or not all(map(_is_like, several)):
        raise InvalidInputError(
            f"{name}= is a document with a key of the index, such as {{'text': 'warm'}}, or a list of 1 to "
            f"{MAX_EXAMPLES} such documents; given {given!r:.80}."
        )


def _check_batch(likes: Any) -> None:
    if not isinstance(likes, (list, tuple)) or not likes or not all(map(_is_like, likes)):
        raise InvalidInputError(
            f"likes= is a list of documents with a key of the index, such as [{{'text': 'warm'}}]; given {likes!r:.80}."
        )


def _is_like(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def check_range(least: Any, most: Any) -> None:
    """Raise `InvalidInputError` unless these are numbers, and a range."""
    for name, score in (("min_score", least), ("max_score", most)):
        if score is not None and not _is_number(score):
            raise InvalidInputError(f"{name}={score!r:.80}: it must be a finite number.")
    if least is not None and most is not None and least > most:
        raise InvalidInputError(f"min_score={least} is above max_score={most}: nothing scores so.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReply:
    """What was found, best first; of a batch, `ids`, `scores` and `distances` hold one list for each query.

    Attributes
    ----------
    ids : list
        The documents' ``_id``.
    scores : list of float
        Higher is better: cosine, dot product, or 1 / (1 + distance) for ``l2``; with `text`, the fused score.
    distances : list of float or None
        Euclidean, for ``l2`` only.
    strategy : str
        How it was searched: ``"exact"``, ``"scan"``, ``"graph"``, the same with ``", then filter"`` behind it or
        ``"filter, then "`` before it, and what was done with what was found: ``", then spread"``, ``", then grouped"``,
        ``", fused with text"``.
    candidates : int
        Vectors scored, or documents tested against the filter.
    survivors : int
        Those of them that match the filter.
    pending : int
        Documents whose outputs queued jobs have still to compute.
    took_ms : float
        Time in the engine, milliseconds.
    stages_ms : mapping of str to float
        The parts of it: ``encode`` (the model on the query), ``search`` (vectors), ``filter`` (MongoDB), ``text``,
        ``group``.
    index : str
        The semantic index that answered.
    partial : bool
        Shards were lost and are being loaded again: what they hold was not found (``lost="partial"`` of the index).
    untested : bool
        These are candidates, more than were asked for, of which nobody knows whether they match (`SearchRequest`).
    """

    ids: list[Any]
    scores: list[Any]
    distances: list[Any] | None
    strategy: str
    candidates: int
    pending: int
    took_ms: float
    index: str
    survivors: int = 0
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    partial: bool = False
    untested: bool = False
