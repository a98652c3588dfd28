"""Builds the graph of an index, in a thread beside its searches and the making of codes."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from superduper_nb.search import graph
from superduper_nb.search.coding import Current
from superduper_nb.search.graph import Graph
from superduper_nb.search.measures import Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import Rows

__all__ = ["Grapher"]

log = logging.getLogger(__name__)

_GROWN: Final = 1.25
"""How many times the rows of a graph there must be, before it is built anew: those behind it are scanned."""


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
    """

    def __init__(self, measure: Measure, options: IndexOptions, lock: threading.Lock) -> None:
        self._measure, self._lock, self._wanted = measure, lock, options.kind == "graph"
        self._builder: threading.Thread | None = None

    def tend(self, current: Current) -> None:
        """Begin, where enough rows that have codes are in no graph."""
        with self._lock:
            if self._builder is None and self._wanted and (rows := current()) is not None and _due(rows):
                rows.planned = rows.saved.stop if rows.saved else rows.coded
                self._builder = threading.Thread(
                    target=self._build, args=(current, rows), name="vector graph", daemon=True
                )
                self._builder.start()

    def settle(self) -> None:
        """Wait for the one that is being built."""
        while (builder := self._builder) is not None:
            builder.join()

    def _build(self, current: Current, rows: Rows) -> None:
        try:
            made = self._made(rows)
            with self._lock:
                now = current()
                if now is not None and now.ids is rows.ids:  # else they moved to other slots meanwhile
                    now.graph, now.saved = made, None
        finally:
            self._builder = None

    def _made(self, rows: Rows) -> Graph | None:
        if rows.saved is not None:
            if (found := graph.restored(rows.saved, self._measure)) is not None:
                return found
            log.warning("The file of a graph of %d vectors is not as it was written: it is built anew.", rows.planned)
        begin, stop = time.monotonic(), rows.planned
        made = graph.made(rows.vectors[:stop], rows.norms[:stop], self._measure)
        what = f"searches keep {made.effort} of its nodes" if made else "not used, it would miss more than a hundredth"
        log.info("A graph of %d vectors was built in %.0f s: %s.", stop, time.monotonic() - begin, what)
        return made


def _due(rows: Rows) -> bool:
    return rows.saved is not None or (rows.coded >= graph.LEAST and rows.coded >= _GROWN * rows.planned)
