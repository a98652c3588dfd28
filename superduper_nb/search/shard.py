"""One shard of an index, where it lives: an actor in a Dask worker."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from bson import Timestamp
from distributed import get_worker
from pymongo import MongoClient

from superduper_nb.cluster.mongod import connect_options
from superduper_nb.config import Config
from superduper_nb.search.hits import Hits
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.keeper import default_folder
from superduper_nb.search.measures import Floats
from superduper_nb.search.spec import IndexSpec
from superduper_nb.search.subset import Subset

__all__ = ["Answer", "Moment", "Shard"]

_THREADS: Final = 8
"""Searches at a time: most of them wait for a write, the others let go of the interpreter while they scan."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Moment:
    """What an answer has to have seen.

    Attributes
    ----------
    after : bson.Timestamp or None
        The writes up to this cluster time.
    timeout : float
        How long to wait for it, seconds.
    patient : bool
        Wait also where the shard is not loaded yet; else it has no answer then.
    """

    after: Timestamp | None
    timeout: float
    patient: bool


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a shard says.

    Attributes
    ----------
    extent : tuple of int and (int or None)
        Vectors it has now, and numbers a vector.
    """

    value: T
    extent: tuple[int, int | None]


class Shard:
    """Follows its part of the collection by itself, as an index in one piece does.

    Its methods are coroutines: Dask runs those in the worker's event loop, and everything else that actors do in one
    thread. What takes time is done in threads of its own.

    Parameters
    ----------
    spec : IndexSpec
        Of this part.
    keeps : bool
        It leaves snapshots: of several replicas, one does.
    """

    def __init__(self, spec: IndexSpec, *, keeps: bool) -> None:
        self._worker = get_worker().address
        self._live = spec.opened(_client(), default_folder() if keeps else None)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shard")
        # The worker lets go of an actor that nobody holds any more: a notebook server may have been killed.
        weakref.finalize(self, self._live.close)
        self._live.start()

    async def search(
        self, moment: Moment, queries: Sequence[Floats], n: int, among: list[Any] | None, exact: bool, unusual: bool
    ) -> Answer[list[Hits]] | None:
        """Return the `n` nearest of each query; None where it is not loaded and nobody waits for that."""

        def search(index: VectorIndex) -> list[Hits]:
            if among is None and len(queries) > 1:
                return index.search_many(queries, n, exact=exact)
            some = None if among is None else Subset(among)
            return [index.search(query, n, among=some, exact=exact, unusual=unusual) for query in queries]

        return await self._at(moment, search)

    async def vectors(self, moment: Moment, ids: Sequence[Any]) -> Answer[tuple[list[int], Floats]] | None:
        """Return the positions of the identifiers that are here, and their vectors."""
        return await self._at(moment, lambda index: index.vectors(ids))

    async def extent(self, moment: Moment) -> Answer[bool] | None:
        """Say only how large it is."""
        return await self._at(moment, lambda _: True)

    async def describe(self) -> dict[str, Any]:
        """Say how it is."""
        return {**self._live.describe(), "worker": self._worker}

    async def older_left(self) -> bool:
        """Say whether there are documents that only an older version has computed."""
        return await self._in_thread(self._live.older_left)

    async def discard_snapshot(self) -> None:
        """Remove its file."""
        self._live.discard_snapshot()

    async def close(self, keep: bool) -> None:
        """Stop following."""
        await self._in_thread(lambda: self._live.close(keep=keep))
        self._threads.shutdown(wait=False)

    async def _at(self, moment: Moment, call: Callable[[VectorIndex], T]) -> Answer[T] | None:
        if not moment.patient and not self._live.ready:
            return None

        def wait_and_call() -> Answer[T]:
            index = self._live.seeing(moment.after, moment.timeout)
            return Answer(call(index), (len(index), index.dimension))

        return await self._in_thread(wait_and_call)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


@functools.cache
def _client() -> MongoClient[dict[str, Any]]:
    return MongoClient(Config.load().mongodb.address(), **connect_options())
