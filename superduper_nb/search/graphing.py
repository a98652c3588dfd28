"""Builds the graph of an index, in a thread beside its searches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakMethod

from superduper_nb.search import graph
from superduper_nb.search.graph import Graph
from superduper_nb.search.measures import Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import Rows

__all__ = ["Current", "Grapher"]

log = logging.getLogger(__name__)

Current = Callable[[], Rows | None]
"""Returns the rows of the moment: a method of the index."""

_GROWN: Final = 1.25
"""How many times the rows of a graph there must be, before it is built anew: those behind it are scanned."""
_ONE_AT_A_TIME: Final = threading.Lock()
"""Each takes half of the processors."""


class Grapher:
    """Keeps most rows of an index in a graph, where one is asked for.

    Parameters
    ----------
    measure : Measure
        How near two vectors are.
    options : IndexOptions
        Whether there is to be one.
    lock : threading.Lock
        The index's.
    then : callable
        Called with what returns the rows of the moment, when one has been built: meanwhile there may be many more.
    """

    def __init__(
        self, measure: Measure, options: IndexOptions, lock: threading.Lock, then: Callable[[Current], None]
    ) -> None:
        self._measure, self._lock, self._wanted, self._then = measure, lock, options.kind == "graph", then
        self._builder: threading.Thread | None = None

    @property
    def builder(self) -> threading.Thread | None:
        """What is building one."""
        return self._builder

    def tend(self, current: Current) -> None:
        """Begin, where enough rows that have codes are in no graph; the lock is held, and no codes are being made."""
        if self._builder is None and self._wanted and (rows := current()) is not None and _due(rows):
            rows.planned = rows.saved.stop if rows.saved else rows.coded
            # An index that is dropped goes, though its graph is being built for minutes.
            given = (WeakMethod(current), rows)
            self._builder = threading.Thread(target=self._build, args=given, name="vector graph", daemon=True)
            self._builder.start()

    def _build(self, method: WeakMethod[Current], rows: Rows) -> None:
        made: Graph | None = None
        try:
            made = self._made(rows, method)
        finally:
            with self._lock:
                self._builder = None
                rows.saved = None  # it is read, or of no use
                self._show(method, rows, made)
        if (current := method()) is not None:
            self._then(current)

    def _show(self, method: WeakMethod[Current], rows: Rows, made: Graph | None) -> None:
        now = _now(method)
        if now is not None and now.ids is rows.ids:  # else they moved to other slots meanwhile
            now.saved = None
            if now.depth is not None:
                now.graph = made or now.graph

    def _made(self, rows: Rows, method: WeakMethod[Current]) -> Graph | None:
        stop = rows.planned
        if rows.saved is not None:
            if (found := graph.restored(rows.saved, self._measure)) is not None:
                return found
            log.warning("The graph of %d vectors can't be read from its file: it is built anew.", stop)
        with _ONE_AT_A_TIME:
            if _now(method) is None:
                return None
            begin = time.monotonic()
            made = graph.made(rows.vectors[:stop], rows.norms[:stop], self._measure)
        what = f"searches keep {made.effort} of its nodes" if made else "not used, it would miss more than a hundredth"
        log.info("A graph of %d vectors was built in %.0f s: %s.", stop, time.monotonic() - begin, what)
        return made


def _due(rows: Rows) -> bool:
    if rows.depth is None:  # codes are of no use on these vectors; behind a graph they would be wanted
        return False
    return rows.saved is not None or (rows.coded >= graph.LEAST and rows.coded >= _GROWN * rows.planned)


def _now(method: WeakMethod[Current]) -> Rows | None:
    current = method()
    return None if current is None else current()
