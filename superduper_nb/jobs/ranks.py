"""The processes of one training beside its first one: tasks that are pinned to other Dask workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from distributed import get_client, get_worker, secede, wait
from distributed.scheduler import KilledWorker

from superduper_nb.cluster.dask import WorkerLostError
from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.jobs.outputs import Control
from superduper_nb.jobs.worker import opened, turns
from superduper_nb.training.data import Skipped
from superduper_nb.training.task import Run

__all__ = ["DaskRanks", "in_worker"]

_WORKERS_S: Final = 60.0
"""So long do we wait for workers: one that was lost is started again, a growing cluster grows."""
_LOOK_S: Final = 0.25
_WHY_S: Final = 5.0
"""So long may the scheduler take to say why a connection broke."""
_END_S: Final = 30.0
_PRIORITY: Final = 100
"""Before parts of jobs that wait: the first process is there and waits, too."""


def in_worker() -> bool:
    """Say whether this thread executes a task of a Dask worker."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


class DaskRanks:
    """Other processes, each on a worker of its own; the first one is the task that makes this.

    Parameters
    ----------
    database : str
        Its name.
    run : str
        The training's.
    processes : int
        How many there are to be, the first one counted.
    resources : mapping of str to float
        What their workers must have. The first one alone has Dask count it: two trainings that each wait for what the
        other one holds would wait for ever.
    stopped : callable
        Says whether somebody has stopped the training.
    """

    def __init__(
        self, database: str, run: str, processes: int, resources: Mapping[str, float], stopped: Callable[[], bool]
    ) -> None:
        self._database, self._run, self._processes, self._stopped = database, run, processes, stopped
        self._resources = dict(resources)
        self._client, self._own = get_client(), get_worker().address
        self._futures: dict[str, Any] = {}
        self.host = _host(self._own)

    def start(self, address: str, given: Mapping[str, Any]) -> None:
        """Have them begin: join at an address, with what was given.

        Raises
        ------
        InvalidInputError
            There are not so many workers, and none came.
        """
        for rank, worker in enumerate(self._workers(), 1):
            self._futures[worker] = self._client.submit(
                _take_part,
                *(self._database, self._run, rank, address, dict(given)),
                key=f"superduper-rank-{self._run}-{rank}-{uuid4().hex}",
                workers=[worker],
                pure=False,
                priority=_PRIORITY,
            )

    def _workers(self) -> list[str]:
        """Return the least busy of the other workers; wait for them where there are too few."""
        until, wanted = time.monotonic() + _WORKERS_S, self._processes - 1
        while len(known := self._known()) < wanted and not self._stopped():
            if time.monotonic() > until:
                having = "".join(f" with {name}={amount:g}" for name, amount in self._resources.items())
                raise InvalidInputError(
                    f"processes={self._processes}: each takes a Dask worker{having}, and there are {len(known) + 1} of "
                    "them. Set jobs.workers, or ask for fewer."
                )
            time.sleep(_LOOK_S)
        busy = self._client.processing()
        return sorted(known, key=lambda worker: (len(busy.get(worker, ())), worker))[:wanted]

    def _known(self) -> set[str]:
        """Return the other workers that have the resources."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].items()
        having = {address for address, about in workers if _has(about.get("resources") or {}, self._resources)}
        return having - {self._own}

    def look(self, *, failed: bool = False) -> None:
        """Raise why, where one of them is lost; `failed`: a connection to one broke."""
        if failed:
            with suppress(TimeoutError):
                wait(list(self._futures.values()), timeout=_WHY_S, return_when="FIRST_COMPLETED")
        for worker, future in self._futures.items():
            if future.status == "error":
                raise _why(worker, future.exception(timeout=_WHY_S))
        if lost := set(self._futures) - self._known():
            raise _lost(lost.pop())
        if failed:
            raise _lost("another process")

    def results(self) -> Iterable[Skipped]:
        """Wait until they are done; return what each has skipped."""
        for future in self._futures.values():
            with suppress(Exception):  # a worker that was lost after the last step did its share
                yield future.result(timeout=_END_S)

    def end(self) -> None:
        """Forget them."""
        self._client.cancel(list(self._futures.values()), force=True)


def _has(offered: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(offered.get(name, 0) >= amount for name, amount in wanted.items())


def _why(worker: str, error: BaseException) -> Exception:
    if isinstance(error, KilledWorker):
        return _lost(worker)
    return ModelError(f"Another process of the training failed: {type(error).__name__}: {error}")


def _lost(worker: str) -> WorkerLostError:
    return WorkerLostError(f"A worker was lost that took part in the training ({worker}).", worker)


def _host(address: str) -> str:
    return urlsplit(address).hostname or "127.0.0.1"


class _Part(Control):
    """Takes turns with whatever else the worker computes."""

    def turn(self) -> AbstractContextManager[None]:
        return turns().turn()

    def aside(self) -> AbstractContextManager[None]:
        return turns().aside()


def _take_part(database: str, run: str, rank: int, address: str, given: Mapping[str, Any]) -> Skipped:
    host = _host(get_worker().address)
    secede()  # it lasts: it must not take a thread from parts of jobs
    return Run(*opened(database), run).take_part(rank, address, host, given, _Part())
