"""Requests that are cheaper together: whoever comes while others are answered goes with the next round.

A request on its own costs the event loop two changes of thread, and each time it may have to wait for the interpreter:
with sixteen connections that took twice as long as the searches themselves. In a round, it costs a share of two.

Nobody waits for company: a request that finds no round of its kind under way begins one at once, alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future as Submitted
from contextlib import suppress
from typing import Final, Generic, TypeVar

from superduper_nb.errors import ServiceError

__all__ = ["STOPPING", "Answer", "Gathering"]

STOPPING: Final = "The server is stopping."
_MOST: Final = 8
"""Requests a round: so half of sixteen connections are answered while the others' searches run."""

Q = TypeVar("Q")
A = TypeVar("A")

Answer = Callable[[Sequence[Q]], Sequence[A | Exception]]
"""In a thread: what each of a round gets, or has raised. It raises nothing itself."""

Round = list[tuple[Q, asyncio.Future[A]]]


class Gathering(Generic[Q, A]):
    """Answers requests of one kind, one round at a time; of the event loop it is used in.

    Parameters
    ----------
    submit : callable
        ``(answer, queries) -> concurrent.futures.Future``: has a round answered in a thread.
    """

    def __init__(self, submit: Callable[[Answer[Q, A], Sequence[Q]], Submitted[Sequence[A | Exception]]]) -> None:
        self._submit = submit
        self._waiting: dict[Hashable, Round[Q, A]] = {}
        """Of each kind of which a round is under way, who goes with the next."""

    def ask(self, kind: Hashable, query: Q, answer: Answer[Q, A]) -> asyncio.Future[A]:
        """Return what will be the answer to `query`, from a round that begins after this call."""
        asked: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        if kind in self._waiting:
            self._waiting[kind].append((query, asked))
        else:
            self._begin(kind, [(query, asked)], answer, [])
        return asked

    def _begin(self, kind: Hashable, round: Round[Q, A], answer: Answer[Q, A], later: Round[Q, A]) -> None:
        loop = asyncio.get_running_loop()

        def answered(done: Submitted[Sequence[A | Exception]]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._end, kind, round, answer, done)

        try:
            done = self._submit(answer, [query for query, _ in round])
        except RuntimeError:  # there are no threads any more
            everybody = round + later
            _give(everybody, [ServiceError(STOPPING)] * len(everybody))
            return
        self._waiting[kind] = later
        done.add_done_callback(answered)

    def _end(
        self, kind: Hashable, round: Round[Q, A], answer: Answer[Q, A], done: Submitted[Sequence[A | Exception]]
    ) -> None:
        """Send the next round off, then give this one's answers."""
        waiting = [each for each in self._waiting.pop(kind) if not each[1].done()]
        if waiting:
            self._begin(kind, waiting[:_MOST], answer, waiting[_MOST:])
        stopping = [ServiceError(STOPPING)] * len(round)
        _give(round, stopping if done.cancelled() else done.result())


def _give(round: Round[Q, A], outcomes: Sequence[A | Exception]) -> None:
    for (_, asked), outcome in zip(round, outcomes, strict=True):
        if asked.done():  # who asked has gone
            continue
        if isinstance(outcome, Exception):
            asked.set_exception(outcome)
        else:
            asked.set_result(outcome)
