"""The parts of an index that is split: each has copies in Dask workers, who take turns and are made again when lost."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from superduper_nb.cluster.actors import RemoteObject
from superduper_nb.cluster.dask import DaskPool, WorkerLostError
from superduper_nb.search.shard import Moment, Shard
from superduper_nb.search.spec import IndexSpec

__all__ = ["ASK_S", "Part", "Replica", "Waiting"]

log = logging.getLogger(__name__)

ASK_S: Final = 5.0
"""How long one waits for an answer that needs no work."""

Waiting = Callable[[float], Any]
"""Waits for a result, at most so many seconds."""


class Replica:
    """One copy of a part, wherever it lives now."""

    def __init__(self, pool: DaskPool, spec: IndexSpec, place: int, *, keeps: bool) -> None:
        self._pool, self._spec, self._place, self._keeps = pool, spec, place, keeps
        self._lock = threading.Lock()
        self._object: RemoteObject | None = None
        self.lost = 0

    def begin(self) -> RemoteObject:
        """Return the object in its worker, made where there is none."""
        with self._lock:
            if self._object is None:
                name = f"shard-{self._spec.id}"
                self._object = RemoteObject(self._pool, self._place, name, Shard, self._spec, keeps=self._keeps)
            return self._object

    def call(self, method: str, *args: Any) -> Waiting:
        """Begin a call; what it returns may raise `WorkerLostError`, and then the next call makes the object again."""
        try:
            with self._noticing(remote := self.begin()):
                waiting = remote.call(method, *args)
        except WorkerLostError as error:
            return _raising(error)

        def result(timeout: float) -> Any:
            with self._noticing(remote):
                return waiting(timeout)

        return result

    def ask(self, method: str, moment: Moment, *args: Any) -> Waiting:
        """Begin a call about a moment; its result is None where the object is not ready and is not to be waited for."""
        if not moment.patient and not self.begin().there:
            return lambda timeout: None
        return self.call(method, moment, *args)

    @contextlib.contextmanager
    def _noticing(self, remote: RemoteObject) -> Iterator[None]:
        try:
            yield
        except WorkerLostError as error:
            with self._lock:
                if self._object is remote:
                    self._object, self.lost = None, self.lost + 1
                    log.warning("Shard %s: %s It is loaded again.", self._spec.id, error)
            raise

    def close(self, *, keep: bool) -> None:
        """End it."""
        with self._lock:
            remote, self._object = self._object, None
        if remote is not None:
            with contextlib.suppress(Exception):  # of what is lost nothing is left to close
                remote.call("close", keep)(ASK_S)
            remote.release()


class Part:
    """A part of an index: its replicas, who take turns."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas
        self._turn = 0

    @property
    def was_lost(self) -> bool:
        """All its copies have been made again: none of them was there all the time."""
        return all(replica.lost for replica in self.replicas)

    def ask(self, method: str, moment: Moment, *args: Any) -> Waiting:
        """Begin a call to the next replica; where that is lost or not loaded, the others are asked, then it again."""
        self._turn = turn = (self._turn + 1) % len(self.replicas)
        order = [*self.replicas[turn:], *self.replicas[:turn]]
        at_once = replace(moment, patient=moment.patient and len(order) == 1)
        first = order[0].ask(method, at_once, *args)

        def result(timeout: float) -> Any:
            with contextlib.suppress(WorkerLostError):
                if (answer := first(timeout)) is not None:
                    return answer
            for replica in order[1:]:
                with contextlib.suppress(WorkerLostError):
                    if (answer := replica.ask(method, at_once, *args)(timeout)) is not None:
                        return answer
            return order[0].ask(method, moment, *args)(timeout)

        return result


def _raising(error: Exception) -> Waiting:
    def result(timeout: float) -> Any:
        raise error

    return result
