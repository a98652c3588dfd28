"""Who computes: a worker process has more tasks under way than it has cores, so that some read and write meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """A semaphore that is fair: a short job among long ones waits for a slice of one, not for the whole.

    Parameters
    ----------
    places : int
        So many compute at one time.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a place, and hold it."""
        if (called := self._take()) is not None:
            called.wait()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Give one's place to somebody else, within a turn, and wait for one again."""
        self._give()
        try:
            yield
        finally:
            if (called := self._take()) is not None:
                called.wait()

    def _take(self) -> threading.Event | None:
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            called = threading.Event()
            self._waiting.append(called)
            return called

    def _give(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
