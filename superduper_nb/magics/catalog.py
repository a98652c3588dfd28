"""Names for completion: asked for in the background, kept a while, never waited for longer than a blink."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Final

__all__ = ["Catalog"]

PATIENCE_S: Final = 0.04
FRESH_S: Final = 20.0


@dataclass(slots=True)
class _Entry:
    names: tuple[str, ...] = ()
    asked: float = float("-inf")
    pending: Future[tuple[str, ...]] | None = None


class Catalog:
    """Lists of names by key, each with a function that asks for it.

    Parameters
    ----------
    patience : float
        Longest time, in seconds, that a caller waits for an answer; what comes later is there for the next one.
    fresh : float
        For how many seconds an answer is not asked for again.
    """

    def __init__(self, *, patience: float = PATIENCE_S, fresh: float = FRESH_S) -> None:
        self._patience, self._fresh = patience, fresh
        self._entries: dict[tuple[str, ...], _Entry] = {}

    def names(self, key: tuple[str, ...], ask: Callable[[], list[str]]) -> tuple[str, ...]:
        """Return the names under `key`, as they are known by the time that patience ends.

        Parameters
        ----------
        key : tuple of str
            What they are names of, and where.
        ask : callable
            Gets them, from the network perhaps; called in a thread of its own. What it raises counts as no names.
        """
        entry = self._entries.setdefault(key, _Entry())
        if entry.pending is None and time.monotonic() - entry.asked > self._fresh:
            entry.pending, entry.asked = _asked(ask), time.monotonic()
        if entry.pending is not None:
            with suppress(TimeoutError):  # the thread goes on then
                entry.names, entry.pending = entry.pending.result(self._patience), None
        return entry.names


def _asked(ask: Callable[[], list[str]]) -> Future[tuple[str, ...]]:
    future: Future[tuple[str, ...]] = Future()

    def answer() -> None:
        try:
            future.set_result(tuple(ask()))
        except Exception:  # completion offers nothing then; a command will say what is wrong
            future.set_result(())

    Thread(target=answer, name="superduper-completion", daemon=True).start()
    return future
