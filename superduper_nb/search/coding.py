"""Makes codes of the rows of an index, in a thread beside its searches; then a graph, where one is asked for."""

from __future__ import annotations

import threading
from typing import Final

from superduper_nb.search.graphing import Current, Grapher
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import Rows
from superduper_nb.search.scan import Segment, as_coded, calibrated, encoder, often_doubtful

__all__ = ["Coder"]

_SCAN_FROM: Final = 4_000_000
"""Numbers (rows x dimension) from which a scan of codes is worth it: below, the exact one takes a millisecond."""
_TAIL: Final = 2048
"""Rows behind the last segment that are scanned exactly, before a segment is made of them."""
_STEP: Final = 256
"""So many, before they are added to a segment: that costs a hundredth of what it takes to make one."""
_SEGMENT: Final = 524_288
"""Rows a segment, at most: each is a scan, and gives its own candidates."""
_PART: Final = 131_072
"""Rows that are made ready to be coded at a time: under cosine they are copied."""
_GROWTH: Final = 0.25
"""How much longer a segment may become at a time: until they are shown, codes that were added are in the way."""


class Coder:
    """Keeps the rows of an index coded, but for a short tail.

    Parameters
    ----------
    measure : Measure
        What the codes are for.
    options : IndexOptions
        From when, and how deep they are searched.
    lock : threading.Lock
        The index's.

    Notes
    -----
    The index is not held, only asked for its rows (with the lock held): it would be freed late, as a part of a cycle.
    """

    def __init__(self, measure: Measure, options: IndexOptions, lock: threading.Lock) -> None:
        self._measure, self._options, self._lock = measure, options, lock
        self._encode = None if options.kind == "exact" else encoder(measure)
        self._from = 0 if options.coded else _SCAN_FROM
        self._builder: threading.Thread | None = None
        self._grapher = Grapher(measure, options, lock, self.tend)

    @property
    def busy(self) -> bool:
        """Codes are being made."""
        return self._builder is not None

    def tend(self, current: Current) -> None:
        """Begin, where there are many rows without codes, or in no graph."""
        with self._lock:
            if self._builder is not None:
                return
            if self._due(current()) is None:
                self._grapher.tend(current)
                return
            self._builder = threading.Thread(target=self._build, args=(current,), name="vector codes", daemon=True)
            self._builder.start()

    def settle(self, current: Current) -> None:
        """Have made what is due, and wait for it."""
        self.tend(current)
        while (builder := self._builder or self._grapher.builder) is not None:
            builder.join()
            self.tend(current)

    def _build(self, current: Current) -> None:
        try:
            while (due := self._next(current)) is not None:
                rows, start, stop = due
                made, depth = self._segment(rows, start, stop)
                with self._lock:
                    now = current()
                    if now is None or now.ids is not rows.ids:
                        continue  # the rows moved to other slots meanwhile
                    kept = tuple(s for s in now.segments if s.stop <= start)
                    now.segments = (*kept, *made)
                    now.depth = None if depth is None else max(depth, now.depth or 0)
                    if depth is None:
                        now.graph = None
                    if self._options.compact:
                        now.let_go()
        except BaseException:
            self._builder = None
            raise

    def _next(self, current: Current) -> tuple[Rows, int, int] | None:
        """Return what to make next; where that is nothing, be done, and see to the graph."""
        with self._lock:
            if (due := self._due(current())) is None:
                self._builder = None
                self._grapher.tend(current)
            return due

    def _due(self, rows: Rows | None) -> tuple[Rows, int, int] | None:
        """Return which slots to make a segment of: the tail, and the last segment where there is room in it."""
        if rows is None or rows.depth is None or self._encode is None:
            return None
        if rows.count * rows.vectors.shape[1] < self._from:
            return None
        last = rows.segments[-1] if rows.segments else None
        full = last is None or last.start + _SEGMENT <= last.stop or last.stop <= rows.planned
        if rows.count - rows.coded < (_TAIL if full else _STEP):
            return None
        start = rows.coded if last is None or full else last.start
        return rows, start, min(rows.count, start + _SEGMENT)

    def _segment(self, rows: Rows, start: int, stop: int) -> tuple[tuple[Segment, ...], int | None]:
        """Return codes, and how deep they have to be searched; none where numbers are too large for them."""
        try:
            segment = self._grown(rows, start, stop) or self._made(rows, start, stop)
            if stop - start < 2 * segment.tried:
                return (segment,), self._options.depth or rows.depth
            return self._tried(segment, rows)
        except ValueError:
            return (), None

    def _tried(self, segment: Segment, rows: Rows) -> tuple[tuple[Segment, ...], int | None]:
        start, stop = segment.start, segment.stop
        vectors = rows.vectors[start:stop]
        depth = self._options.depth or calibrated(segment, vectors, rows.norms[start:stop], self._measure)
        if depth is not None and often_doubtful(segment, vectors, depth):
            segment = self._made(rows, start, stop, staged=False)
        segment.tried = stop - start
        return (segment,), depth

    def _grown(self, rows: Rows, start: int, stop: int) -> Segment | None:
        """Return the last segment made longer, where it is that which is wanted, and much the larger part of it."""
        last = rows.segments[-1] if rows.segments else None
        if last is None or last.start != start or stop - last.stop > _GROWTH * (last.stop - start):
            return None
        if len(last.codes) != last.stop - start:  # some were added when the index was then not to be had
            return None
        return last.grown(self._wanted(rows, last.stop, stop))

    def _made(self, rows: Rows, start: int, stop: int, *, staged: bool = True) -> Segment:
        assert self._encode is not None
        codes = self._encode(self._wanted(rows, start, min(stop, start + _PART)), staged=staged)
        for begin in range(start + _PART, stop, _PART):
            codes.add(self._wanted(rows, begin, min(stop, begin + _PART)))
        return Segment(start, stop, codes, tried=0)

    def _wanted(self, rows: Rows, start: int, stop: int) -> Floats:
        """Return the vectors that are coded."""
        return as_coded(self._measure, rows.vectors[start:stop], rows.norms[start:stop])
