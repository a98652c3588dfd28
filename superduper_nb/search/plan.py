"""How a search under a filter is done: which of two complete ways is the cheaper."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import bson
from bson.errors import BSONError
from pymongo import ReadPreference
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, ExecutionTimeout, InvalidOperation, OperationFailure
from pymongo.read_concern import ReadConcern

from superduper_nb.errors import DeadlineError, InvalidInputError
from superduper_nb.search.batches import Batches
from superduper_nb.search.hits import Hits
from superduper_nb.search.ids import id_key, packed_ids, packed_keys
from superduper_nb.search.measures import Floats
from superduper_nb.search.remembered import MOST, Kept, Remembered
from superduper_nb.search.searchable import Searchable
from superduper_nb.search.stages import Stages
from superduper_nb.search.subset import Subset
from superduper_nb.search.values import expected
from superduper_nb.search.vectors import ids_of

__all__ = ["Hints", "Matching", "Plan", "check_filter", "offered", "planned", "planned_many", "said"]

_TIMEOUT_MS: Final = 30_000
_FIRST_PROBE: Final = 64
_LEAST_PROBE: Final = 32
"""Where it is known how many pass."""
_GUESSED: Final = 256
"""At most, where only the share of another filter is known."""
_LAST_PROBE: Final = 512, 2048
"""Of a small and of a large index; between them a hundredth of it: more can't be had by codes (`Scorer`)."""
_HINTS: Final = 256
_LATELY: Final = 1024
_AT_A_TIME: Final = 100_000
_MAX_DEPTH: Final = 100
_PASSING: Final = (b"$expr", b"$sampleRate")
"""Operators by which a document may match at one time and not at another, though it is the same."""
_CODE: Final = ("$where", "$function", "$accumulator")
_BAD_FILTER: Final = frozenset({2, 9, 14, 51, 72})
"""BadValue, FailedToParse, TypeMismatch, a regular expression that does not compile, InvalidOptions."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found, and how."""

    hits: Hits
    strategy: str
    candidates: int
    survivors: int
    """Of the candidates, those that match."""
    untested: bool = False
    """The hits are candidates: which of them match is still to be asked."""


