"""Requests that wait: one bounded queue a model, batches taken from the queues in turn. Not thread-safe."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any, Final

from superduper_nb.errors import DeadlineError, OverloadedError
from superduper_nb.serving import wire
from superduper_nb.serving.statistics import Statistics
from superduper_nb.serving.values import LoadedModel, Prediction, Slice

__all__ = ["Lane", "Lanes", "Outcome", "Request"]

Outcome = Prediction | Slice | BaseException

_BATCH_SIZE: Final = 32


class Request:
    """Inputs for a model, and the future of whoever waits for the outputs.

    Parameters
    ----------
    asked : wire.Asked
        What goes into a batch.
    size : int
        How many inputs these are.
    message : wire.Open or wire.Advance, optional
        What is sent instead, as a batch of its own.
    """

    def __init__(
        self,
        name: tuple[str, str],
        version: int | None,
        asked: wire.Asked,
        size: int,
        timeout: float,
        *,
        message: wire.Open | wire.Advance | None = None,
    ) -> None:
        self.name, self.version, self.asked, self.size = name, version, asked, size
        self.future: Future[Any] = Future()
        self.started = time.monotonic()
        self.timeout, self.deadline = timeout, self.started + timeout
        self.alarm: asyncio.TimerHandle | None = None
        self.message = message
        self.alone = message is not None or asked.read is not None  # it gets a batch of its own
        self.killed = False  # the process died with it once
        self._claimed = False

    def claim(self) -> bool:
        """Take it up: from now on it can't be cancelled. False where it was, or has its answer."""
        if self._claimed:
            return not self.future.done()
        self._claimed = True
        return self.future.set_running_or_notify_cancel()

    def answer(self, outcome: Outcome) -> bool:
        """End it, unless it has ended; return whether this was the answer."""
        if self.alarm is not None:
            self.alarm.cancel()
        if not self.claim():
            return False
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
        return True

    @property
    def waited_ms(self) -> float:
        """Time since it came, to the microsecond."""
        return round((time.monotonic() - self.started) * 1000, 3)


class Lane:
    """The queue of one model, with the model's figures."""

    def __init__(self) -> None:
        self.statistics = Statistics()
        self.batch_size = _BATCH_SIZE
        self.known = False  # such a model was loaded at least once
        self.waiting: deque[Request] = deque()
        self.inputs = 0

    def put(self, request: Request, limit: int) -> None:
        """Queue a request; raises `OverloadedError` when that makes more than `limit` inputs wait."""
        if self.waiting and self.inputs + request.size > limit:
            self._keep(deque(waiting for waiting in self.waiting if not waiting.future.done()))
        if self.waiting and self.inputs + request.size > limit:
            pace = self.statistics.rates()[1]
            raise OverloadedError(
                f"{self.inputs} inputs wait for model {request.name[1]!r} already, {limit} may: try again later, "
                "or have many documents processed by a watcher.",
                retry_after=min(max(self.inputs / pace, 0.1), 30.0) if pace else 1.0,
            )
        self.waiting.append(request)
        self.inputs += request.size

    def put_back(self, requests: list[Request]) -> None:
        """Queue requests before all others."""
        self._keep(deque([*requests, *self.waiting]))

    def take(self) -> list[Request]:
        """Take what goes into one batch: the first request, and all of its version that fit beside it."""
        batch: list[Request] = []
        rest: deque[Request] = deque()
        size = 0
        for request in self.waiting:
            if batch and not (size + request.size <= self.batch_size and _go_together(batch[0], request)):
                rest.append(request)
            elif request.claim():
                batch.append(request)
                size += request.size
        self._keep(rest)
        return batch

    @property
    def length(self) -> int:
        """Requests that wait, without those that were cancelled."""
        return sum(not request.future.done() for request in self.waiting)

    def clear(self) -> list[Request]:
        """Take every request."""
        requests = list(self.waiting)
        self._keep(deque())
        return requests

    def _keep(self, waiting: deque[Request]) -> None:
        self.waiting = waiting
        self.inputs = sum(request.size for request in waiting)


class Lanes:
    """The queues of all models.

    Parameters
    ----------
    limit : int
        Inputs that may wait for one model. A single request may be larger where none waits.
    """

    def __init__(self, limit: int) -> None:
        self.lanes: dict[tuple[str, str], Lane] = {}
        self._limit = limit
        self._turns: dict[tuple[str, str], Lane] = {}  # those where requests wait; the first has its turn

    def __bool__(self) -> bool:
        return bool(self._turns)

    def put(self, request: Request) -> None:
        """Queue a request; raises `OverloadedError`."""
        lane = self.lanes.setdefault(request.name, Lane())
        lane.put(request, self._limit)
        self._turns[request.name] = lane

    def put_back(self, requests: list[Request]) -> None:
        """Queue the requests of a batch before all others of their model."""
        if requests:
            lane = self._turns[requests[0].name] = self.lanes.setdefault(requests[0].name, Lane())
            lane.put_back(requests)

    def take(self) -> list[Request]:
        """Take the next batch, from the model that has waited longest for its turn. Empty where nobody waits."""
        while self._turns:
            name = next(iter(self._turns))
            lane = self._turns.pop(name)
            batch = lane.take()
            if lane.waiting:
                self._turns[name] = lane
            if batch:
                return batch
            self._forget(name)
        return []

    @property
    def first(self) -> tuple[str, str] | None:
        """The model that has its turn."""
        return next(iter(self._turns), None)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(lane.waiting) for lane in self._turns.values())

    def only_few_wait(self, few: int) -> bool:
        """Say whether requests wait for no more than one model, and no more than so many."""
        return len(self._turns) <= 1 and self.waiting <= few

    def learn(self, name: tuple[str, str], batch_size: int | None) -> None:
        """Note that such a model ran a batch, and how many inputs it takes at once."""
        lane = self.lanes.setdefault(name, Lane())
        lane.known, lane.batch_size = True, batch_size or _BATCH_SIZE
        lane.statistics.batches += 1

    def drain(self) -> list[Request]:
        """Take everything."""
        requests = [request for lane in self._turns.values() for request in lane.clear()]
        self._turns.clear()
        return requests

    def answer(self, request: Request, outcome: Outcome) -> bool:
        """Answer a request and count it; return whether somebody waited for it."""
        if not request.answer(outcome):
            return False
        lane = self.lanes.get(request.name)
        if lane and not isinstance(request.message, wire.Advance):  # a stream counts once: as its first part
            failed = isinstance(outcome, BaseException)
            lane.statistics.record(request.waited_ms, inputs=request.size, failed=failed)
            self._forget(request.name)
        return True

    def expire(self, request: Request) -> None:
        """Answer that it took too long."""
        self.answer(request, DeadlineError(f"Model {request.name[1]!r} did not answer within {request.timeout:g} s."))

    def _forget(self, name: tuple[str, str]) -> None:
        """Drop a queue that is empty and whose model was never seen: any name can be asked for."""
        lane = self.lanes[name]
        if not lane.known and not lane.waiting:
            del self.lanes[name]

    def rows(self, models: list[LoadedModel], loading: Collection[tuple[str, str]]) -> list[dict[str, Any]]:
        """List every model with its figures, given what is in memory and what is being loaded."""
        return [
            lane.statistics.row(*name, models=models, loading=name in loading, queue=lane.length)
            for name, lane in self.lanes.items()
        ]


def _go_together(first: Request, other: Request) -> bool:
    return first.version == other.version and not first.alone and not other.alone
