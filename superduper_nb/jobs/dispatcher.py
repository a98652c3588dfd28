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
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Protocol

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from superduper_nb.cluster.dask import WorkerLostError
from superduper_nb.errors import ServiceError
from superduper_nb.jobs.foreground import owner_name
from superduper_nb.jobs.outputs import Outcome
from superduper_nb.jobs.records import COLLECTION, JobStore
from superduper_nb.jobs.running import Part, RunningJob
from superduper_nb.jobs.tasks import execute

__all__ = ["Dispatcher", "Pool"]

log = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_SCAN_EVERY_S: Final = 10.0
_RENEW_EVERY_S: Final = 5.0
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 1.0


class Pool(Protocol):
    """What a dispatcher needs of an executor (`superduper_nb.cluster.dask.DaskPool`)."""

    def submit(self, key: str, function: Callable[..., Any], *args: Any, priority: int = 0) -> Future[Any]:
        """Run a function elsewhere."""


class Dispatcher:
    """Executes the jobs of every database of a MongoDB.

    Parameters
    ----------
    client : pymongo.MongoClient
        Where the jobs are.
    pool : Pool
        Who executes them.
    in_flight : int
        Parts submitted at one time.
    on_event : callable, optional
        Called with ``{"type": "job", "database", "job", "state"}`` when a job begins, moves on or ends.
    """

    def __init__(
        self,
        client: MongoClient[dict[str, Any]],
        pool: Pool,
        *,
        in_flight: int = 4,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._client, self._pool, self._in_flight = client, pool, in_flight
        self._on_event = on_event or (lambda event: None)
        self._owner = f"{owner_name()}:{uuid.uuid4().hex[:6]}"
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[str, RunningJob] = {}
        self._names: dict[str, str] = {}  # job → database
        self._dirty: set[str] = set()
        self._scanned = self._renewed = float("-inf")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._run, self._watch)]

    def start(self) -> None:
        """Begin to work, in threads of its own."""
        for thread in self._threads:
            thread.start()

    def notify(self, database: str) -> None:
        """Say that jobs were written there (they are found without it, a moment later)."""
        self._events.put(lambda: self._dirty.add(database))

    def close(self) -> None:
        """Stop at once; what was running is claimed again by the next dispatcher when the lease lapses."""
        self._stop.set()
        self._events.put(lambda: None)
        self._threads[0].join(timeout=10)

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
        self._scan()
        self._claim()
        self._feed()
        self._renew()
        try:
            self._events.get(timeout=_TICK_S)()
            while True:
                self._events.get_nowait()()
        except queue.Empty:
            pass

    def _scan(self) -> None:
        """Look at every database now and then: jobs left by a crash announce themselves to nobody."""
        if time.monotonic() - self._scanned < _SCAN_EVERY_S:
            return
        self._scanned = time.monotonic()
        self._dirty |= set(self._client.list_database_names()) - {"admin", "config", "local"}

    def _claim(self) -> None:
        while self._dirty:
            name = next(iter(self._dirty))
            store = JobStore(self._client[name])
            for ready in store.ready():
                if ready["_id"] not in self._jobs and (record := store.claim(ready["_id"], self._owner)):
                    job = RunningJob(store, record, self._owner)
                    self._jobs[job.id], self._names[job.id] = job, name
                    self._tell(job, "running")
            self._dirty.discard(name)

    def _feed(self) -> None:
        """Give free slots to the jobs in turn, oldest first."""
        free = self._in_flight - sum(job.out for job in self._jobs.values())
        hungry = list(self._jobs.values())
        while free > 0 and hungry:
            for job in list(hungry):
                part = job.next_part()
                if part is None:
                    hungry.remove(job)
                    self._end_if_done(job)
                elif free > 0:
                    self._submit(job, part)
                    free -= 1
                else:
                    job.again.appendleft(part)
                    return

    def _submit(self, job: RunningJob, part: Part) -> None:
        key = f"superduper-{job.id}-{uuid.uuid4().hex}"  # Dask runs one key once: a second attempt needs its own
        try:
            future = self._pool.submit(key, execute, self._names[job.id], job.id, part.ids)
        except ServiceError:
            job.again.appendleft(part)
            raise
        job.out += 1
        future.add_done_callback(lambda done: self._events.put(lambda: self._came_back(job, part, done)))

    def _came_back(self, job: RunningJob, part: Part, future: Future[Outcome]) -> None:
        job.out -= 1
        if self._jobs.get(job.id) is not job:
            return
        error = future.exception()
        if error is None:
            job.count(part, future.result())
            job.close(part)
        elif isinstance(error, WorkerLostError):
            self._isolate(job, part)
        elif isinstance(error, PyMongoError) and part.attempts < 10 * _ATTEMPTS:
            part.attempts += 1
            job.again.append(part)
            self._stop.wait(_PAUSE_S)  # MongoDB is away for everybody: nothing else can go on either
        else:
            self._end(job, error)
            return
        self._progress(job)
        self._end_if_done(job)

    def _isolate(self, job: RunningJob, part: Part) -> None:
        """Find the document that kills workers: halve, and let single ones try again alone."""
        part.attempts += 1
        if len(part.ids) > 1:
            job.again.extend(part.split())
        elif part.attempts < _ATTEMPTS:
            job.again.append(part)
        else:
            failure = {"_id": part.ids[0], "error": f"killed its worker {part.attempts} times"}
            job.count(part, Outcome(1, (failure,)))
            job.close(part)

    def _progress(self, job: RunningJob) -> None:
        if job.report():
            self._tell(job, "running")
        else:  # cancelled, or claimed by another dispatcher while this one was out: drop it, write nothing more
            del self._jobs[job.id]

    def _end_if_done(self, job: RunningJob) -> None:
        if job.ended and job.id in self._jobs:
            self._end(job, None)

    def _end(self, job: RunningJob, error: BaseException | None) -> None:
        del self._jobs[job.id]
        job.finish(error)
        self._dirty.add(self._names[job.id])  # its children may be ready
        self._tell(job, "failed" if error else "succeeded")

    def _renew(self) -> None:
        if time.monotonic() - self._renewed < _RENEW_EVERY_S:
            return
        self._renewed = time.monotonic()
        for job in list(self._jobs.values()):
            self._progress(job)

    def _tell(self, job: RunningJob, state: str) -> None:
        self._on_event({"type": "job", "database": self._names[job.id], "job": job.id, "state": state})

    # --- the thread that hears of new jobs ------------------------------------------------------------------------

    def _watch(self) -> None:
        added = {"ns.coll": COLLECTION, "operationType": {"$in": ["insert", "update"]}}
        # Progress reports of running jobs are none of its business; a retry, which is an update, is.
        news = {"$or": [{"fullDocument.state": "pending"}, {"updateDescription.updatedFields.state": "pending"}]}
        pipeline: list[dict[str, Any]] = [{"$match": {**added, **news}}, {"$project": {"ns": 1}}]
        while not self._stop.is_set():
            try:
                with self._client.watch(pipeline, max_await_time_ms=500) as stream:
                    while not self._stop.is_set():
                        if event := stream.try_next():
                            self.notify(event["ns"]["db"])
            except PyMongoError as error:
                log.debug(
                    "No change stream over the deployment (%s): jobs are found by scanning.", type(error).__name__
                )
                self._stop.wait(_PAUSE_S)
