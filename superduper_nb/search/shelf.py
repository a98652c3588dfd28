"""The live indexes in memory, and which of them answers while a new model version is computed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Timestamp

from superduper_nb.search.live import LiveIndex

__all__ = ["Shelf"]

_GRACE_S: Final = 2.0
"""After so long without anything pending, documents that are still the old version's will stay so."""

Name = tuple[str, str, str]
"""Database, collection, semantic index."""


@dataclass(slots=True)
class _Place:
    """One index: the one that answers, and the one that is to take its place.

    Attributes
    ----------
    definition : str
        Of what it is an index (all but the model's version).
    since : float
        When the next one was begun.
    """

    definition: str
    live: LiveIndex
    next: LiveIndex | None = None
    since: float = field(default_factory=time.monotonic)

    def all(self) -> list[LiveIndex]:
        """Return both."""
        return [self.live] if self.next is None else [self.live, self.next]


class Shelf:
    """Holds live indexes by name.

    A new definition replaces an index at once. A new model version is loaded beside it: the old index goes on
    answering, for queries encoded by the old version, until nothing of the new one is pending; then they swap.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[Name, _Place] = {}

    def get(
        self,
        name: Name,
        definition: str,
        version: int,
        make: Callable[[], LiveIndex],
        pending: Callable[[], int],
        after: Timestamp | None,
        timeout: float,
    ) -> LiveIndex:
        """Return the index that answers now.

        Parameters
        ----------
        definition, version
            What is registered now.
        make : callable
            Makes the index of that version.
        pending : callable
            Documents of which that version has still to be computed.
        after, timeout
            What the new index must have seen before it is compared with the old one.
        """
        with self._lock:
            place, gone = self._place(name, definition, version, make)
            following = place.next
        for live in gone:
            live.close()
        if following is None:
            return place.live
        if not place.live.ready or self._whole(place, following, pending, after, timeout):
            self._swap(name, place, following)
        return place.live

    def _place(
        self, name: Name, definition: str, version: int, make: Callable[[], LiveIndex]
    ) -> tuple[_Place, list[LiveIndex]]:
        """Return the place with what is needed in it, and the indexes that are not needed any more."""
        place = self._places.get(name)
        if place is None or place.definition != definition:
            fresh = self._places[name] = _Place(definition, _started(make))
            return fresh, [] if place is None else place.all()
        wanted = None if version == place.live.version else version
        beside = place.next
        if wanted == (beside and beside.version):
            return place, []
        place.next = None if wanted is None else _started(make)
        place.since = time.monotonic()
        return place, [] if beside is None else [beside]

    def _whole(
        self,
        place: _Place,
        following: LiveIndex,
        pending: Callable[[], int],
        after: Timestamp | None,
        timeout: float,
    ) -> bool:
        """Say whether the next index holds all that it will.

        Who has waited for the new version's jobs (and so asks `after` them) waits for the index, too.
        """
        if pending() or (after is None and not following.ready):
            return False
        following.wait(after, timeout)
        # Between the new version's record and the jobs it brings there is a moment in which nothing is pending. Then
        # some documents are still the old version's; also later, where jobs were cancelled, but that is not awaited.
        complete = len(following.index) >= len(place.live.index) or not following.older_left()
        return complete or time.monotonic() - place.since > _GRACE_S

    def _swap(self, name: Name, place: _Place, following: LiveIndex) -> None:
        with self._lock:
            if self._places.get(name) is not place or place.next is not following:
                return
            old, place.live, place.next = place.live, following, None
        old.close()

    def describe(self) -> list[tuple[Name, dict[str, Any]]]:
        """Describe each index."""
        with self._lock:
            places = list(self._places.items())
        return [(name, _described(place)) for name, place in places]

    def drop(self, name: Name) -> None:
        """Forget an index: it is loaded from MongoDB when it is asked for again."""
        with self._lock:
            place = self._places.pop(name, None)
        for live in place.all() if place is not None else ():
            live.close()
            live.discard_snapshot()

    def close(self) -> None:
        """Take all out of memory."""
        with self._lock:
            places = list(self._places.values())
            self._places.clear()
        for place in places:
            for live in place.all():
                live.close(keep=live is place.live)


def _started(make: Callable[[], LiveIndex]) -> LiveIndex:
    live = make()
    live.start()
    return live


def _described(place: _Place) -> dict[str, Any]:
    following = place.next
    return place.live.describe() | ({"next_version": following.version} if following is not None else {})
