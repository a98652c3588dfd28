"""What an index did: how many searches, and how long they took."""

from __future__ import annotations

import threading
from bisect import bisect_left
from itertools import accumulate
from typing import Any, Final

__all__ = ["Figures"]

_BOUNDS_S: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_NAMES: Final = (*map(str, _BOUNDS_S), "+Inf")

Name = tuple[str, str, str]
"""Database, collection, semantic index."""


class Figures:
    """Counts the searches of each index by how long they took; also of those that went out of memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Name, list[int]] = {}
        self._seconds: dict[Name, float] = {}

    def count(self, name: Name, seconds: float, searches: int = 1) -> None:
        """Count searches that were answered together, after so long."""
        with self._lock:
            counts = self._counts.setdefault(name, [0] * len(_NAMES))
            counts[bisect_left(_BOUNDS_S, seconds)] += searches
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds * searches

    def names(self) -> list[Name]:
        """List the indexes that were searched."""
        with self._lock:
            return list(self._counts)

    def of(self, name: Name) -> dict[str, Any]:
        """Return the sum of the times in seconds, and for each bound how many searches took no longer."""
        with self._lock:
            counts = self._counts.get(name, [0] * len(_NAMES))
            return {
                "searched_s": self._seconds.get(name, 0.0),
                "searches": list(zip(_NAMES, accumulate(counts), strict=True)),
            }
