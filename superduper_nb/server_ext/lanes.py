"""Threads for blocking calls, so that the server's event loop never waits, with a bounded queue before them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from superduper_nb.errors import DeadlineError, OverloadedError, ServiceError
from superduper_nb.server_ext.gathering import STOPPING, Answer, Gathering
from superduper_nb.server_ext.metrics import IN_FLIGHT, REJECTED

__all__ = ["Lane", "LaneName"]

LaneName = Literal["search", "predict", "control"]

T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")


class Lane:
    """Runs calls of one kind, so many at a time and no more than that waiting.

    Parameters
    ----------
    name : str
        For messages and metrics.
    threads : int
        Calls at a time.
    waiting : int
        Calls that may wait for a thread; one more is refused at once.
    timeout : float
        Seconds after which the caller is told that it took too long. A call that runs by then keeps its place to its
        end: threads can't be stopped.

    Attributes
    ----------
    busy : int
        Calls that run or wait.
    """

    def __init__(self, name: LaneName, *, threads: int, waiting: int, timeout: float) -> None:
        self.name = name
        self._limit = threads + waiting
        self._timeout = timeout
        self._lock = threading.Lock()
        self.busy = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"superduper-{name}")
        self._gathering: Gathering[Any, Any] = Gathering(self._pool.submit)
        IN_FLIGHT.labels(name).set_function(lambda: self.busy)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Count as a call that runs, for work that needs no thread; raises `OverloadedError`."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in a thread and return what it returns; when the caller is cancelled, a waiting call is dropped.

        Raises
        ------
        OverloadedError
            Too many calls wait already.
        DeadlineError
            It did not end in time.
        """
        self.enter()
        try:
            future = self._pool.submit(call)
        except RuntimeError:  # shut down
            self.leave()
            raise ServiceError(STOPPING) from None
        future.add_done_callback(lambda _: self.leave())
        waiter = asyncio.wrap_future(future)
        try:
            await asyncio.wait({waiter}, timeout=self._timeout)
        except asyncio.CancelledError:
            waiter.cancel()
            raise
        if not waiter.done():
            waiter.cancel()
            raise self._late()
        if waiter.cancelled():
            raise ServiceError(STOPPING)
        return waiter.result()

    def gather(self, kind: Hashable, query: Q, answer: Answer[Q, A]) -> asyncio.Future[A]:
        """Have `query` answered in a thread, together with those of its kind that wait.

        The future raises what `run` does, but for `OverloadedError`, which is raised at once.
        """
        self.enter()
        asked: asyncio.Future[A] = self._gathering.ask(kind, query, answer)
        timer = asyncio.get_running_loop().call_later(self._timeout, self._expire, asked)

        def ended(_: object) -> None:
            timer.cancel()
            self.leave()

        asked.add_done_callback(ended)
        return asked

    def _expire(self, asked: asyncio.Future[Any]) -> None:
        if not asked.done():
            asked.set_exception(self._late())

    def _late(self) -> DeadlineError:
        return DeadlineError(f"The {self.name} request took longer than {self._timeout:g} s.")

    def enter(self) -> None:
        """Begin a call for which no thread is needed, and which ends with `leave`; raises `OverloadedError`."""
        with self._lock:
            if self.busy < self._limit:
                self.busy += 1
                return
        REJECTED.labels(self.name).inc()
        raise OverloadedError(f"The server has {self._limit} {self.name} requests in work: try again in a second.")

    def leave(self) -> None:
        """End such a call."""
        with self._lock:
            self.busy -= 1

    def close(self) -> None:
        """Take no more calls and drop those that wait."""
        self._pool.shutdown(wait=False, cancel_futures=True)
