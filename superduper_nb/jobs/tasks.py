"""What an executor runs: one part of one job, in this process or in a worker."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from pymongo.errors import ConnectionFailure, ExecutionTimeout, OperationFailure, PyMongoError, WTimeoutError

from superduper_nb.cluster.dask import WorkerLostError
from superduper_nb.jobs.capture import Lines, capture
from superduper_nb.jobs.kinds import Work, work_of
from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.running import error_record
from superduper_nb.jobs.worker import opened, policy, turns

__all__ = ["PROGRESS", "Broken", "assignment", "execute", "is_passing", "run_part"]

PROGRESS: Final = "superduper-progress"
"""The topic under which workers tell how far they are."""
_PASSING_CODES: Final = frozenset((6, 7, 43, 89, 91, 189, 211, 234, 262, 9001, 10107, 11600, 11602, 13435, 13436))
"""Of a server that starts, stops or is no longer the first: cursors and keys are gone for the moment."""
_LOOK_EVERY_S: Final = 0.25
_TELL_EVERY_S: Final = 0.1
_GRACE_S: Final = 20.0
"""A model that is stopped has so long to come to the end of a batch; then its worker process is ended."""
_LAST_WORDS_S: Final = 1.0
_LASTING: Final = 30


@dataclass(frozen=True, slots=True)
class Broken:
    """A part could not be run at all.

    Attributes
    ----------
    error : dict
        ``{"type", "message", "traceback"}``.
    again : bool
        MongoDB was away: to be tried again.
    """

    error: dict[str, Any]
    again: bool


def is_passing(error: BaseException) -> bool:
    """Say whether it is MongoDB that is away: the same may well succeed in a moment."""
    if isinstance(error, OperationFailure) and error.code in _PASSING_CODES:
        return True
    return isinstance(error, (ConnectionFailure, WTimeoutError, ExecutionTimeout))


class _Minder(Control):
    """Looks in on a part from a thread beside it: stores what it prints, tells how far it is, stops it on demand."""

    def __init__(self, store: JobStore, job: dict[str, Any], told: Callable[..., None], *, worker: bool) -> None:
        self.guard = worker
        self.lines = Lines()
        self._store, self._job, self._told, self._worker = store, job, told, worker
        self._stop, self._over, self._news = threading.Event(), threading.Event(), threading.Event()
        self._done = self._last = 0
        self._computes_since: float | None = None
        self._thread = threading.Thread(target=self._mind, name="superduper-minder", daemon=True)

    @contextmanager
    def turn(self) -> Iterator[None]:
        with turns().turn() if self._worker else nullcontext():
            self._computes_since = time.monotonic()
            try:
                yield
            finally:
                self._computes_since = None

    def aside(self) -> AbstractContextManager[None]:
        return turns().aside() if self._worker else nullcontext()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def tell(self, done: int) -> None:
        self._done = done
        self._news.set()

    def __enter__(self) -> _Minder:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._news.set()
        self._thread.join()
        self._store_lines(end=True)

    def _mind(self) -> None:
        looked, stopped_at = time.monotonic(), float("inf")
        while not self._over.wait(_TELL_EVERY_S):
            self._news.wait(_LOOK_EVERY_S)
            self._news.clear()
            self._pass_on()
            if time.monotonic() - looked >= _LOOK_EVERY_S:
                looked = time.monotonic()
                if not self._wanted():
                    self._stop.set()
                    stopped_at = min(stopped_at, looked)
            if self._worker and time.monotonic() - stopped_at > _GRACE_S:
                _end_worker()
            self._end_what_hangs()

    def _end_what_hangs(self) -> None:
        limit, since = self._job.get("batch_timeout"), self._computes_since
        if limit and since and time.monotonic() - since > limit:
            self.lines.write("note", f"A batch took longer than {limit:g} s (jobs.batch_timeout): its worker is ended.")
            self._store_lines(end=True)
            self._told(stuck=True)
            time.sleep(_LAST_WORDS_S)  # Dask sends them from another thread
            _end_worker()

    def _pass_on(self) -> None:
        """Tell of progress as it is made, so that it is not old when it arrives."""
        if self._done != self._last:
            self._last = self._done
            self._told(done=self._last)

    def _wanted(self) -> bool:
        """Say whether the job is still ours; store what was printed on the way."""
        with suppress(PyMongoError):  # MongoDB is away: whoever writes outputs will notice
            if not self._store.owns(self._job["_id"], self._job["owner"]):
                return False
            self._store_lines()
        return True

    def _store_lines(self, *, end: bool = False) -> None:
        if lines := self.lines.take(end=end):
            with suppress(PyMongoError):
                self._store.log(self._job["_id"], lines)


def _end_worker() -> None:
    os._exit(75)  # the pool starts another; a thread can't be ended in any other way


def assignment(job: dict[str, Any], batch_timeout: float | None) -> dict[str, Any]:
    """Return what an executor has to know of a job; a batch that takes longer than so many seconds ends its worker."""
    names = ("_id", "kind", "collection", "component", "retry_failed", "owner", "attempts")
    return {**{name: job[name] for name in names}, "batch_timeout": batch_timeout}


def run_part(
    work: Work,
    store: JobStore,
    job: dict[str, Any],
    ids: Sequence[Any],
    *,
    told: Callable[..., None],
    worker: bool = False,
) -> Outcome:
    """Do a part of a job's work; `told` is called with ``done=`` documents, or with ``stuck=True`` before the end."""
    with _Minder(store, job, told, worker=worker) as minder, capture(minder.lines, tee=not worker):
        return work.run(ids, minder)


def execute(database: str, job: dict[str, Any], ids: Sequence[Any], key: str) -> Outcome | Broken:
    """Do a part of a job's work in a worker, which finds MongoDB by its own configuration; never raises."""
    try:
        work, store = _prepared(database, job)
        outcome = run_part(work, store, job, ids, told=_teller(key), worker=True)
        return replace(outcome, worker=f"{socket.gethostname()}:{os.getpid()}")
    except WorkerLostError:  # another one, of those that train together: the dispatcher knows what to do
        raise
    except BaseException as error:  # what can't be pickled, or would end the worker, becomes a record here
        return Broken(error_record(error), again=is_passing(error))


def _teller(key: str) -> Callable[..., None]:
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # not in one
        return lambda **news: None
    return lambda **news: worker.log_event(PROGRESS, {"key": key, **news})


# A worker lives long: its connection and its loaded models are kept between tasks. They live in this module because
# globals of a pickled function would be new for each task. Component versions are those at the first part of a job's
# attempt: whoever registers a newer one queues a job of its own.
_kept: dict[tuple[str, str, int], tuple[Work, JobStore]] = {}
_lock = threading.Lock()


def _prepared(database: str, job: dict[str, Any]) -> tuple[Work, JobStore]:
    key = (database, job["_id"], job["attempts"])
    with _lock:
        if key in _kept:
            return _kept[key]
        where, loader = opened(database)
    made = work_of(where, loader, job, policy()), JobStore(where)
    with _lock:
        _kept[key] = made
        while len(_kept) > _LASTING:
            del _kept[next(iter(_kept))]
    return made
