"""Recent events of jobs and indexes, numbered, for those who listen."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["EventLog", "EventPage"]

_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events after a number.

    Attributes
    ----------
    events : list of dict
        At most a thousand, oldest first, each with ``seq``, ``time`` and ``type``.
    next : int
        Ask for the events since this number next time.
    missed : bool
        Some in between are no longer held (or the server was started anew and counts from one): read the records
        instead.
    """

    events: list[dict[str, Any]]
    next: int
    missed: bool


class EventLog:
    """A bounded log that any thread may write and read.

    Parameters
    ----------
    kept : int, default 10_000
        Events held; the oldest go first.
    """

    def __init__(self, kept: int = 10_000) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=kept)
        self._listeners: dict[int, Callable[[], object]] = {}
        self._handles = itertools.count()
        self._last = 0
        self._at = float("-inf")
        self._lock = threading.Lock()

    def publish(self, event: dict[str, Any]) -> None:
        """Append an event, which has a ``type``."""
        with self._lock:
            self._last += 1
            self._at = time.monotonic()
            self._events.append({**event, "seq": self._last, "time": time.time()})
            listeners = list(self._listeners.values())
        for wake in listeners:
            wake()

    def since(self, seq: int) -> EventPage:
        """Return the events after number `seq`; 0 returns all that are held, -1 none of them."""
        with self._lock:
            if seq < 0:
                return EventPage([], self._last, missed=False)
            first = self._last - len(self._events) + 1
            if restarted := seq > self._last:
                seq = 0
            start = max(seq + 1 - first, 0)
            events = list(itertools.islice(self._events, start, start + _PAGE))
            missed = restarted or (0 < seq < first - 1)
            return EventPage(events, events[-1]["seq"] if events else self._last, missed)

    @property
    def quiet_s(self) -> float:
        """Seconds since the last event."""
        return time.monotonic() - self._at

    def listen(self, wake: Callable[[], object]) -> Callable[[], None]:
        """Call `wake` after each event, in the thread that published it; returns what ends that."""
        handle = next(self._handles)
        with self._lock:
            self._listeners[handle] = wake

        def end() -> None:
            with self._lock:
                self._listeners.pop(handle, None)

        return end
