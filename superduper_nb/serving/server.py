"""The model server: takes requests from any thread, joins them into batches, has a child process run these.

One event loop; child processes, each of which runs one batch at a time. Whenever one is free it
gets all that waits for the model whose turn it is, up to the model's batch size: no timer, so a lone request is never
held back.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, Final, TypeVar

import psutil

from superduper_nb.errors import InvalidInputError, ServiceError
from superduper_nb.serving import wire
from superduper_nb.serving.dispatcher import Dispatcher
from superduper_nb.serving.lanes import Request
from superduper_nb.serving.newest import Newest
from superduper_nb.serving.process import Here, Place
from superduper_nb.serving.stream import Stream
from superduper_nb.serving.values import (
    Body,
    Current,
    Errors,
    Form,
    Load,
    Prediction,
    Slice,
    Types,
    UnreadBody,
)
from superduper_nb.serving.waiting import running_loop

__all__ = ["ModelServer"]

T = TypeVar("T")

_INPUT_BYTES: Final = 1 << 18


def _builtin_types(database: str) -> dict[str, Any]:
    from superduper_nb.documents.types import builtin_types

    return builtin_types()


class ModelServer:
    """Models in a child process, which is started at the first request and again whenever it ends.

    Parameters
    ----------
    load, current : callable
        Functions that a pickle can name (or `functools.partial` of such); called in the child. See
        `superduper_nb.serving.values`. What a model answers is unpickled here: let `load` return one that gives plain
        values where this process must not import torch.
    types : callable, optional
        Another such function. Default: the built-in types.
    newest : callable, optional
        As `current`, called in a thread here, while a slow model runs. Default: `current`.
    place : Place, optional
        Where children are started: this machine by default.
    replicas : int, default 1
        Child processes. Each holds the models that it runs; the second is started when the first is busy, and so on.
    memory : int, optional
        Bytes the children may occupy before the least recently used models are dropped. Default: a quarter of the
        machine's.
    queue : int, default 256
        Inputs that may wait for one model.
    grace : float, default 5
        Seconds a batch may always take. Beyond these, the child is killed when all requests inside have passed their
        deadlines.
    preload : tuple of str, default ("torch",)
        Modules that a new child imports beside its first work.
    loop : asyncio.AbstractEventLoop, optional
        Where queues are kept and children talked to: in the loop of whoever asks most, nothing has to be handed from
        thread to thread. `close` must then be called in another thread. Default: a private loop in a thread.
    """

    def __init__(
        self,
        load: Load,
        current: Current,
        *,
        types: Types = _builtin_types,
        newest: Current | None = None,
        place: Place | None = None,
        replicas: int = 1,
        memory: int | None = None,
        queue: int = 256,
        grace: float = 5.0,
        preload: tuple[str, ...] = ("torch",),
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        budget = memory or psutil.virtual_memory().total // 4
        try:
            hello = wire.pack(wire.Hello(load, current, types, budget // replicas, preload))
        except Exception as error:
            raise InvalidInputError(
                "load, current and types must be functions of an importable module, or functools.partial of such: "
                f"the models' process finds them by name ({error})."
            ) from error
        self._place: Place = place or Here()
        self._newest = Newest(newest or current)
        self._dispatcher = Dispatcher(hello, self._place, self._newest, queue=queue, grace=grace, replicas=replicas)
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # a stream may be dropped by the garbage collector, in the midst of anything
        self._started = self._closed = False
        self._given = loop
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._serving: asyncio.Task[None]

    def submit(
        self,
        database: str,
        model: str,
        inputs: list[Any],
        *,
        version: int | None = None,
        timeout: float = 60.0,
        form: Form = "objects",
        errors: Errors = "raise",
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
        form : {"objects", "arrays", "json", "bson"}
            Of inputs and outputs: what is read and written in another form is so in the child, not here.
        errors : {"raise", "return"}
            What to do when single inputs fail: a `ModelError`, or an `ItemError` in the place of each.

        Returns
        -------
        concurrent.futures.Future
            Ends with a `Prediction`, `NotFoundError`, `ModelError` (the model raised on one of these inputs, or can't
            be loaded, or ended its process), `OverloadedError`, `DeadlineError` or `ServiceError`. Cancelling it drops
            the request, unless its batch is being run. Its callbacks run in the server's loop: they must not wait.
        """
        return self.ask(database, model, Body(inputs, version, errors), timeout=timeout, form=form)

    def ask(
        self, database: str, model: str, body: Body | UnreadBody, *, timeout: float = 60.0, form: Form = "objects"
    ) -> Future[Prediction]:
        """Do as `submit`; what is not read yet is read in the model's process, and is a batch of its own."""
        asked, version = _asked(body, form)
        return self._accept(Request((database, model), version, asked, _size(body), timeout))

    def predict(
        self,
        database: str,
        model: str,
        inputs: list[Any],
        *,
        version: int | None = None,
        timeout: float = 60.0,
        errors: Errors = "raise",
    ) -> Prediction:
        """Wait for the outputs of a model; see `submit`."""
        future = self.submit(database, model, inputs, version=version, timeout=timeout, errors=errors)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def stream(
        self,
        database: str,
        model: str,
        x: Any,
        *,
        version: int | None = None,
        timeout: float = 60.0,
        form: Form = "objects",
    ) -> Stream:
        """Ask for what a model yields for one input, part by part; see `submit`.

        Nothing is computed before the first part is asked for. `timeout` holds for each part.
        """
        return self.open(database, model, Body([x], version), timeout=timeout, form=form)

    def open(
        self, database: str, model: str, body: Body | UnreadBody, *, timeout: float = 60.0, form: Form = "objects"
    ) -> Stream:
        """Do as `stream`, for the first input of a body; see `ask`."""
        number = next(self._numbers)
        asked, version = _asked(body, form)
        opening = wire.Open(number, database, model, version, asked)

        def send(message: wire.Open | wire.Advance) -> Future[Slice]:
            return self._accept(Request((database, model), version, asked, 1, timeout, message=message))

        return Stream(partial(send, opening), partial(send, wire.Advance(number)), partial(self._drop, number))

    def _accept(self, request: Request) -> Future[Any]:
        with self._lock:  # what is accepted before close() sets its flag is answered
            self._start()
            if running_loop() is self._loop:
                self._dispatcher.accept(request)
            else:
                self._loop.call_soon_threadsafe(self._dispatcher.accept, request)
        return request.future

    def _drop(self, stream: int) -> None:
        with self._lock:
            if self._started and not self._closed:
                self._loop.call_soon_threadsafe(self._dispatcher.drop, stream)

    def loaded(self) -> list[dict[str, Any]]:
        """List the models that were asked for: state, version, memory, queue, counts, rate and latencies."""
        return self._call(self._dispatcher.rows(), [])

    def status(self) -> dict[str, Any]:
        """Say how the child is: ``state`` (``idle``, ``starting``, ``running``, ``closed``), pid, restarts, memory."""
        closed = {"state": "closed"} if self._closed else {}
        return {"where": self._place.where, **self._dispatcher.status(), **closed}

    def registered(self, database: str) -> None:
        """Be told that a new version may be registered in a database; else it is noticed within a tenth of a second."""
        self._newest.tell(database)

    def unload(self, database: str, model: str) -> None:
        """Drop a model from memory once the running batch is done; the next request loads it again."""
        self._call(self._dispatcher.unload(database, model), None)

    def close(self) -> None:
        """End the children and answer what waits with a `ServiceError`. Harmless when done twice."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first and self._started and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
            if self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._closed:
            raise ServiceError("The model server was closed.")
        if self._started:
            return
        self._started = True
        if self._given is not None:
            self._loop = self._given
        else:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run_loop, name="superduper-model-server", daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._serving = self._loop.create_task(self._dispatcher.serve())

    async def _finish(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        await self._dispatcher.end()

    def _call(self, coroutine: Coroutine[Any, Any, T], otherwise: T) -> T:
        """Run a coroutine in the loop; where that never ran or has ended, there is nothing to ask."""
        with self._lock:
            if self._closed or not self._started:
                coroutine.close()
                return otherwise
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            return otherwise

    def _run_loop(self) -> None:
        self._loop.run_forever()
        for task in (tasks := asyncio.all_tasks(self._loop)):
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks))
        self._loop.close()


def _asked(body: Body | UnreadBody, form: Form) -> tuple[wire.Asked, int | None]:
    if isinstance(body, Body):
        return wire.Asked(_pickled(body.inputs), form, body.errors), body.version
    return wire.Asked(body.data, form, read=body.read), None


def _size(body: Body | UnreadBody) -> int:
    """Return how many inputs a body counts for in the queue; the longer an unread one is, the more."""
    return len(body.inputs) if isinstance(body, Body) else 1 + len(body.data) // _INPUT_BYTES


def _pickled(inputs: list[Any]) -> bytes:
    try:
        return pickle.dumps(inputs, protocol=5)
    except Exception as error:
        raise InvalidInputError(f"These inputs can't be sent to the model's process: {error}") from error
