"""What runs in the model server's loop: requests in, batches to the child, answers out, and the child itself."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any, Final

from superduper_nb.errors import DeadlineError, ModelError, OverloadedError, ServiceError
from superduper_nb.serving import wire
from superduper_nb.serving.lanes import Lanes, Request
from superduper_nb.serving.process import ModelProcess, ProcessEndedError
from superduper_nb.serving.values import Prediction

__all__ = ["Dispatcher"]

log = logging.getLogger(__name__)

_LOAD_S: Final = 300.0
_STARTS: Final = 3
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0


class Dispatcher:
    """Has a child process run what is asked for. All but `status` must be called in one event loop.

    Parameters
    ----------
    hello : bytes
        What a new child is told: a packed `wire.Hello`.
    queue : int
        Inputs that may wait for one model.
    grace : float
        Seconds that a batch may always take.
    """

    def __init__(self, hello: bytes, *, queue: int, grace: float) -> None:
        self._hello, self._grace = hello, grace
        self._lanes = Lanes(queue)
        self._work = asyncio.Event()  # requests wait
        self._turn = asyncio.Lock()  # held by who talks to the child
        self._child: ModelProcess | None = None
        self._inside: list[Request] = []  # the batch that it runs
        self._deaths = 0  # in a row, without a batch that was answered between
        self._restarts = 0
        self._failed_starts = 0  # in a row
        self._loading: tuple[str, str] | None = None
        self._loaded = wire.Loaded([], 0)

    def accept(self, request: Request) -> None:
        """Queue a request, or refuse it."""
        try:
            self._lanes.put(request)
        except OverloadedError as error:
            request.answer(error)
            return
        request.alarm = asyncio.get_running_loop().call_at(request.deadline, self._expire, request)
        self._work.set()

    async def serve(self) -> None:
        """Run batches until cancelled."""
        while True:
            await self._work.wait()
            async with self._turn:
                child = await self._ready_child()
                # Taken after the child is ready: what came while it started joins the batch.
                if child is not None and (batch := self._lanes.take()):
                    await self._run(child, batch)
            if not self._lanes:
                self._work.clear()

    async def unload(self, database: str, model: str) -> None:
        """Have the child drop a model, after the running batch."""
        async with self._turn:
            child = self._child
            if child is None or not child.alive:
                return
            try:
                async with asyncio.timeout(self._grace):
                    await child.send(wire.pack(wire.Unload(database, model)))
                    self._loaded = await child.receive()
            except (TimeoutError, ProcessEndedError):
                await self._bury(child)

    async def rows(self) -> list[dict[str, Any]]:
        """List the models with their figures."""
        return self._lanes.rows(self._loaded.models, self._loading)

    async def end(self) -> None:
        """End the child and answer what is left; `serve` must have been cancelled."""
        for request in [*self._inside, *self._lanes.drain()]:
            request.answer(ServiceError("The model server was closed."))
        if self._child is not None:
            await self._child.end()

    def status(self) -> dict[str, Any]:
        """Say how the child is."""
        child = self._child  # once: another thread asks
        pid = child.pid if child is not None and child.alive else None
        state = "running" if pid else "starting" if self._work.is_set() else "idle"
        return {"state": state, "pid": pid, "restarts": self._restarts, "rss": self._loaded.rss}

    def _expire(self, request: Request) -> None:
        self._answer(request, DeadlineError(f"Model {request.name[1]!r} did not answer within {request.timeout:g} s."))

    def _answer(self, request: Request, outcome: Prediction | BaseException) -> None:
        if request.answer(outcome):
            self._lanes.record(request, failed=not isinstance(outcome, Prediction))

    async def _ready_child(self) -> ModelProcess | None:
        """Return the child, started again where need be; None where it does not start."""
        if self._child is not None and self._child.alive:
            return self._child
        if self._child is not None:
            await self._bury(self._child)
        await asyncio.sleep(min(_PAUSE_S * 2**self._deaths, _LONGEST_PAUSE_S) if self._deaths > 1 else 0)
        try:
            self._child = await ModelProcess.start(self._hello)
        except (ProcessEndedError, OSError) as error:
            self._note_failed_start(error)
            return None
        self._failed_starts = 0
        return self._child

    def _note_failed_start(self, error: Exception) -> None:
        log.error("The model server's process does not start: %s", error)
        self._deaths += 1
        self._failed_starts += 1
        if self._failed_starts >= _STARTS:
            for request in self._lanes.drain():
                self._answer(request, ServiceError(f"The model server's process does not start: {error}. See the log."))

    async def _bury(self, child: ModelProcess) -> str:
        ended = await child.end()
        log.warning("The model server's process %d ended: %s", child.pid, ended)
        self._child, self._loaded = None, wire.Loaded([], 0)
        self._deaths += 1
        self._restarts += 1
        return ended

    async def _run(self, child: ModelProcess, batch: list[Request]) -> None:
        self._inside = batch
        try:
            answers = await self._exchange(child, batch)
        except TimeoutError:
            await self._bury(child)
            for request in batch:
                self._expire(request)
        except Exception as error:
            if not isinstance(error, ProcessEndedError):
                log.exception("The model server's process said what can't be understood")
            self._try_again(batch, await self._bury(child))
        else:
            self._deaths = 0
            self._deliver(batch, answers)
        self._loading, self._inside = None, []

    async def _exchange(self, child: ModelProcess, batch: list[Request]) -> wire.Answers:
        """Have the child run a batch; raises `TimeoutError` when it hangs."""
        first, latest = batch[0], max(request.deadline for request in batch)
        now = asyncio.get_running_loop().time
        run = wire.Run(*first.name, first.version, [request.payload for request in batch])
        async with asyncio.timeout_at(max(latest, now() + self._grace)) as limit:
            await child.send(wire.pack(run))
            while not isinstance(message := await child.receive(), wire.Answers):
                if isinstance(message, wire.Loaded):
                    self._loaded = message
                self._loading = first.name if isinstance(message, wire.Loading) else None
                limit.reschedule(max(latest, now() + (_LOAD_S if self._loading else self._grace)))
        return message

    def _deliver(self, batch: list[Request], answers: wire.Answers) -> None:
        if answers.version is not None:
            self._lanes.learn(batch[0].name, answers.batch_size)
        for request, answer in zip(batch, answers.answers, strict=True):
            self._answer(request, _outcome(request, answer, answers.version))

    def _try_again(self, batch: list[Request], ended: str) -> None:
        """Queue what was inside when the child died, each alone: only what kills it twice is to blame."""
        for request in batch:
            if request.alone:
                reason = f"The process that runs the models ended ({ended}) in this request, twice."
                self._answer(request, ModelError(reason))
            request.alone = True
        self._lanes.put_back([request for request in batch if not request.future.done()])


def _outcome(request: Request, answer: bytes | wire.Failure, version: int | None) -> Prediction | BaseException:
    if isinstance(answer, wire.Failure):
        return answer.error()
    try:
        outputs = pickle.loads(answer)
    except Exception as error:
        return ModelError(f"The model's output can't be read outside its process: {type(error).__name__}: {error}")
    return Prediction(outputs, version or 0, request.waited_ms)
