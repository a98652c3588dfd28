"""Takes jobs from MongoDB and has workers execute them.

One thread owns all state and sleeps on a queue of events: a job was written, a part came back, it is time to renew
leases. Several dispatchers may serve one MongoDB: each job is claimed under a lease, and a job whose owner fell silent
is claimed anew by whoever looks next.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, Protocol

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from superduper_nb.cluster.dask import PoolLostError, WorkerLostError
from superduper_nb.components.store import ComponentStore
from superduper_nb.errors import InvalidInputError, ServiceError
from superduper_nb.jobs.foreground import owner_name
from superduper_nb.jobs.kinds import resources_of, work_of
from superduper_nb.jobs.losses import after_loss, suspect
from superduper_nb.jobs.outputs import Outcome
from superduper_nb.jobs.records import COLLECTION, JobStore
from superduper_nb.jobs.running import REPORT_EVERY_S, Part, RunningJob
from superduper_nb.jobs.tasks import PROGRESS, Broken, assignment, execute, is_passing
from superduper_nb.models.loading import Loader

__all__ = ["Dispatcher", "Pool"]

log = logging.getLogger(__name__)

_TICK_S: Final = 0.5
_SCAN_EVERY_S: Final = 10.0
_RENEW_EVERY_S: Final = 5.0
_PAUSE_S: Final = 1.0
_TRIES: Final = 60


class Pool(Protocol):
    """What a dispatcher needs of an executor (`superduper_nb.cluster.dask.DaskPool`)."""

    def submit(
        self,
        key: str,
        function: Callable[..., Any],
        *args: Any,
        priority: int = 0,
        resources: Mapping[str, float] | None = None,
    ) -> Future[Any]:
        """Run a function elsewhere; `InvalidInputError` where nobody has the resources."""

    def subscribe(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> None:
        """Have a handler called with what workers tell under a topic."""

    def threads(self) -> int:
        """Return how many threads compute."""


class Dispatcher:
    """Executes the jobs of every database of a MongoDB.

    Parameters
    ----------
    client : pymongo.MongoClient
        Where the jobs are.
    pool : Pool
        Who executes them.
    in_flight : int
        Parts submitted at one time, at least; two for each thread that computes, so that while one is computed the
        next is on its way. Short jobs have half as many more.
    batch_timeout : float
        Seconds that a batch may take: a model that hangs is ended with its worker, the document found and given up.
    on_event : callable, optional
        Called with ``{"type": "job", "database", "job", "state", "done", "total", "failed"}`` when a job begins, moves
        on (at most ten times a second) or ends; with ``{"type": "changed", "database", "job"}`` when anybody queues,
        cancels or blocks one: the record says what it is now, which may be further on already.
    """

    def __init__(
        self,
        client: MongoClient[dict[str, Any]],
        pool: Pool,
        *,
        in_flight: int = 4,
        batch_timeout: float = 600,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._client, self._pool, self._least, self._in_flight = client, pool, in_flight, in_flight
        self._batch_timeout = batch_timeout
        self._on_event = on_event or (lambda event: None)
        self._owner = f"{owner_name()}:{uuid.uuid4().hex[:6]}"
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[str, RunningJob] = {}
        self._names: dict[str, str] = {}  # job → database
        self._stores: dict[str, JobStore] = {}
        self._out: dict[str, tuple[RunningJob, Part]] = {}
        self._dirty: set[str] = set()
        self._scanned = self._renewed = float("-inf")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._run, self._watch)]

    def start(self) -> None:
        """Begin to work, in threads of its own."""
        self._pool.subscribe(PROGRESS, lambda told: self._events.put(lambda: self._moved(told)))
        for thread in self._threads:
            thread.start()

    def notify(self, database: str) -> None:
        """Say that jobs were written there (they are found without it, a moment later)."""
        self._events.put(lambda: self._dirty.add(database))

    def close(self) -> None:
        """Stop at once; what was running is free for the next dispatcher."""
        self._stop.set()
        self._events.put(lambda: None)
        if self._threads[0].is_alive():
            self._threads[0].join(timeout=10)
        for name in set(self._names.values()):
            with suppress(PyMongoError):
                JobStore(self._client[name]).let_go(self._owner)

    # --- the thread that owns all state ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._step()
            except PyMongoError as error:
                log.warning(
                    "The dispatcher can't reach MongoDB (%s); it goes on when it is back.", type(error).__name__
                )
                self._stop.wait(_PAUSE_S)
            except ServiceError as error:
                log.warning("No workers: %s", error)
                self._stop.wait(_PAUSE_S)
            except Exception:  # the queue must outlive any one job's surprise
                log.exception("The dispatcher stumbled; it goes on")
                self._stop.wait(_PAUSE_S)

    def _step(self) -> None:
        self._renew()
        self._scan()
        self._claim()
        self._feed()
        with suppress(queue.Empty):
            self._events.get(timeout=self._patience())()
            while True:
                self._events.get_nowait()()

    def _patience(self) -> float:
        """Return how long to wait for the next event: what was told between two reports must not grow old."""
        return REPORT_EVERY_S if any(job.untold for job in self._jobs.values()) else _TICK_S

    def _renew(self) -> None:
        """Report what no event has led to a report of; renew all leases now and then."""
        if everything := time.monotonic() - self._renewed >= _RENEW_EVERY_S:
            self._renewed = time.monotonic()
        for job in list(self._jobs.values()):
            if everything or job.untold:
                self._progress(job)

    def _scan(self) -> None:
        """Look at every database now and then: jobs left by a crash announce themselves to nobody."""
        if time.monotonic() - self._scanned < _SCAN_EVERY_S:
            return
        self._scanned = time.monotonic()
        self._in_flight = max(self._least, 2 * self._pool.threads())  # an adaptive cluster grows and shrinks
        self._dirty |= set(self._client.list_database_names()) - {"admin", "config", "local"}

    def _claim(self) -> None:
        """Take over ready jobs, no more than there is room for: other dispatchers may be idle."""
        for name in list(self._dirty):
            store = self._store(name)
            while (room := 2 * self._in_flight - len(self._jobs)) > 0:
                ready = store.ready(without=self._mine(name), limit=room)
                for job in ready:
                    if record := store.claim(job["_id"], self._owner):
                        self._take(name, RunningJob(store, record, self._owner, slots=max(1, self._in_flight // 2)))
                if len(ready) < room:
                    self._dirty.discard(name)
                    break

    def _store(self, name: str) -> JobStore:
        if name not in self._stores:
            store = JobStore(self._client[name])
            if store.exists():
                store.prepare()
                self._stores[name] = store
            return store
        return self._stores[name]

    def _mine(self, name: str) -> list[str]:
        return [id for id in self._jobs if self._names[id] == name]

    def _take(self, name: str, job: RunningJob) -> None:
        job.resources = resources_of(ComponentStore(self._client[name]), job.record)
        self._jobs[job.id], self._names[job.id] = job, name
        self._tell(job, "running")

    def _feed(self) -> None:
        """Give free slots to the jobs in turn, oldest first; a suspect of killing workers runs alone."""
        hungry = list(self._jobs.values())
        while hungry:
            for job in list(hungry):
                if len(self._out) >= self._room(job) or self._suspect_out() or self._lasting(job):
                    hungry.remove(job)
                    continue
                part = None if job.error else self._next(job)
                if part is None:
                    hungry.remove(job)
                    self._end_if_done(job)
                elif suspect(job, part) and self._out:
                    job.again.appendleft(part)
                    return  # until those that are out came back
                else:
                    self._submit(job, part)

    def _room(self, job: RunningJob) -> int:
        """Return how many parts may be out when one of this job goes, too: long jobs leave some room to short ones."""
        return self._in_flight * (3 if job.short else 2) // 2

    def _next(self, job: RunningJob) -> Part | None:
        try:
            return job.next_part()
        except Exception as error:  # the work can't be read: a filter that MongoDB refuses, a chunk that is gone
            if is_passing(error):
                raise
            job.error = error
            return None

    def _suspect_out(self) -> bool:
        return any(suspect(job, part) for job, part in self._out.values())

    def _lasting(self, job: RunningJob) -> bool:
        """Say whether as much as may is taken by work that lasts: half, so that the rest goes on beside it."""
        return job.whole and 2 * sum(other.whole for other, _ in self._out.values()) >= self._in_flight

    def _submit(self, job: RunningJob, part: Part) -> None:
        key = f"superduper-{job.id}-{uuid.uuid4().hex}"  # Dask runs one key once: a second attempt needs its own
        try:
            limit = None if job.whole else self._batch_timeout
            what = (self._names[job.id], assignment(job.record, limit), part.ids, key)
            future = self._pool.submit(key, execute, *what, priority=int(job.short), resources=job.resources)
        except ServiceError:
            job.again.appendleft(part)
            raise
        except InvalidInputError as error:
            job.error = error
            return
        job.out.add(part)
        self._out[key] = (job, part)
        future.add_done_callback(lambda done: self._events.put(lambda: self._came_back(key, done)))

    def _came_back(self, key: str, future: Future[Outcome | Broken]) -> None:
        job, part = self._out.pop(key)
        job.out.discard(part)
        if self._jobs.get(job.id) is not job:
            return
        error = future.exception()
        if isinstance(error, PoolLostError):
            job.again.append(part)
        elif isinstance(error, WorkerLostError):
            self._lost(job, part, error.worker)
        elif error is not None:
            job.error = error
        else:
            self._account(job, part, future.result())
        if self._progress(job):
            self._end_if_done(job)

    def _account(self, job: RunningJob, part: Part, result: Outcome | Broken) -> None:
        if isinstance(result, Outcome):
            job.lost.clear()
            job.worker = result.worker
            job.count(part, result)
            job.close(part)
        elif result.again and part.tries < _TRIES:
            part.tries += 1
            part.not_before = time.monotonic() + _PAUSE_S
            job.again.append(part)
        else:
            job.error = result.error

    def _lost(self, job: RunningJob, part: Part, worker: str) -> None:
        if why := after_loss(job, part, worker, self._batch_timeout):
            self._condemn(job, part, why)

    def _condemn(self, job: RunningJob, part: Part, why: str) -> None:
        database = self._client[self._names[job.id]]
        work_of(database, Loader(database), job.record).condemn(part.ids[0], why)
        job.count(part, Outcome(1, ({"_id": part.ids[0], "error": why},)))
        job.close(part)

    def _moved(self, told: dict[str, Any]) -> None:
        if told["key"] in self._out:
            job, part = self._out[told["key"]]
            part.partial = told.get("done", part.partial)
            part.stuck |= told.get("stuck", False)
            self._progress(job)

    def _progress(self, job: RunningJob) -> bool:
        """Report; drop a job that was cancelled, or claimed by another dispatcher while this one was out."""
        if self._jobs.get(job.id) is not job:
            return False
        before = job.reported
        if not job.report():
            self._drop(job)
            return False
        if job.reported != before:
            self._tell(job, "running")
        return True

    def _end_if_done(self, job: RunningJob) -> None:
        if job.ended and job.id in self._jobs:
            ours = job.finish()
            self._tell(job, "failed" if job.error else "succeeded", ours)
            self._dirty.add(self._names[job.id])  # its children may be ready
            self._drop(job)

    def _drop(self, job: RunningJob) -> None:
        del self._jobs[job.id]
        self._dirty.add(self._names.pop(job.id))  # there is room again

    def _tell(self, job: RunningJob, state: str, ours: bool = True) -> None:
        if not ours:
            return
        progress = {"done": job.done, "total": job.record["progress"]["total"], "failed": job.failed}
        event = {"type": "job", "database": self._names[job.id], "job": job.id, "state": state, **progress}
        self._on_event(event)

    # --- the thread that hears of new jobs ------------------------------------------------------------------------

    def _watch(self) -> None:
        added = {"ns.coll": COLLECTION, "operationType": {"$in": ["insert", "update"]}}
        # Progress reports of running jobs are none of its business; a retry and a release, which are updates, are.
        updated = "updateDescription.updatedFields"
        new = {"fullDocument.state": "pending", "fullDocument.hold": None}
        changed = {f"{updated}.state": {"$in": ["pending", "cancelled", "blocked"]}}
        news = {"$or": [new, changed, {f"{updated}.hold": {"$exists": True}}]}
        pipeline: list[dict[str, Any]] = [{"$match": {**added, **news}}, {"$project": {"ns": 1, "documentKey": 1}}]
        while not self._stop.is_set():
            try:
                with self._client.watch(pipeline, max_await_time_ms=500) as stream:
                    while not self._stop.is_set():
                        if event := stream.try_next():
                            database, job = event["ns"]["db"], event["documentKey"]["_id"]
                            self.notify(database)
                            self._on_event({"type": "changed", "database": database, "job": job})
            except PyMongoError as error:
                log.debug(
                    "No change stream over the deployment (%s): jobs are found by scanning.", type(error).__name__
                )
                self._stop.wait(_PAUSE_S)
