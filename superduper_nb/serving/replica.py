"""One child process and what it does: batches and parts of streams, one at a time; it is replaced when it dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from superduper_nb.errors import ModelError, ServiceError
from superduper_nb.serving import wire
from superduper_nb.serving.lanes import Lanes, Request
from superduper_nb.serving.newest import Newest
from superduper_nb.serving.outcomes import cut_off, outcome_of, outcome_of_part
from superduper_nb.serving.process import Place, Process, ProcessEndedError

__all__ = ["Replica"]

log = logging.getLogger(__name__)

_LOAD_S: Final = 300.0
_STARTS: Final = 3
_QUICK_S: Final = 0.02
_BACK_MS: Final = 2
"""Time for clients that got their answers to ask again, together and with the few that came too late for their batch:
in turns, eight that came as one and seven were served a tenth slower for good."""
_SOON_BACK: Final = 8
"""So many can in that time. More than these divide themselves into halves, one of which asks while the other is run."""
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0


class Replica:
    """Takes batches from the queues that all replicas share. Belongs to one event loop.

    Parameters
    ----------
    hello : bytes
        What a new child is told: a packed `wire.Hello`.
    place : Place
        Where it is started.
    lanes : Lanes
        The queues.
    newest : Newest
        Says whether a version still is.
    grace : float
        Seconds that a batch may always take.
    held_elsewhere : callable
        Says whether another replica has a model in memory.
    give_up : callable
        Called when the child did not start for the third time in a row.

    Attributes
    ----------
    idle : bool
        It waits for work.
    loaded : wire.Loaded
        What the child has in memory.
    loading : tuple of str, or None
        Database and name of the model that it loads just now.
    streams : set of int
        The streams that are open in the child.
    """

    def __init__(
        self,
        hello: bytes,
        place: Place,
        lanes: Lanes,
        newest: Newest,
        *,
        grace: float,
        held_elsewhere: Callable[[Replica, tuple[str, str]], bool],
        give_up: Callable[[ServiceError], None],
    ) -> None:
        self._hello, self._place, self._lanes, self._grace = hello, place, lanes, grace
        self._newest, self._held_elsewhere, self._give_up = newest, held_elsewhere, give_up
        self._ahead: dict[tuple[str, str], int] = {}  # slow models: the version that is run while its age is asked for
        self._work = asyncio.Event()
        self._turn = asyncio.Lock()  # held by who talks to the child
        self._child: Process | None = None
        self._inside: list[Request] = []  # the batch that it runs
        self._delivery: asyncio.Task[None] | None = None  # of the answers of the batch before
        self._steps: deque[Request] = deque()  # of streams
        self._dropped: list[int] = []  # streams that nobody reads any more
        self._step_next = False
        self._deaths = 0  # in a row, without a batch that was answered between
        self._failed_starts = 0  # in a row
        self.restarts = 0
        self.streams: set[int] = set()
        self.loading: tuple[str, str] | None = None
        self.loaded = wire.Loaded([], 0)

    @property
    def idle(self) -> bool:
        """Say whether it waits for work."""
        return not self._work.is_set()

    def wake(self) -> None:
        """Have it look at the queues."""
        self._work.set()

    def advance(self, request: Request) -> None:
        """Queue the next part of one of its streams."""
        self._steps.append(request)
        self.wake()

    def drop(self, stream: int) -> None:
        """Have the child drop a stream before its next work."""
        self.streams.discard(stream)
        if self.pid:
            self._dropped.append(stream)
            self.wake()

    def holds(self, name: tuple[str, str], version: int | None = None) -> bool:
        """Say whether the child has a model in memory, in this version or any."""
        held = [about.version for about in self.loaded.models if (about.database, about.model) == name]
        return bool(held) if version is None else version in held

    async def serve(self) -> None:
        """Run batches until cancelled."""
        while True:
            await self._work.wait()
            async with self._turn:
                child = await self._ready_child()
                if child is not None:
                    await self._serve_once(child)
            if not (self._lanes or self._steps or self._dropped):
                self._work.clear()

    async def _serve_once(self, child: Process) -> None:
        try:
            while self._dropped:
                await child.send(wire.pack(wire.End(self._dropped.pop())))
            await self._fetch(child)
        except (TimeoutError, ProcessEndedError):
            await self._bury(child)
            return
        # Taken after the child is ready: what came while it started, or loaded the model, joins the batch.
        if batch := self._next():
            await self._run(child, batch)

    async def _fetch(self, child: Process) -> None:
        """Load the model whose turn it is before its requests are taken: a replica that has it may be free first."""
        name = self._lanes.first
        if name is not None and not self.holds(name) and self._held_elsewhere(self, name):
            await self._exchange(child, wire.Run(*name, None, []), name)

    def _next(self) -> list[Request]:
        """Take a batch or the next part of a stream, in turn."""
        self._step_next = not self._step_next
        if self._steps and (self._step_next or not self._lanes):
            step = self._steps.popleft()
            return [step] if step.claim() else []
        return self._lanes.take()

    async def unload(self, database: str, model: str) -> None:
        """Have the child drop a model, after the running batch."""
        async with self._turn:
            child = self._child
            if child is None or not child.alive:
                return
            try:
                async with asyncio.timeout(self._grace):
                    await child.send(wire.pack(wire.Unload(database, model)))
                    self.loaded = await child.receive()
            except (TimeoutError, ProcessEndedError):
                await self._bury(child)

    async def end(self) -> None:
        """End the child and answer what is left; `serve` must have been cancelled."""
        await self._delivered()
        for request in [*self._inside, *self._steps]:
            request.answer(ServiceError("The model server was closed."))
        if self._child is not None:
            await self._child.end()

    @property
    def pid(self) -> int | None:
        """The process id of the child, while it lives."""
        child = self._child  # once: another thread asks
        return child.pid if child is not None and child.alive else None

    def status(self) -> dict[str, Any]:
        """Say how the child is."""
        state = "running" if self.pid else "idle" if self.idle else "starting"
        return {"state": state, "pid": self.pid, "restarts": self.restarts, "rss": self.loaded.rss}

    async def _ready_child(self) -> Process | None:
        """Return the child, started again where need be; None where it does not start."""
        if self._child is not None and self._child.alive:
            return self._child
        if self._child is not None:
            await self._bury(self._child)
        await asyncio.sleep(min(_PAUSE_S * 2**self._deaths, _LONGEST_PAUSE_S) if self._deaths > 1 else 0)
        try:
            self._child = await self._place.start(self._hello)
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
            self._give_up(ServiceError(f"The model server's process does not start: {error}. See the log."))

    async def _bury(self, child: Process) -> str:
        ended = await child.end()
        log.warning("The model server's process %d ended: %s", child.pid, ended)
        self._child, self.loaded, self.loading = None, wire.Loaded([], 0), None
        self._ahead.clear()
        self._deaths += 1
        self.restarts += 1
        self.streams.clear()
        self._dropped.clear()
        while self._steps:
            self._lanes.answer(self._steps.popleft(), cut_off(ended))
        return ended

    async def _run(self, child: Process, batch: list[Request]) -> None:
        self._inside, begun = batch, time.monotonic()
        latest = max(request.deadline for request in batch)
        try:
            answer = await self._answer(child, batch, latest)
        except TimeoutError:
            await self._bury(child)
            for request in batch:
                self._lanes.expire(request)
        except Exception as error:
            if not isinstance(error, ProcessEndedError):
                log.exception("The model server's process said what can't be understood")
            self._try_again(batch, await self._bury(child))
        else:
            self._deaths = 0
            await self._deliver(batch, answer, time.monotonic() - begun)
        self._inside = []

    async def _answer(self, child: Process, batch: list[Request], latest: float) -> Any:
        """Have a batch run."""
        first = batch[0]
        run = wire.Run(*first.name, first.version, [request.asked for request in batch])
        if first.version is not None or first.message is not None or first.asked.read is not None:
            return await self._exchange(child, first.message or run, first.name, latest)
        known = self._newest.lately(first.name)
        if known is not None and self.holds(first.name, known):
            return await self._exchange(child, replace(run, version=known), first.name, latest)
        return await self._asking(child, run, latest)

    async def _asking(self, child: Process, run: wire.Run, latest: float) -> Any:
        """Have a batch run in the newest version; once more, where a slow model's was replaced meanwhile."""
        name, begun = (run.database, run.model), time.monotonic()
        version = self._ahead.pop(name, None)
        if version is None or not self.holds(name):
            answer = await self._exchange(child, run, name, latest)
        else:
            asked = asyncio.ensure_future(self._newest.is_newest(name, version))
            answer = await self._exchange(child, replace(run, version=version), name, latest)
            if not await asked:
                answer = await self._exchange(child, run, name, latest)
        if isinstance(answer, wire.Answers) and answer.version is not None:
            self._newest.note(name, answer.version, begun)
            self._ahead |= {name: answer.version} if answer.ahead else {}
        return answer

    async def _exchange(self, child: Process, message: object, name: tuple[str, str], latest: float = 0.0) -> Any:
        """Send the child work and wait for the answer; raises `TimeoutError` when it hangs."""
        now = asyncio.get_running_loop().time
        async with asyncio.timeout_at(max(latest, now() + self._grace)) as limit:
            await child.send(wire.pack(message))
            while isinstance(said := await child.receive(), (wire.Loading, wire.Loaded)):
                if isinstance(said, wire.Loaded):
                    self.loaded = said
                self.loading = name if isinstance(said, wire.Loading) else None
                limit.reschedule(max(latest, now() + (_LOAD_S if self.loading else self._grace)))
        self.loading = None
        return said

    async def _deliver(
        self, batch: list[Request], answer: wire.Answers | wire.Part | wire.Failure, took: float
    ) -> None:
        if not isinstance(answer, wire.Answers):
            self._deliver_part(batch[0], answer)
            return
        if answer.version is not None:
            self._lanes.learn(batch[0].name, answer.batch_size)
        for request, size in zip(batch, answer.inputs, strict=False):
            request.size = size  # of an unread body it was a guess
        await self._delivered()
        await self._deliver_all(list(zip(batch, answer.answers, strict=True)), answer.version, took < _QUICK_S)

    async def _deliver_all(
        self, answers: list[tuple[Request, bytes | wire.Failure]], version: int | None, quick: bool
    ) -> None:
        """Answer the requests of a batch, beside the next one or, where none or little waits, before it."""
        count = len(answers)
        if count == 1 and not self._lanes:
            self._give(*answers[0], version)
        elif not quick and 1 < count <= _SOON_BACK and self._lanes.only_few_wait(count // 2):
            together = self._lanes.waiting + count
            await self._deliver_each(answers, version, quick=False)
            await self._gathered(together)
        else:
            delivering = self._deliver_each(answers, version, quick=quick)
            self._delivery = asyncio.get_running_loop().create_task(delivering)

    async def _delivered(self) -> None:
        """Wait until the answers of the batch before are out."""
        if self._delivery is not None and not self._delivery.done():
            await asyncio.wait({self._delivery})

    async def _deliver_each(
        self, answers: list[tuple[Request, bytes | wire.Failure]], version: int | None, *, quick: bool
    ) -> None:
        """Answer the requests of a batch: of a quick model one each turn of the loop, for which others would wait.

        What is answered together is asked again together, as a slow model wants it.
        """
        for request, answer in answers:
            self._give(request, answer, version)
            if quick:
                await asyncio.sleep(0)

    async def _gathered(self, together: int) -> None:
        """Wait a moment for so many requests."""
        for _ in range(_BACK_MS):
            if self._lanes.waiting < together:
                await asyncio.sleep(0.001)

    def _give(self, request: Request, answer: bytes | wire.Failure, version: int | None) -> None:
        self._lanes.answer(request, outcome_of(request, answer, version))

    def _deliver_part(self, request: Request, answer: wire.Part | wire.Failure) -> None:
        assert request.message is not None
        stream, goes_on = request.message.stream, isinstance(answer, wire.Part) and not answer.done
        if not goes_on:
            self.streams.discard(stream)
        if isinstance(answer, wire.Part) and isinstance(request.message, wire.Open):
            self._lanes.learn(request.name, None)
            self.streams |= {stream} if goes_on else set()
        if not self._lanes.answer(request, outcome_of_part(answer)) and goes_on:
            self.drop(stream)

    def _try_again(self, batch: list[Request], ended: str) -> None:
        """Queue what was inside when the child died, each alone: only what kills it twice is to blame."""
        for request in batch:
            if isinstance(request.message, wire.Advance):
                self._lanes.answer(request, cut_off(ended))
            elif request.killed:
                reason = f"The process that runs the models ended ({ended}) in this request, twice."
                self._lanes.answer(request, ModelError(reason))
            request.alone = request.killed = True
        self._lanes.put_back([request for request in batch if not request.future.done()])
