"""Where the time of a search goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stages"]


class Stages:
    """Times the stages of one search; a stage inside another counts for itself only.

    Attributes
    ----------
    ms : dict
        Milliseconds of each.
    """

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._inner = 0.0
        self._begin = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what is done inside as a stage."""
        begin, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            took = (time.perf_counter() - begin) * 1000
            self.ms[name] = self.ms.get(name, 0.0) + took - self._inner
            self._inner = outer + took

    @property
    def took_ms(self) -> float:
        """Milliseconds since the beginning."""
        return (time.perf_counter() - self._begin) * 1000
