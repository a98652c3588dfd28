"""What a search found: the best of some candidates, scored in float64, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from superduper_nb.search.ids import sort_key, unpacked_id
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.rows import Rows
from superduper_nb.search.scan import Flags, Slots

__all__ = ["NOTHING", "Candidates", "Hits", "best", "best_of_each"]


@dataclass(frozen=True, slots=True)
class Hits:
    """The best of an index for one query, best first, ties by ``_id``."""

    ids: list[Any]
    scores: Floats
    distances: Floats | None
    kind: str = "exact"
    candidates: int = 0


NOTHING: Final = Hits([], np.empty(0), None)


class Candidates(NamedTuple):
    """What may be among the best for each of some queries: arrays of shape (queries, k).

    Attributes
    ----------
    slots : array of int
    there : array of bool, or None
        It counts: rows are filled up with others. None: all do.
    doubtful : array of bool
        Where it is among the best, others that are not here may be, too.
    """

    slots: Slots
    there: Flags | None
    doubtful: Flags

    def beside(self, more: list[Slots]) -> Candidates:
        """Return them with some more for each query: in no doubt, unless all others are."""
        slots, there = _filled_up(more)
        lost = np.broadcast_to(self.doubtful.all(axis=1, keepdims=True), slots.shape)
        doubtful = np.hstack([self.doubtful, lost])
        if there is not None or self.there is not None:
            known = [(self.there, self.slots), (there, slots)]
            there = np.hstack([np.ones(of.shape, dtype=bool) if some is None else some for some, of in known])
        return Candidates(np.hstack([self.slots, slots]), there, doubtful)


def _filled_up(rows: list[Slots]) -> tuple[Slots, Flags | None]:
    """Return rows as one array, and which of it they are; None: all."""
    if len(set(map(len, rows))) == 1:
        return np.stack(rows), None
    slots = np.zeros((len(rows), max(map(len, rows))), dtype=np.intp)
    there = np.zeros(slots.shape, dtype=bool)
    for i, row in enumerate(rows):
        slots[i, : len(row)], there[i, : len(row)] = row, True
    return slots, there


def best(
    rows: Rows, slots: Slots, query: Floats, n: int, measure: Measure, kind: str, candidates: int
) -> tuple[Hits, Slots]:
    """Score candidates in float64; return the best `n` in order, and which of the candidates they are."""
    if not len(slots):
        return NOTHING, slots
    scores, distances = measure.exact(query, rows.vectors.take(slots, axis=0))
    order, ids = _in_order(scores, slots, rows.ids, n)
    return Hits(ids, scores[order], None if distances is None else distances[order], kind, candidates), order


def best_of_each(
    rows: Rows, candidates: Candidates, queries: Floats, n: int, measure: Measure, kind: str
) -> list[Hits | None]:
    """Do the same for many queries at a time; None where better ones may be behind the candidates.

    Each call of numpy lets go of the interpreter, and has to wait for it where others want it: so none is made for a
    single query, but where scores tie or there are few candidates.
    """
    slots, there, doubtful = candidates

    def alone(i: int) -> Hits | None:
        own = slice(None) if there is None else there[i]
        near = slots[i, own]
        made, places = best(rows, near, queries[i], n, measure, kind, len(near))
        return None if (doubtful[i, own][places] if made.ids else doubtful[i]).any() else made

    if len(queries) == 1:
        return [alone(0)]
    scores, distances = measure.exact_each(queries, rows.vectors.take(slots, axis=0))
    if there is not None:
        scores[~there] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : n + 1]
    ranked = np.take_along_axis(scores, order, axis=1)
    tied = (ranked[:, 1:] == ranked[:, :-1]).any(axis=1).tolist()
    order = order[:, :n]
    open_ended = np.asarray(np.take_along_axis(doubtful, order, axis=1).any(axis=1)).tolist()
    found = np.take_along_axis(slots, order, axis=1).tolist()
    far = None if distances is None else np.take_along_axis(distances, order, axis=1)
    counts = [slots.shape[1]] * len(slots) if there is None else there.sum(axis=1).tolist()

    def hits(i: int) -> Hits | None:
        if open_ended[i]:
            return None
        if tied[i] or counts[i] < n:
            return alone(i)
        ids = [unpacked_id(rows.ids[slot]) for slot in found[i]]
        return Hits(ids, ranked[i, :n], None if far is None else far[i], kind, counts[i])

    return list(map(hits, range(len(queries))))


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
