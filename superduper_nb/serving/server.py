"""The model server: takes requests from any thread, joins them into batches, has a child process run these.

One private event loop in a thread; one child, which runs one batch at a time. Whenever the child is free it gets all
that waits for the model whose turn it is, up to the model's batch size: no timer, so a lone request is never held back.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import psutil

from superduper_nb.errors import InvalidInputError, ServiceError
from superduper_nb.serving import wire
from superduper_nb.serving.dispatcher import Dispatcher
from superduper_nb.serving.lanes import Request
from superduper_nb.serving.values import Current, Load, Prediction

__all__ = ["ModelServer"]

T = TypeVar("T")


class ModelServer:
    """Models in a child process, which is started at the first request and again whenever it ends.

    Parameters
    ----------
    load, current : callable
        Functions that a pickle can name (or `functools.partial` of such); called in the child. See
        `superduper_nb.serving.values`. What a model answers is unpickled here: let `load` return one that gives plain
        values where this process must not import torch.
    memory : int, optional
        Bytes the child may occupy before the least recently used models are dropped. Default: a quarter of the
        machine's.
    queue : int, default 256
        Inputs that may wait for one model.
    grace : float, default 5
        Seconds a batch may always take. Beyond these, the child is killed when all requests inside have passed their
        deadlines.
    preload : tuple of str, default ("torch",)
        Modules that a new child imports beside its first work.
    """

    def __init__(
        self,
        load: Load,
        current: Current,
        *,
        memory: int | None = None,
        queue: int = 256,
        grace: float = 5.0,
        preload: tuple[str, ...] = ("torch",),
    ) -> None:
        budget = memory or psutil.virtual_memory().total // 4
        try:
            hello = wire.pack(wire.Hello(load, current, budget, preload))
        except Exception as error:
            raise InvalidInputError(
                "load and current must be functions of an importable module, or functools.partial of such: "
                f"the models' process finds them by name ({error})."
            ) from error
        self._dispatcher = Dispatcher(hello, queue=queue, grace=grace)
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop

    def submit(
        self, database: str, model: str, inputs: list[Any], *, version: int | None = None, timeout: float = 60.0
    ) -> Future[Prediction]:
        """Ask for the outputs of a model for a list of inputs.

        Parameters
        ----------
        database, model : str
            Which model.
        inputs : list
            One or many; they form one batch at least, so thousands are better left to a watcher.
        version : int, optional
            A fixed version. Default: the newest at the time the batch is run.
        timeout : float, default 60
            Seconds until the answer is a `DeadlineError`.

        Returns
        -------
        concurrent.futures.Future
            Ends with a `Prediction`, `NotFoundError`, `ModelError` (the model raised on one of these inputs, or can't
            be loaded, or ended its process), `OverloadedError`, `DeadlineError` or `ServiceError`. Cancelling it drops
            the request, unless its batch is being run. Its callbacks run in the server's loop: they must not wait.
        """
        try:
            payload = pickle.dumps(inputs, protocol=5)
        except Exception as error:
            raise InvalidInputError(f"These inputs can't be sent to the model's process: {error}") from error
        request = Request((database, model), version, payload, len(inputs), timeout)
        with self._lock:  # what is accepted before close() sets its flag is answered
            self._start()
            self._loop.call_soon_threadsafe(self._dispatcher.accept, request)
        return request.future

    def predict(
        self, database: str, model: str, inputs: list[Any], *, version: int | None = None, timeout: float = 60.0
    ) -> Prediction:
        """Wait for the outputs of a model; see `submit`."""
        future = self.submit(database, model, inputs, version=version, timeout=timeout)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def loaded(self) -> list[dict[str, Any]]:
        """List the models that were asked for: state, version, memory, queue, counts, rate and latencies."""
        return self._call(self._dispatcher.rows(), [])

    def status(self) -> dict[str, Any]:
        """Say how the child is: ``state`` (``idle``, ``starting``, ``running``, ``closed``), pid, restarts, memory."""
        closed = {"state": "closed"} if self._closed else {}
        return {"where": "this machine", **self._dispatcher.status(), **closed}

    def unload(self, database: str, model: str) -> None:
        """Drop a model from memory once the running batch is done; the next request loads it again."""
        self._call(self._dispatcher.unload(database, model), None)

    def close(self) -> None:
        """End the child and answer what waits with a `ServiceError`. Harmless when done twice."""
        with self._lock:
            if self._thread is not None and not self._closed:
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._closed = True
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._closed:
            raise ServiceError("The model server was closed.")
        if self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run_loop, name="superduper-model-server", daemon=True)
            self._thread.start()

    def _call(self, coroutine: Coroutine[Any, Any, T], otherwise: T) -> T:
        """Run a coroutine in the loop; where that never ran or has ended, there is nothing to ask."""
        with self._lock:
            if self._closed or self._thread is None:
                coroutine.close()
                return otherwise
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            return otherwise

    def _run_loop(self) -> None:
        self._loop.create_task(self._dispatcher.serve())
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._dispatcher.end())
        self._loop.close()
