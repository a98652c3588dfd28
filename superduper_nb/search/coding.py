"""Makes codes of the rows of an index, in a thread beside its searches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from superduper_nb.search.measures import Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import Rows
from superduper_nb.search.scan import Segment, calibrated, encoder

__all__ = ["Coder"]

_SCAN_FROM: Final = 4_000_000
"""Numbers (rows x dimension) from which a scan of codes is worth it: below, the exact one takes a millisecond."""
_TAIL: Final = 2048
"""Rows behind the last segment that are scanned exactly, before a segment is made of them."""
_SEGMENT: Final = 131_072
"""Rows a segment, at most: it is made anew as a whole, which takes about 3 µs a row."""

Current = Callable[[], Rows | None]
"""Returns the rows of the moment."""


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

    @property
    def busy(self) -> bool:
        """Codes are being made."""
        return self._builder is not None

    def tend(self, current: Current) -> None:
        """Begin, where there are many rows without codes."""
        with self._lock:
            if self._builder is None and self._due(current()) is not None:
                self._builder = threading.Thread(target=self._build, args=(current,), name="vector codes", daemon=True)
                self._builder.start()

    def settle(self, current: Current) -> None:
        """Have the codes made that are due, and wait for them."""
        self.tend(current)
        while (builder := self._builder) is not None:
            builder.join()

    def _build(self, current: Current) -> None:
        try:
            while (due := self._next(current)) is not None:
                rows, start, stop = due
                segment, depth = self._segment(rows, start, stop)
                with self._lock:
                    now = current()
                    if now is None or now.ids is not rows.ids:
                        continue  # the rows moved to other slots meanwhile
                    kept = tuple(s for s in now.segments if s.stop <= start)
                    now.segments = (*kept, segment)
                    now.depth = None if depth is None else max(depth, now.depth or 0)
                    if self._options.compact:
                        now.let_go()
        finally:
            self._builder = None

    def _next(self, current: Current) -> tuple[Rows, int, int] | None:
        with self._lock:
            return self._due(current())

    def _due(self, rows: Rows | None) -> tuple[Rows, int, int] | None:
        """Return which slots to make a segment of: the tail, and smaller segments before it."""
        if rows is None or rows.depth is None or self._encode is None or rows.count - rows.coded < _TAIL:
            return None
        if rows.count * rows.vectors.shape[1] < self._from:
            return None
        start, stop = rows.coded, min(rows.count, rows.coded + _SEGMENT)
        for segment in reversed(rows.segments):
            if segment.stop - segment.start > stop - start or stop - segment.start > _SEGMENT:
                break
            start = segment.start
        return rows, start, stop

    def _segment(self, rows: Rows, start: int, stop: int) -> tuple[Segment, int | None]:
        """Return codes, and how deep they have to be searched."""
        assert self._encode is not None
        vectors, norms = rows.vectors[start:stop], rows.norms[start:stop]
        cosine = self._measure.name == "cosine"
        segment = Segment(start, stop, self._encode(vectors / norms[:, None] if cosine else vectors))
        return segment, self._options.depth or calibrated(segment, vectors, norms, self._measure)