def check_filter(filter: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` where a filter runs code in the server or is nested without end."""
    _check(filter, 0)


def _check(value: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"The filter is nested more than {_MAX_DEPTH} deep.")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name in _CODE:
                raise InvalidInputError(f"{name} runs code in MongoDB: it is not allowed in the filter of a search.")
            _check(item, depth + 1)
    elif isinstance(value, (list, tuple)) and not _plain(value):
        for item in value:
            _check(item, depth + 1)


def _shape(value: Any) -> Hashable:
    return tuple((name, _shape(item)) for name, item in value.items()) if isinstance(value, Mapping) else None


def _plain(values: Sequence[Any]) -> bool:
    return not any(issubclass(cls, (Mapping, list, tuple)) for cls in set(map(type, values)))


class Matching:
    """Which documents match a filter, as MongoDB sees it."""

    def __init__(
        self, collection: Collection[dict[str, Any]], filter: Mapping[str, Any], stages: Stages | None = None
    ) -> None:
        check_filter(filter)
        self._collection, self._filter = collection, dict(filter)
        self._stages = stages or Stages()
        self._all: Subset | None = None
        self._known: Callable[[], Kept | None] | None = None
        with said():
            self.key = bson.encode(self._filter, codec_options=collection.codec_options)

    @property
    def shape(self) -> Hashable:
        """What is the same for filters that differ in values only."""
        return self._collection.full_name, _shape(self._filter)

    def remember(self, remembered: Remembered, moment: Callable[[], object | None]) -> None:
        """Say where to look for what was found before; `moment` returns an object that stays while nothing changes."""

        def known() -> Kept | None:
            now = moment()
            return None if now is None else remembered.at((self._collection.full_name, self.key), now)

        if not any(name in self.key for name in _PASSING):
            self._known = known

    def expect(self, count: float | None) -> None:
        """Look whether all that match are known, about so many; have them listed where that is worth it."""
        if self._known is None or self._all is not None or count is None or count > MOST:
            return
        kept, self._known = self._known(), None
        if kept is not None and kept.wanted:
            # As the change stream reads: nothing that could be rolled back.
            self._collection = self._collection.with_options(
                read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("majority")
            )
            kept.all = Subset(self._ids(self._filter))
        if kept is not None:
            self._all = kept.all

    def of(self, ids: Sequence[Any]) -> set[Any]:
        """Return the keys of those of these that match."""
        found: set[Any] = set()
        unlike = list({id_key(id): id for id in ids}.values())
        for start in range(0, len(unlike), _AT_A_TIME):
            among = {"_id": {"$in": unlike[start : start + _AT_A_TIME]}}
            # Side by side where that can be: MongoDB takes some operators only at the top.
            query = {"$and": [among, self._filter]} if "_id" in self._filter else {**self._filter, **among}
            found.update(packed_keys(self._ids(query)))
        return found

    @property
    def listed(self) -> bool:
        """All that match are known."""
        return self._all is not None

    def all(self) -> Subset:
        """Return all that match; asked for once."""
        if self._all is None:
            self._all = Subset(self._ids(self._filter))
        return self._all

    def few(self, most: int) -> bool:
        """Say whether no more than so many match; `all` then knows them."""
        if self._all is None and len(found := self._ids(self._filter, most + 1)) <= most:
            self._all = Subset(found)
        return self._all is not None and len(self._all) <= most

    def _ids(self, query: Mapping[str, Any], limit: int = 0) -> list[Any]:
        """Return the identifiers of those that match, packed."""
        options: dict[str, Any] = {"batch_size": _AT_A_TIME, "limit": limit, "max_time_ms": _TIMEOUT_MS}
        found: list[Any] = []
        with self._stages("filter"), said():
            for batch in cast("Iterator[bytes]", Batches(self._collection, query, {"_id": 1}, **options)):
                ids, rest = ids_of(batch)
                found += ids
                found += packed_ids(bson.decode(each, self._collection.codec_options)["_id"] for each in rest)
        return found


@contextmanager
def said() -> Iterator[None]:
    """Turn what MongoDB and BSON say of a bad filter into our error."""
    try:
        yield
    except ExecutionTimeout:
        raise DeadlineError(
            f"MongoDB did not answer the filter within {_TIMEOUT_MS // 1000} s. An index on its fields would help."
        ) from None
    except OperationFailure as error:
        if error.code is None or error.code >= 10_000 or error.code in _BAD_FILTER:
            said = (error.details or {}).get("errmsg") or str(error)
            raise InvalidInputError(f"MongoDB refuses the filter: {said}") from None
        raise
    except (BSONError, DocumentTooLarge, InvalidOperation, OverflowError, TypeError, ValueError, re.error) as error:
        raise InvalidInputError(f"The filter can't be sent to MongoDB: {error}") from None


class Hints:
    """How many documents passed each filter lately, and filters of its shape: where to begin.

    A wrong hint costs time, never completeness.
    """

    def __init__(self) -> None:
        self._shares: dict[Hashable, float] = {}
        self._tested: dict[Hashable, int] = {}
        """Of how many documents that is the share."""

    def share(self, matching: Matching) -> float | None:
        """Return the share of documents that passed, where it is known."""
        return self._shares.get(matching.key)

    def alike(self, matching: Matching) -> float | None:
        """Return the share that passed the last filter of the same fields and operators."""
        return self._shares.get(matching.shape)

    def put(self, matching: Matching, share: float, tested: int) -> None:
        """Remember which share of so many passed, and forget the oldest of many filters.

        It is a mean with what was known before, as long as that is about the same.
        """
        for name in (matching.key, matching.shape):
            before, of = self._shares.pop(name, share), min(self._tested.get(name, 0), _LATELY)
            if not before / 2 <= share <= 2 * before:
                of = 0
            self._shares[name] = (before * of + share * tested) / (of + tested)
            self._tested[name] = of + tested
        while len(self._shares) > _HINTS:
            oldest = next(iter(self._shares), b"")
            self._shares.pop(oldest, None)
            self._tested.pop(oldest, None)


def planned(
    index: Searchable,
    matching: Matching | None,
    query: Floats,
    n: int,
    *,
    exact: bool,
    hints: Hints,
    unusual: bool = False,
) -> Plan:
    """Search; under a filter, take the cheaper of two complete ways.

    Where many documents match, the best candidates are tested against the filter until `n` have passed: they are in
    order, so the first `n` that pass are the answer. Where few match, MongoDB lists them and only those are compared.
    """
    if matching is None:
        hits = index.search(query, n, exact=exact, unusual=unusual)
        return Plan(hits, hits.kind, hits.candidates, hits.candidates)
    if not exact:
        matching.expect(_expected(index, matching, hints))
        known = matching.listed or _rare(index, matching, n, hints)
        if not known and (plan := _probed(index, matching, query, n, hints, unusual=unusual)) is not None:
            return plan
    among = matching.all()
    hints.put(matching, len(among) / max(1, len(index)), max(1, len(index)))
    hits = index.search(query, n, among=among, exact=exact)
    return Plan(hits, f"filter, then {hits.kind}", len(among), len(among))


def offered(
    index: Searchable, matching: Matching, query: Floats, n: int, hints: Hints, *, unusual: bool = False
) -> Plan | None:
    """Return candidates of which `n` should match, for one who tests them while reading their documents.

    None where `planned` is better: it is not known how many match, or few do, or all that do are known.
    """
    matching.expect(_expected(index, matching, hints))
    most = min(_last_probe(index), len(index) - 1)
    if (share := hints.share(matching)) is None:
        share, most = hints.alike(matching), min(_most_guessed(n), most)
    if matching.listed or not share or (probe := math.ceil(expected(n) / share)) > most:
        return None
    hits = index.search(query, probe, unusual=unusual)
    return Plan(hits, f"{hits.kind}, then filter", len(hits.ids), 0, untested=True)


def planned_many(
    index: Searchable, matching: Matching | None, queries: Sequence[Floats], n: int, *, exact: bool, hints: Hints
) -> list[Plan]:
    """Search for many at a time, as `planned` does for one: the candidates of all are tested in one go."""
    if matching is None:
        found = index.search_many(queries, n, exact=exact)
        return [Plan(hits, hits.kind, hits.candidates, hits.candidates) for hits in found]
    probe = _first_probe(matching, n, hints)
    matching.expect(_expected(index, matching, hints))
    if exact or matching.listed or probe > _last_probe(index) or probe >= len(index):
        return [planned(index, matching, query, n, exact=exact, hints=hints) for query in queries]
    found = index.search_many(queries, probe)
    passed = matching.of([id for hits in found for id in hits.ids])
    plans = [_of_probe(hits, passed, n) for hits in found]
    tested = probe * len(plans)
    hints.put(matching, sum(plan.survivors for plan in plans) / tested, tested)
    return [
        plan if len(plan.hits.ids) == n else planned(index, matching, query, n, exact=False, hints=hints)
        for plan, query in zip(plans, queries, strict=True)
    ]


def _rare(index: Searchable, matching: Matching, n: int, hints: Hints) -> bool:
    """Say whether so few match a new filter that no probe would do; asked where that was so for one of its shape."""
    alike, last = hints.alike(matching), _last_probe(index)
    if hints.share(matching) is not None or alike is None or _needed(n, alike) <= last:
        return False
    return matching.few(int(expected(n) * len(index) / last))


def _probed(
    index: Searchable, matching: Matching, query: Floats, n: int, hints: Hints, *, unusual: bool
) -> Plan | None:
    probe, last = _first_probe(matching, n, hints), _last_probe(index)
    while probe <= last and probe < len(index):
        candidates = index.search(query, probe, unusual=unusual)
        passed = matching.of(candidates.ids)
        share = len(passed) / probe
        hints.put(matching, share, probe)
        if len(passed) >= n:
            return _of_probe(candidates, passed, n)
        if probe == last:
            return None
        probe = max(2 * probe, _needed(n, share)) if passed else 4 * probe  # none of a few may stand for many
    return None


def _expected(index: Searchable, matching: Matching, hints: Hints) -> float | None:
    share = hints.share(matching)
    return None if share is None else share * len(index)


def _last_probe(index: Searchable) -> int:
    small, large = _LAST_PROBE
    return min(large, max(small, len(index) // 100))


def _first_probe(matching: Matching, n: int, hints: Hints) -> int:
    if (share := hints.share(matching)) is not None:
        return _needed(n, share)
    alike = hints.alike(matching)
    return max(_FIRST_PROBE, 4 * n) if alike is None else min(_needed(n, alike), _most_guessed(n))


def _most_guessed(n: int) -> int:
    return max(_GUESSED, _FIRST_PROBE, 4 * n)


def _needed(n: int, share: float) -> int:
    """Return how many candidates to test, so that `n` pass 98 times of 100."""
    return max(_LEAST_PROBE, int(expected(n) / share)) if share > 0 else _LAST_PROBE[1] + 1


def _of_probe(candidates: Hits, passed: set[Any], n: int) -> Plan:
    """Return the first `n` candidates that passed."""
    keep = [i for i, id in enumerate(candidates.ids) if id_key(id) in passed]
    first = keep[:n]
    distances = None if candidates.distances is None else candidates.distances[first]
    hits = Hits([candidates.ids[i] for i in first], candidates.scores[first], distances)
    return Plan(hits, f"{candidates.kind}, then filter", len(candidates.ids), len(keep))
