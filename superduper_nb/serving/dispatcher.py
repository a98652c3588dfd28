"""What runs in the model server's loop: requests into the queues, and to the replica that holds their stream."""

from __future__ import annotations

import asyncio
from typing import Any

from superduper_nb.errors import OverloadedError, ServiceError
from superduper_nb.serving import wire
from superduper_nb.serving.lanes import Lanes, Request
from superduper_nb.serving.newest import Newest
from superduper_nb.serving.process import Place
from superduper_nb.serving.replica import Replica

__all__ = ["Dispatcher"]


class Dispatcher:
    """Has child processes run what is asked for. All but `status` must be called in one event loop.

    Parameters
    ----------
    hello : bytes
        What a new child is told: a packed `wire.Hello`.
    place : Place
        Where children are started.
    newest : Newest
        Says whether a version still is.
    queue : int
        Inputs that may wait for one model.
    grace : float
        Seconds that a batch may always take.
    replicas : int
        Child processes; a further one is started when the others are busy.
    """

    def __init__(self, hello: bytes, place: Place, newest: Newest, *, queue: int, grace: float, replicas: int) -> None:
        self._lanes, self._newest = Lanes(queue), newest
        self._replicas = [
            Replica(
                hello,
                place,
                self._lanes,
                newest,
                grace=grace,
                held_elsewhere=self._held_elsewhere,
                give_up=self._give_up,
            )
            for _ in range(replicas)
        ]

    def accept(self, request: Request) -> None:
        """Queue a request, or refuse it."""
        try:
            replica = self._queue(request)
        except (OverloadedError, ServiceError) as error:
            request.answer(error)
            return
        request.alarm = asyncio.get_running_loop().call_at(request.deadline, self._lanes.expire, request)
        if replica is not None:
            replica.wake()

    def _queue(self, request: Request) -> Replica | None:
        """Queue a request; return who is to look at it, None where all are busy."""
        if not isinstance(request.message, wire.Advance):
            self._lanes.put(request)
            idle = [replica for replica in self._replicas if replica.idle]
            # One that has the model, else one that lives, else one that has to be started.
            return max(idle, key=lambda replica: (replica.holds(request.name), bool(replica.pid)), default=None)
        replica = self._of_stream(request.message.stream)
        if replica is None:
            raise ServiceError("The stream is not there any more: the process that ran it ended. Ask from the start.")
        replica.advance(request)
        return replica

    def drop(self, stream: int) -> None:
        """End a stream; harmless where it has ended."""
        if (replica := self._of_stream(stream)) is not None:
            replica.drop(stream)

    def _of_stream(self, stream: int) -> Replica | None:
        return next((replica for replica in self._replicas if stream in replica.streams), None)

    def _held_elsewhere(self, asking: Replica, name: tuple[str, str]) -> bool:
        return any(replica.holds(name) for replica in self._replicas if replica is not asking)

    def _give_up(self, error: ServiceError) -> None:
        """Answer everything that waits, where no child lives to do so."""
        if not any(replica.pid for replica in self._replicas):
            for request in self._lanes.drain():
                self._lanes.answer(request, error)

    async def serve(self) -> None:
        """Run batches until cancelled."""
        await asyncio.gather(*(replica.serve() for replica in self._replicas))

    async def unload(self, database: str, model: str) -> None:
        """Have every child drop a model, after its running batch."""
        for replica in self._replicas:
            await replica.unload(database, model)

    async def rows(self) -> list[dict[str, Any]]:
        """List the models with their figures."""
        models = [about for replica in self._replicas for about in replica.loaded.models]
        loading = {replica.loading for replica in self._replicas if replica.loading}
        return self._lanes.rows(models, loading)

    async def end(self) -> None:
        """End the children and answer what is left; `serve` must have been cancelled."""
        for request in self._lanes.drain():
            request.answer(ServiceError("The model server was closed."))
        for replica in self._replicas:
            await replica.end()
        self._newest.close()

    def status(self) -> dict[str, Any]:
        """Say how the children are: of the first, and of each."""
        each = [replica.status() for replica in self._replicas]
        state = min((one["state"] for one in each), key=("running", "starting", "idle").index)
        pid = next((one["pid"] for one in each if one["pid"]), None)
        total = {name: sum(one[name] for one in each) for name in ("restarts", "rss")}
        return {"state": state, "pid": pid, **total, "replicas": each}
