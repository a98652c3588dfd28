"""Vectors in one array, searched exactly, changed while they are searched."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from superduper_nb.search.ids import id_key, sort_key
from superduper_nb.search.measures import Floats, Measure

__all__ = ["Hits", "VectorIndex"]

_FIRST_CAPACITY: Final = 1024
_DEAD_SHARE: Final = 0.25

Slots = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Hits:
    """The best of an index for one query, best first, ties by ``_id``."""

    ids: list[Any]
    scores: Floats
    distances: Floats | None


@dataclass(slots=True)
class _Rows:
    """Append-only storage. A slot's vector and identifier never change; only `alive` does.

    Attributes
    ----------
    vectors : array of shape (capacity, d), float32
    norms : array of shape (capacity,), float32
    alive : array of shape (capacity,), bool
    count : int
        Slots in use, dead ones among them.
    """

    vectors: Floats
    norms: Floats
    alive: NDArray[np.bool_]
    ids: list[Any]
    count: int = 0

    @classmethod
    def empty(cls, capacity: int, dimension: int) -> _Rows:
        """Make room for `capacity` vectors."""
        vectors = np.empty((capacity, dimension), dtype=np.float32)
        return cls(vectors, np.empty(capacity, dtype=np.float32), np.zeros(capacity, dtype=bool), [])

    def append(self, vectors: Floats, ids: list[Any]) -> None:
        """Add rows behind the last; there must be room."""
        end = self.count + len(ids)
        self.vectors[self.count : end] = vectors
        self.norms[self.count : end] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        self.alive[self.count : end] = True
        self.ids.extend(ids)
        self.count = end


class VectorIndex:
    """An exact index.

    Searches never wait for each other and hardly for changes: they read an array to which rows are only added. A changed
    vector is a new row and a dead one; when a quarter is dead, the living move to a new array.

    Parameters
    ----------
    measure : Measure
        How near two vectors are.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._lock = threading.Lock()
        self._rows: _Rows | None = None
        self._slots: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def dimension(self) -> int | None:
        """Numbers a vector; None while it is empty."""
        return None if self._rows is None else self._rows.vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, bytes."""
        rows = self._rows
        return 0 if rows is None else rows.vectors.nbytes + rows.norms.nbytes + rows.alive.nbytes

    # --- change ------------------------------------------------------------------------------------------------

    def put(self, ids: list[Any], vectors: Floats) -> None:
        """Add vectors, or replace those of identifiers that are there.

        Parameters
        ----------
        ids : list
            Distinct identifiers.
        vectors : array of shape (len(ids), d)
        """
        if not ids:
            return
        with self._lock:
            rows = self._room(len(ids), vectors.shape[1])
            first = rows.count
            rows.append(np.ascontiguousarray(vectors, dtype=np.float32), ids)
            for slot, id in enumerate(ids, start=first):
                old = self._slots.get(key := id_key(id))
                if old is not None:
                    rows.alive[old] = False
                self._slots[key] = slot

    def remove(self, ids: list[Any]) -> None:
        """Take identifiers out; those that are not there are no matter."""
        with self._lock:
            for id in ids:
                slot = self._slots.pop(id_key(id), None)
                if slot is not None and self._rows is not None:
                    self._rows.alive[slot] = False

    def _room(self, extra: int, dimension: int) -> _Rows:
        rows = self._rows
        if rows is None:
            self._rows = rows = _Rows.empty(max(extra, _FIRST_CAPACITY), dimension)
        elif rows.count + extra > len(rows.vectors):
            self._rows = rows = self._moved(rows, extra)
        return rows

    def _moved(self, rows: _Rows, extra: int) -> _Rows:
        """Copy to a larger array; leave the dead behind where there are many."""
        dead = rows.count - len(self._slots)
        keep = np.flatnonzero(rows.alive[: rows.count]) if dead > _DEAD_SHARE * rows.count else np.arange(rows.count)
        new = _Rows.empty(max(2 * len(keep), len(keep) + extra), rows.vectors.shape[1])
        new.append(rows.vectors[keep], [rows.ids[slot] for slot in keep])
        new.alive[: new.count] = rows.alive[keep]
        self._slots = {id_key(new.ids[slot]): slot for slot in np.flatnonzero(new.alive[: new.count]).tolist()}
        return new

    # --- search ------------------------------------------------------------------------------------------------

    def vector(self, id: Any) -> Floats | None:
        """Return the vector of an identifier, or None."""
        with self._lock:
            slot = self._slots.get(id_key(id))
            return None if slot is None or self._rows is None else self._rows.vectors[slot].copy()

    def search(self, query: Floats, n: int, *, among: list[Any] | None = None) -> Hits:
        """Return the `n` nearest, of all or `among` some identifiers.

        Parameters
        ----------
        query : array of shape (d,), float32
        n : int
        among : list, optional
            Identifiers; those that are not in the index count as not there.
        """
        with self._lock:
            rows = self._rows
            if rows is None:
                return Hits([], np.empty(0), None)
            slots = self._living(rows) if among is None else self._slots_of(among)
        vectors, norms = rows.vectors, rows.norms
        if slots is not None:
            vectors, norms = vectors[slots], norms[slots]
        else:
            slots = np.arange(len(self._slots))
        return self._best(rows, slots, query, n, vectors[: len(slots)], norms[: len(slots)])

    def _living(self, rows: _Rows) -> Slots | None:
        """Return the living slots; None where all are, and the array can be read as it stands."""
        return None if rows.count == len(self._slots) else np.flatnonzero(rows.alive[: rows.count])

    def _slots_of(self, ids: list[Any]) -> Slots:
        found = {slot for id in ids if (slot := self._slots.get(id_key(id))) is not None}
        return np.array(sorted(found), dtype=np.intp)

    def _best(self, rows: _Rows, slots: Slots, query: Floats, n: int, vectors: Floats, norms: Floats) -> Hits:
        if self.measure.name == "cosine":  # a zero vector has no direction: it is near nothing
            there = norms > 0
            if not there.all():
                slots, vectors, norms = slots[there], vectors[there], norms[there]
        if not len(slots):
            return Hits([], np.empty(0), None)
        rough = self.measure.rough(query, vectors, norms)
        candidates = _candidates(rough, n, self.measure.slack(rough))
        scores, distances = self.measure.exact(query, vectors[candidates])
        ids = [rows.ids[slot] for slot in slots[candidates]]
        order = sorted(range(len(ids)), key=lambda i: (-scores[i], sort_key(ids[i])))[:n]
        return Hits([ids[i] for i in order], scores[order], None if distances is None else distances[order])


def _candidates(rough: Floats, n: int, slack: float) -> Slots:
    """Return positions that are sure to hold the `n` best and all that tie with the last of them."""
    if n >= len(rough):
        return np.arange(len(rough))
    threshold = np.partition(rough, len(rough) - n)[len(rough) - n] - 2 * slack
    return np.flatnonzero(rough >= threshold)
