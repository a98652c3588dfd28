"""Model processes on the workers of a Dask cluster: an actor on a worker holds one, and passes messages on.

The process is the same as on this machine, so a model that hangs can be killed there, too, and the worker's own tasks
do not share an interpreter with it. It ends with its worker.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from superduper_nb.cluster.actors import NoAnswerError, RemoteObject
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.errors import ServiceError
from superduper_nb.serving import wire
from superduper_nb.serving.process import ModelProcess, ProcessEndedError, kill_group

__all__ = ["ClusterProcess", "OnCluster"]

_WORKER_S: Final = 10.0
"""So long a start waits for a worker with room: one that died is back by then."""
_LOOK_EVERY_S: Final = 1.0


class Holder:
    """What is on the worker: an actor around a model process, which its last reference takes with it."""

    def __init__(self) -> None:
        self._process: ModelProcess | None = None

    async def start(self, hello: bytes) -> int:
        """Start the process; return its process id."""
        self._process = await ModelProcess.start(hello)
        weakref.finalize(self, kill_group, self._process.pid)  # the model server is gone, or has forgotten us
        return self._process.pid

    async def exchange(self, packed: bytes) -> bytes:
        """Send messages, where there are any, and return the next one that comes."""
        assert self._process is not None
        if packed:
            await self._process.send(packed)
        return await self._process.receive_packed()

    async def end(self) -> str:
        """Kill the process; return how it ended."""
        assert self._process is not None
        return await self._process.end()


class ClusterProcess:
    """A process on a worker, with the methods of `ModelProcess`; made by `OnCluster.start`."""

    def __init__(self, pool: DaskPool, worker: str) -> None:
        self._pool, self.worker = pool, worker
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="superduper-replica")  # one more, to end it meanwhile
        self._pending = b""
        self._holder: RemoteObject | None = None
        self.alive = True
        self.pid = 0

    async def start(self, hello: bytes) -> None:
        """Start it; raises `ProcessEndedError`."""
        self._holder = await self._call(lambda: RemoteObject(self._pool, self.worker, "models", Holder))
        self.pid = await self._ask("start", hello)

    async def send(self, packed: bytes) -> None:
        """Have a packed message sent with the next `receive`: each way takes a millisecond."""
        self._pending += packed

    async def receive(self) -> Any:
        """Wait for a message; raises `ProcessEndedError`."""
        packed, self._pending = self._pending, b""
        return wire.unpack(await self._ask("exchange", packed))

    async def end(self) -> str:
        """Kill it; return how it ended."""
        how = f"its worker {self.worker} is gone"
        try:
            if self._holder is not None:
                how = await self._ask("end")
        except ProcessEndedError as error:
            how = str(error)
        self.alive, self._holder = False, None
        self._threads.shutdown(wait=False)
        return how

    async def _ask(self, method: str, *args: Any) -> Any:
        assert self._holder is not None
        holder = self._holder
        return await self._call(lambda: self._result(holder.call(method, *args)))

    async def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except ProcessEndedError:
            self.alive = False
            raise
        except Exception as error:
            self.alive = False
            raise ProcessEndedError(f"its worker {self.worker} does not answer ({error})") from error

    def _result(self, waiting: Callable[[float], Any]) -> Any:
        """Wait for an answer for as long as the worker is there."""
        while True:
            try:
                return waiting(_LOOK_EVERY_S)
            except NoAnswerError:
                if self.worker not in self._pool.workers():
                    raise ProcessEndedError(f"its worker {self.worker} is gone") from None


class OnCluster:
    """Starts model processes on the workers of a pool.

    Parameters
    ----------
    pool : DaskPool
        Whose workers.
    resources : mapping of str to float
        What each process takes of its worker's resources: ``{"GPU": 1}``, say.

    Notes
    -----
    An actor does not hold Dask's resources, so they are counted here: a worker gets as many as it has room for.
    """

    where = "Dask workers"

    def __init__(self, pool: DaskPool, resources: Mapping[str, float]) -> None:
        self._pool, self._resources = pool, dict(resources)
        self._made: list[ClusterProcess] = []

    async def start(self, hello: bytes) -> ClusterProcess:
        """Start a process where the fewest are.

        Raises
        ------
        ProcessEndedError
            No worker has room, or the process did not start.
        """
        worker = await self._worker()
        process = ClusterProcess(self._pool, worker)
        self._made.append(process)
        try:
            await process.start(hello)
        except BaseException:
            await process.end()
            raise
        return process

    async def _worker(self) -> str:
        end = time.monotonic() + _WORKER_S
        while time.monotonic() < end:
            try:
                workers = await asyncio.get_running_loop().run_in_executor(None, self._pool.workers)
            except ServiceError as error:
                raise ProcessEndedError(str(error)) from error
            if (found := self._with_room(workers)) is not None:
                return found
            await asyncio.sleep(0.2)
        wanted = ", ".join(f"{name}: {amount:g}" for name, amount in self._resources.items())
        raise ProcessEndedError(f"no worker of the Dask cluster has {wanted or 'room'} to spare")

    def _with_room(self, workers: Mapping[str, Mapping[str, float]]) -> str | None:
        self._made = [process for process in self._made if process.alive]
        held = Counter(process.worker for process in self._made)
        fit = [
            worker
            for worker, has in workers.items()
            if all((held[worker] + 1) * amount <= has.get(name, 0) for name, amount in self._resources.items())
        ]
        return min(fit, key=lambda worker: held[worker], default=None)
