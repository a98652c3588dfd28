"""Vectors in one array, searched completely, changed while they are searched."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

import numpy as np

from superduper_nb.search.blocks import near_rows
from superduper_nb.search.ids import id_key, id_keys, packed_ids, packed_keys, sort_key, unpacked_id
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.rows import Rows, View
from superduper_nb.search.scan import CALIBRATED_N, Segment, Slots, calibrated, encoder

__all__ = ["Hits", "VectorIndex"]

_FIRST_CAPACITY: Final = 1024
_DEAD_SHARE: Final = 0.25

_GATHER_SHARE: Final = 0.25

_SCAN_FROM: Final = 4_000_000
"""Numbers (rows x dimension) from which a scan of codes is worth it: below, the exact one takes a millisecond."""
_SCAN_GAIN: Final = 32
"""One candidate of a scan costs about as much as so many rows of the exact way."""
_TAIL: Final = 2048
"""Rows behind the last segment that are scanned exactly, before a segment is made of them."""
_SEGMENT: Final = 131_072
"""Rows a segment, at most: it is made anew as a whole, which takes about 3 µs a row."""


@dataclass(frozen=True, slots=True)
class Hits:
    """The best of an index for one query, best first, ties by ``_id``."""

    ids: list[Any]
    scores: Floats
    distances: Floats | None
    kind: str = "exact"
    candidates: int = 0


_EMPTY: Final = Hits([], np.empty(0), None)


class VectorIndex:
    """An index in memory.

    Searches never wait for each other and hardly for changes: they read an array to which rows are only added. A
    changed vector is a new row and a dead one; when a quarter is dead, the living move to a new array. Large ones are
    searched by codes (`superduper_nb.search.scan`), which a thread makes of the rows.

    Parameters
    ----------
    measure : Measure
        How near two vectors are.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._lock = threading.Lock()
        self._rows: Rows | None = None
        self._slots: dict[Any, int] = {}
        self._encode = encoder(measure)
        self._builder: threading.Thread | None = None

    @classmethod
    def of(cls, measure: Measure, rows: Rows) -> VectorIndex:
        """Make one of rows that another had."""
        index = cls(measure)
        keys, alive = packed_keys(rows.ids), rows.alive[: rows.count]
        index._slots = dict(zip(keys, range(rows.count), strict=True))
        if not alive.all():  # an identifier may have had a row before
            index._slots = {keys[slot]: slot for slot in np.flatnonzero(alive).tolist()}
        index._rows = rows if index._slots else None
        return index

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def dimension(self) -> int | None:
        """Numbers a vector; None while it is empty."""
        return None if self._rows is None else int(self._rows.vectors.shape[1])

    @property
    def kind(self) -> str:
        """``"scan"`` where codes are searched first, else ``"exact"``."""
        rows = self._rows
        return "scan" if rows is not None and rows.segments and rows.depth else "exact"

    @property
    def nbytes(self) -> int:
        """Memory of the arrays and codes, bytes."""
        rows = self._rows
        if rows is None:
            return 0
        codes = rows.coded * rows.vectors.shape[1] // 2
        return int(rows.vectors.nbytes + rows.norms.nbytes + rows.alive.nbytes + codes)

    # --- change ------------------------------------------------------------------------------------------------

    def put(self, ids: Sequence[Any], vectors: Floats) -> None:
        """Add vectors, or replace those of identifiers that are there.

        Parameters
        ----------
        ids : sequence
            Identifiers; of two that are equal the last counts.
        vectors : array of shape (len(ids), d)
            Finite; under cosine, without zero vectors.
        """
        self.put_packed(packed_ids(ids), vectors)

    def put_packed(self, ids: list[Any], vectors: Floats) -> None:
        """Do the same for identifiers that are packed already."""
        if not ids:
            return
        keys = packed_keys(ids)
        if len(last := dict(zip(keys, range(len(keys)), strict=True))) < len(keys):
            ids, vectors, keys = [ids[i] for i in last.values()], vectors[list(last.values())], list(last)
        with self._lock:
            rows = self._room(len(ids), vectors.shape[1])
            first = rows.count
            rows.append(np.asarray(vectors, dtype=np.float32), ids)
            old = [slot for slot in map(self._slots.get, keys) if slot is not None]
            rows.alive[old] = False
            self._slots.update(zip(keys, range(first, rows.count), strict=True))

    def remove(self, ids: Sequence[Any]) -> None:
        """Take identifiers out; those that are not there are no matter."""
        with self._lock:
            found = map(self._slots.pop, id_keys(ids), repeat(None))
            slots = [slot for slot in found if slot is not None]
            if not self._slots:
                self._rows = None
            elif self._rows is not None:
                self._rows.alive[slots] = False

    def _room(self, extra: int, dimension: int) -> Rows:
        rows = self._rows
        if rows is None:
            self._rows = rows = Rows.empty(max(extra, _FIRST_CAPACITY), dimension)
        elif rows.count + extra > len(rows.vectors):
            self._rows = rows = self._moved(rows, extra)
        return rows

    def _moved(self, rows: Rows, extra: int) -> Rows:
        """Copy to a larger array; leave the dead behind where there are many."""
        living, count = len(self._slots), rows.count
        if count - living <= _DEAD_SHARE * count:
            new = Rows.empty(count + max(extra, count // 4, _FIRST_CAPACITY), rows.vectors.shape[1])
            for name in ("vectors", "norms", "alive"):
                getattr(new, name)[:count] = getattr(rows, name)[:count]
            new.ids, new.count, new.segments, new.depth = rows.ids, count, rows.segments, rows.depth
            return new
        keep = np.flatnonzero(rows.alive[:count])
        new = Rows.empty(living + max(extra, living // 4, _FIRST_CAPACITY), rows.vectors.shape[1])
        new.append(rows.vectors[keep], [rows.ids[slot] for slot in keep.tolist()])
        self._slots = dict(zip(packed_keys(new.ids), range(living), strict=True))
        return new

    # --- codes -------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Have codes made, in a thread, of rows that have none, where there are many; to be called after changes."""
        with self._lock:
            rows = self._rows
            if rows is None or rows.depth is None or self._encode is None or self._builder is not None:
                return
            if rows.count * rows.vectors.shape[1] >= _SCAN_FROM and rows.count - rows.coded >= _TAIL:
                self._builder = threading.Thread(target=self._build, name="vector codes", daemon=True)
                self._builder.start()

    @property
    def tending(self) -> bool:
        """Codes are being made."""
        return self._builder is not None

    def settle(self) -> None:
        """Have the codes made that are due, and wait for them."""
        self.tend()
        while (builder := self._builder) is not None:
            builder.join()

    def _build(self) -> None:
        try:
            while (due := self._due()) is not None:
                rows, start, stop = due
                segment, depth = self._segment(rows, start, stop)
                with self._lock:
                    if self._rows is None or self._rows.ids is not rows.ids:
                        continue  # the rows moved to other slots meanwhile
                    kept = tuple(s for s in self._rows.segments if s.stop <= start)
                    self._rows.segments = (*kept, segment)
                    self._rows.depth = None if depth is None else max(depth, self._rows.depth or 0)
        finally:
            self._builder = None

    def _due(self) -> tuple[Rows, int, int] | None:
        """Return which slots to make a segment of: the tail, and smaller segments before it."""
        with self._lock:
            rows = self._rows
            if rows is None or rows.depth is None or rows.count - rows.coded < _TAIL:
                return None
            start, stop = rows.coded, min(rows.count, rows.coded + _SEGMENT)
            for segment in reversed(rows.segments):
                if segment.stop - segment.start > stop - start or stop - segment.start > _SEGMENT:
                    break
                start = segment.start
            return rows, start, stop

    def _segment(self, rows: Rows, start: int, stop: int) -> tuple[Segment, int | None]:
        assert self._encode is not None
        vectors, norms = rows.vectors[start:stop], rows.norms[start:stop]
        cosine = self.measure.name == "cosine"
        segment = Segment(start, stop, self._encode(vectors / norms[:, None] if cosine else vectors))
        return segment, calibrated(segment, vectors, norms, self.measure)

    # --- search ------------------------------------------------------------------------------------------------

    def vector(self, id: Any) -> Floats | None:
        """Return the vector of an identifier, or None."""
        with self._lock:
            slot = self._slots.get(id_key(id))
            return None if slot is None or self._rows is None else self._rows.vectors[slot].copy()

    def vectors(self, ids: Sequence[Any]) -> tuple[list[int], Floats]:
        """Return the positions of the identifiers that are there, and their vectors."""
        with self._lock:
            slots = list(map(self._slots.get, id_keys(ids)))
            there = [i for i, slot in enumerate(slots) if slot is not None]
            rows = None if self._rows is None else self._rows.vectors
            return there, np.empty((0, 0)) if rows is None else rows[[slot for slot in slots if slot is not None]]

    def search_many(self, queries: Sequence[Floats], n: int, *, exact: bool = False) -> list[Hits]:
        """Return the `n` nearest of each query: by codes where that is quicker, else by products of matrices."""
        view = self.view()
        if view is None:
            return [_EMPTY] * len(queries)
        found = [None if exact else self._scan(view, query, n) for query in queries]
        left = [query for query, hits in zip(queries, found, strict=True) if hits is None]
        rest = iter(self._products(view, left, n))
        return [next(rest) if hits is None else hits for hits in found]

    def _products(self, view: View, queries: Sequence[Floats], n: int) -> list[Hits]:
        """Score every row for each query, by products of matrices."""
        if not queries:
            return []
        rows, count = view.rows, view.count
        near = near_rows(np.stack(queries), rows.vectors[:count], rows.norms[:count], n, self.measure, view.alive)
        return [
            self._ranked(rows, slots, query, n, "exact", view.living)
            for slots, query in zip(near, queries, strict=True)
        ]

    def search(self, query: Floats, n: int, *, among: Sequence[Any] | None = None, exact: bool = False) -> Hits:
        """Return the `n` nearest, of all or `among` some identifiers.

        Parameters
        ----------
        query : array of shape (d,), float32
        n : int
        among : sequence, optional
            Identifiers; those that are not in the index count as not there.
        exact : bool, default False
            Score every vector, also where codes would do.
        """
        keys = None if among is None else id_keys(among)
        with self._lock:
            view = self._view()
            subset = None if keys is None else [slot for slot in map(self._slots.get, keys) if slot is not None]
        if view is None:
            return _EMPTY
        if subset is not None:
            return self._among(view, np.unique(np.array(subset, dtype=np.intp)), query, n)
        if not exact and (found := self._scan(view, query, n)) is not None:
            return found
        return self._among(view, None if view.alive is None else np.flatnonzero(view.alive), query, n)

    def view(self) -> View | None:
        """Return what there is now, for as long as it is wanted; None of an empty one."""
        with self._lock:
            return self._view()

    def _view(self) -> View | None:
        rows = self._rows
        if rows is None:
            return None
        living = len(self._slots)
        alive = None if rows.count == living else rows.alive[: rows.count].copy()
        return View(rows, rows.count, living, alive, rows.segments, rows.depth)

    def _among(self, view: View, slots: Slots | None, query: Floats, n: int) -> Hits:
        """Score these slots, or all."""
        rows, count = view.rows, view.count
        if slots is not None and not len(slots):
            return _EMPTY
        if slots is not None and len(slots) <= _GATHER_SHARE * count:
            scores, error = self.measure.rough(query, rows.vectors[slots], rows.norms[slots])
        else:  # read in one go, also those that do not count: quicker than to gather many
            scores, error = self.measure.rough(query, rows.vectors[:count], rows.norms[:count])
            if slots is not None:
                scores, error = scores[slots], error[slots] if isinstance(error, np.ndarray) else error
        near = _candidates(scores, error, n)
        return self._ranked(rows, near if slots is None else slots[near], query, n, "exact", len(scores))

    def _scan(self, view: View, query: Floats, n: int) -> Hits | None:
        """Score what the codes hold to be near, and the tail; None where that would not be less than everything."""
        if not view.segments or view.depth is None:
            return None
        depth = view.depth + 3 * max(0, n - CALIBRATED_N)
        coded = view.segments[-1].stop
        if depth * len(view.segments) * _SCAN_GAIN > coded:
            return None
        near = np.concatenate([segment.search(query, depth) for segment in view.segments])
        if view.alive is not None:
            near = near[view.alive[near]]
        if len(near) < max(n, depth // 2):
            return None  # most of what is near is dead
        if coded < view.count:
            near = np.concatenate([near, self._tail(view, coded, query, n)])
        return self._ranked(view.rows, near, query, n, "scan", len(near))

    def _tail(self, view: View, start: int, query: Floats, n: int) -> Slots:
        """Return the slots of the best of the rows that have no codes yet."""
        rows, part = view.rows, slice(start, view.count)
        scores, error = self.measure.rough(query, rows.vectors[part], rows.norms[part])
        if view.alive is None:
            return _candidates(scores, error, n) + start
        slots = np.flatnonzero(view.alive[part])
        error = error[slots] if isinstance(error, np.ndarray) else error
        return slots[_candidates(scores[slots], error, n)] + start

    def _ranked(self, rows: Rows, slots: Slots, query: Floats, n: int, kind: str, candidates: int) -> Hits:
        """Score candidates in float64, and put the best `n` in order."""
        if not len(slots):
            return _EMPTY
        scores, distances = self.measure.exact(query, rows.vectors[slots])
        if len(slots) > 2 * n:  # fewer identifiers to compare
            best = np.flatnonzero(scores >= np.partition(scores, len(scores) - n)[len(scores) - n])
            slots, scores, distances = slots[best], scores[best], None if distances is None else distances[best]
        ids = [unpacked_id(rows.ids[slot]) for slot in slots.tolist()]
        order = _order(scores, ids)[:n]
        kept = None if distances is None else distances[order]
        return Hits([ids[i] for i in order], scores[order], kept, kind, candidates)


def _order(scores: Floats, ids: list[Any]) -> list[int]:
    """Return the positions, best first, ties by identifier."""
    order = np.argsort(-scores, kind="stable")
    if (scores[order[1:]] != scores[order[:-1]]).all():
        return list(order.tolist())
    values = scores.tolist()
    return sorted(range(len(ids)), key=lambda i: (-values[i], sort_key(ids[i])))


def _candidates(scores: Floats, error: Floats | float, n: int) -> Slots:
    """Return positions that are sure to hold the `n` best and all that tie with the last of them."""
    if n >= len(scores):
        return np.arange(len(scores))
    surely = scores - error
    threshold = np.partition(surely, len(surely) - n)[len(surely) - n]
    return np.flatnonzero(scores + error >= threshold)
