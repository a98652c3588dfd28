"""What a model yields, as its reader sees it: parts that come when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from superduper_nb.serving.values import Slice

__all__ = ["Stream"]


class Stream:
    """An output that comes piece by piece; iterate over it, and close it when you stop early.

    Parameters
    ----------
    open, advance : callable
        Ask for the first part, and for a further one.
    drop : callable
        Says that no part will be asked for any more.

    Attributes
    ----------
    done : bool
        The last part was given.
    version : int or None
        Version of the model; None before the first part.
    """

    def __init__(
        self, open: Callable[[], Future[Slice]], advance: Callable[[], Future[Slice]], drop: Callable[[], None]
    ) -> None:
        self._next, self._advance, self._drop = open, advance, drop
        self._asked: Future[Slice] | None = None
        self.done = False
        self.version: int | None = None

    def part(self) -> Future[Slice]:
        """Ask for the next part; one at a time."""
        self._asked = self._next()
        self._next = self._advance
        self._asked.add_done_callback(self._note)
        return self._asked

    def _note(self, asked: Future[Slice]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self.done, self.version = asked.result().done, asked.result().version

    def __iter__(self) -> Iterator[Any]:
        """Yield the pieces, waiting for each."""
        try:
            while not self.done:
                yield from self.part().result().pieces
        finally:
            self.close()

    def close(self) -> None:
        """Stop: the model's generator is closed, and what was asked for is dropped. Harmless at any time."""
        asked, self._asked = self._asked, None
        if asked is None or self.done:
            return
        if not asked.cancel() and not asked.done():  # it is being computed: drop the stream once that has ended
            asked.add_done_callback(lambda _: self._drop())
        self._drop()
