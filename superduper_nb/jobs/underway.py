"""Which new documents a job is still to come to: those of our own client's writes, when a follower sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from superduper_nb.errors import NotFoundError
from superduper_nb.jobs.records import JobStore
from superduper_nb.search.ids import id_key

__all__ = ["Underway"]

_MISSES: Final = 2


class Underway:
    """The work of jobs that have not ended, beside documents that were just inserted.

    Documents come in the order of the work, as a rule, so the next are looked for where the last were found. One that
    is missed for that gets a second job, which finds nothing to do.

    Parameters
    ----------
    store : JobStore
        The jobs of one database.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._places: dict[tuple[str, ...], dict[str, Any]] = {}

    def names(self, kind: str, collection: str, component: str, inserted: Iterable[Any]) -> set[Any]:
        """Return the keys (`id_key`) of those documents that a job of a component names."""
        left, found = {id_key(id) for id in inserted}, set[Any]()
        jobs = self._store.underway(kind, collection, component)
        known = self._places.get((kind, collection, component), {})
        places = {job["_id"]: known[job["_id"]] for job in jobs if job["_id"] in known}
        self._places[kind, collection, component] = places
        for job in jobs:
            found |= self._named(job, left - found, places)
        return found

    def _named(self, job: dict[str, Any], left: set[Any], places: dict[str, Any]) -> set[Any]:
        found, missed, limit = set[Any](), 0, _MISSES if job["_id"] in places else math.inf
        place = cursor = places.get(job["_id"])
        with suppress(NotFoundError):  # it has ended meanwhile
            while missed < limit and len(found) < len(left) and (chunk := self._store.chunks.after(job, cursor)):
                if here := left.intersection(map(id_key, chunk[1])):
                    found |= here
                    place, missed, limit = cursor, 0, _MISSES
                else:
                    missed += 1
                cursor = chunk[0]
        if left:
            places[job["_id"]] = cursor if limit == math.inf else place
        return found
