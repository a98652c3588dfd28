"""Calls of several threads that are cheaper together: whoever comes while others are served goes with the next round.

Nobody waits for company: a call that finds a free place begins at once, alone. So an idle service answers as quickly as
without this, and a busy one does in one round what would have been one call each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

__all__ = ["Together"]

Q = TypeVar("Q")
A = TypeVar("A")


class _Caller(Generic[Q, A]):
    """Who waits: for an answer, or to be the one that asks for all who wait."""

    def __init__(self, query: Q) -> None:
        self.query = query
        self.answer: A | None = None
        self.error: BaseException | None = None
        self.round: list[_Caller[Q, A]] = []
        self.turn = threading.Event()


class Together(Generic[Q, A]):
    """Answers queries, all that wait at a time.

    Parameters
    ----------
    answer : callable
        ``queries -> answers``; what it raises is raised to all of them.
    at_once : int
        Rounds at a time.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A]], at_once: int) -> None:
        self._answer, self._free = answer, at_once
        self._lock = threading.Lock()
        self._waiting: list[_Caller[Q, A]] = []

    def ask(self, query: Q) -> A:
        """Return the answer, of a round that began after this call."""
        me: _Caller[Q, A] = _Caller(query)
        with self._lock:
            if self._free:
                self._free -= 1
                me.round = [me]
            else:
                self._waiting.append(me)
        if not me.round:
            me.turn.wait()
        if me.round:
            self._serve(me)
        if me.error is not None:
            raise me.error
        return cast("A", me.answer)

    def _serve(self, me: _Caller[Q, A]) -> None:
        """Ask for all of a round; hand the place on to those that came meanwhile."""
        try:
            answers = self._answer([each.query for each in me.round])
            for each, answer in zip(me.round, answers, strict=True):
                each.answer = answer
        except BaseException as error:
            for each in me.round:
                each.error = error
        with self._lock:
            following, self._waiting = self._waiting, []
            if not following:
                self._free += 1
        if following:
            following[0].round = following
            following[0].turn.set()
        for each in me.round:
            each.turn.set()
