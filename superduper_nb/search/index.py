"""Vectors in one array, searched completely, changed while they are searched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import numpy as np

from superduper_nb.search.coding import Coder
from superduper_nb.search.hits import NOTHING, Hits
from superduper_nb.search.ids import id_key, id_keys, packed_ids, packed_keys
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import Rows, View
from superduper_nb.search.scoring import Scorer
from superduper_nb.search.subset import Subset

__all__ = ["Hits", "VectorIndex"]

_FIRST_CAPACITY: Final = 1024
_DEAD_SHARE: Final = 0.25


class VectorIndex:
    """An index in memory.

    Searches never wait for each other and hardly for changes: they read an array to which rows are only added. A
    changed vector is a new row and a dead one; when a quarter is dead, the living move to a new array. Large ones are
    searched by codes (`superduper_nb.search.scan`), which a thread makes of the rows.

    Parameters
    ----------
    measure : Measure
        How near two vectors are.
    options : IndexOptions, optional
        Which kind, where it is not to be chosen by size.
    rows : Rows, optional
        Those that another had.
    folder : pathlib.Path, optional
        Where the vectors of a compact one are; default: the system's for temporary files.
    expected : int, default 0
        For how many vectors to make room at once.
    """

    missing = 0
    """Parts that do not answer: it is in one piece."""

    def __init__(
        self,
        measure: Measure,
        options: IndexOptions | None = None,
        rows: Rows | None = None,
        folder: Path | None = None,
        expected: int = 0,
    ) -> None:
        self.measure, self.options = measure, options or IndexOptions()
        self._folder, self._expected = folder, expected
        self._lock, self._changing = threading.Lock(), threading.Lock()
        self._slots = {} if rows is None else _slots(rows)
        self._rows = rows if self._slots else None
        self._moment = object()
        """Another one after each change."""
        self._scorer = Scorer(measure, self.options)
        self._coder = Coder(measure, self.options, self._lock)
        if rows is not None and self.options.compact:
            rows.let_go()

    def anew(self, rows: Rows | None = None, expected: int = 0) -> VectorIndex:
        """Return another of the same measure and options."""
        return VectorIndex(self.measure, self.options, rows, self._folder, expected)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def dimension(self) -> int | None:
        """Numbers a vector; None while it is empty."""
        return None if self._rows is None else int(self._rows.vectors.shape[1])

    @property
    def kind(self) -> str:
        """``"graph"`` or ``"scan"`` where that or codes are searched first, else ``"exact"``."""
        rows = self._rows
        if rows is None or not rows.segments or not rows.depth:
            return "exact"
        return "scan" if rows.graph is None else "graph"

    @property
    def memory(self) -> dict[str, int]:
        """What is held in memory, in bytes: vectors, codes, a graph, identifiers with the table that finds them."""
        rows = self._rows
        if rows is None:
            return {"vectors": 0, "codes": 0, "graph": 0, "ids": 0}
        held = rows.memory(compact=self.options.compact)
        slot = sys.getsizeof(rows.count)
        return held | {"ids": held["ids"] + sys.getsizeof(self._slots) + slot * len(self._slots)}

    @property
    def nbytes(self) -> int:
        """All of it."""
        return sum(self.memory.values())

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
        self.change(ids, vectors, [])

    def remove(self, ids: Sequence[Any]) -> None:
        """Take identifiers out; those that are not there are no matter."""
        self.change([], np.empty((0, 0)), ids)

    def change(self, ids: list[Any], vectors: Floats, gone: Sequence[Any]) -> None:
        """Put some (their identifiers packed) and remove others, in one step: no search sees a state in between."""
        keys, lost = packed_keys(ids), id_keys(gone)
        if len(set(keys)) < len(keys):
            last = dict(zip(keys, range(len(keys)), strict=True))
            ids, vectors, keys = [ids[i] for i in last.values()], vectors[list(last.values())], list(last)
        with self._changing:
            rows, slots = self._room(len(ids), vectors.shape[1]) if ids else (self._rows, self._slots)
            if rows is not None and ids:
                rows.write(np.asarray(vectors, dtype=np.float32))
            with self._lock:  # searches wait for no more than this
                if self._rows is not None and rows is not None and rows.ids is self._rows.ids:
                    rows.take_over(self._rows)
                self._rows, self._slots, self._moment = rows, slots, object()
                if rows is not None:
                    self._show(rows, ids, keys)
                    self._remove(rows, lost)

    def _show(self, rows: Rows, ids: list[Any], keys: list[Any]) -> None:
        if not self._slots.keys().isdisjoint(keys):
            rows.alive[[slot for slot in map(self._slots.get, keys) if slot is not None]] = False
        self._slots.update(zip(keys, range(rows.count, rows.count + len(ids)), strict=True))
        rows.show(ids)

    def _remove(self, rows: Rows, keys: list[Any]) -> None:
        found = map(self._slots.pop, keys, repeat(None))
        rows.alive[[slot for slot in found if slot is not None]] = False
        if not self._slots:
            self._rows = None

    def _room(self, extra: int, dimension: int) -> tuple[Rows, dict[Any, int]]:
        """Return rows with room for so many more, and where each identifier is in them."""
        rows = self._rows
        if rows is None:
            made = Rows.by_page if self._expected and not self.options.compact else self._empty
            return made(max(extra, _FIRST_CAPACITY, self._expected), dimension), self._slots
        return (rows, self._slots) if rows.count + extra <= len(rows.vectors) else self._moved(rows, extra)

    def _empty(self, capacity: int, dimension: int) -> Rows:
        if self.options.compact:
            return Rows.in_file(capacity, dimension, self._folder)
        return Rows.empty(capacity, dimension)

    def _moved(self, rows: Rows, extra: int) -> tuple[Rows, dict[Any, int]]:
        """Copy to a larger array; leave the dead behind where there are many."""
        living, count = len(self._slots), rows.count
        if count - living <= _DEAD_SHARE * count:
            new = self._empty(count + max(extra, count // 4, _FIRST_CAPACITY), rows.vectors.shape[1])
            for name in ("vectors", "norms", "alive"):
                getattr(new, name)[:count] = getattr(rows, name)[:count]
            new.ids, new.count = rows.ids, count
            return new, self._slots
        keep = np.flatnonzero(rows.alive[:count])
        new = self._empty(living + max(extra, living // 4, _FIRST_CAPACITY), rows.vectors.shape[1])
        new.write(rows.vectors[keep])
        new.show([rows.ids[slot] for slot in keep.tolist()])
        return new, dict(zip(packed_keys(new.ids), range(living), strict=True))

    def complete(self) -> None:
        """Be told that all are there that were expected."""
        if (rows := self._rows) is not None:
            rows.join_pages()
        self.tend()

    # --- codes -------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Have codes made, and a graph built, in threads, where that is due; to be called after changes."""
        self._coder.tend(self._current)

    @property
    def tending(self) -> bool:
        """Codes are being made."""
        return self._coder.busy

    @property
    def has_new_graph(self) -> bool:
        """It has a graph that was not saved yet."""
        rows = self._rows
        return rows is not None and rows.graph is not None and rows.graph.is_new

    def settle(self) -> None:
        """Have the codes made that are due, and a graph, and wait for them."""
        self._coder.settle(self._current)

    def _current(self) -> Rows | None:
        return self._rows

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
        """Return the `n` nearest of each query."""
        view = self.view()
        return [NOTHING] * len(queries) if view is None else self._scorer.many(view, queries, n, exact=exact)

    def search(
        self, query: Floats, n: int, *, among: Subset | None = None, exact: bool = False, unusual: bool = False
    ) -> Hits:
        """Return the `n` nearest, of all or `among` some identifiers.

        Parameters
        ----------
        query : array of shape (d,), float32
        n : int
        among : Subset, optional
            Those that are not in the index count as not there.
        exact : bool, default False
            Score every vector, also where codes would do.
        unusual : bool, default False
            The query is between vectors rather than like one: a graph would miss more of its nearest than of others'.
        """
        with self._lock:
            view = self._view()
            places = None if among is None else among.places(self._slots, self._moment)
        if view is None:
            return NOTHING
        if places is not None:
            return self._scorer.among(view, places, query, n, exact=exact)
        return self._scorer.nearest(replace(view, graph=None) if unusual else view, query, n, exact=exact)

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
        return View(rows, rows.count, living, alive, rows.segments, rows.depth, rows.graph, rows.saved)


def _slots(rows: Rows) -> dict[Any, int]:
    """Return where each identifier is."""
    keys, alive = packed_keys(rows.ids), rows.alive[: rows.count]
    if alive.all():
        return dict(zip(keys, range(rows.count), strict=True))
    return {keys[slot]: slot for slot in np.flatnonzero(alive).tolist()}  # an identifier may have had a row before
