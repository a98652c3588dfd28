"""The live indexes in memory: which of them answers while a new model version is computed, and which has to go out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Timestamp

from superduper_nb.errors import DeadlineError
from superduper_nb.search.searchable import Following

__all__ = ["Shelf", "Wanted"]

_GRACE_S: Final = 2.0
"""After so long without anything pending, documents that are still the old version's will stay so."""

Name = tuple[str, str, str]
"""Database, collection, semantic index."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which index is asked for.

    Attributes
    ----------
    definition, version
        What is registered now.
    make : callable
        Makes the index of that version.
    pending : callable
        Documents of which that version has still to be computed.
    after : bson.Timestamp or None
        What a new version's index must have seen before it is compared with the old one.
    timeout : float
        How long that may take, seconds.
    """

    name: Name
    definition: str
    version: int
    make: Callable[[], Following]
    pending: Callable[[], int]
    after: Timestamp | None
    timeout: float


@dataclass(slots=True)
class _Place:
    """One index: the one that answers, and the one that is to take its place.

    Attributes
    ----------
    definition : str
        Of what it is an index (all but the model's version).
    since : float
        When the next one was begun.
    users : int
        Searches that are at it.
    used : float
        When it was last asked for.
    leaving : bool
        It is on its way out of memory.
    """

    definition: str
    live: Following
    next: Following | None = None
    since: float = field(default_factory=time.monotonic)
    users: int = 0
    used: float = 0.0
    leaving: bool = False

    @property
    def idle(self) -> bool:
        """It may go: nobody is at it, and it comes back as it is."""
        return not (self.users or self.leaving or self.next) and self.live.nbytes > 0 and self.live.ready

    def all(self) -> list[Following]:
        """Return both."""
        return [self.live] if self.next is None else [self.live, self.next]


class Shelf:
    """Holds live indexes by name.

    A new definition replaces an index at once. A new model version is loaded beside it: the old index goes on
    answering, for queries encoded by the old version, until nothing of the new one is pending; then they swap.

    Where all together take more memory than they may, the one that was asked for the longest time ago goes out, to its
    snapshot if it has one; it is loaded again when it is asked for. One that is in use never goes, nor the last.

    Parameters
    ----------
    memory : int, optional
        Bytes that they may hold; default: as many as they need.
    """

    def __init__(self, memory: int | None = None) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._places: dict[Name, _Place] = {}
        self._mover: threading.Thread | None = None

    @contextmanager
    def using(self, wanted: Wanted) -> Iterator[Following]:
        """Hold the index that answers now, so that it stays in memory meanwhile.

        Raises
        ------
        DeadlineError
            It is still on its way out of memory, or its next version too far behind `after`.
        """
        place = self._entered(wanted)
        try:
            following = place.next
            if following is not None and (not place.live.ready or self._whole(place, following, wanted)):
                self._swap(wanted.name, place, following)
            yield place.live
        finally:
            with self._lock:
                place.users -= 1
            self._make_room()

    def _entered(self, wanted: Wanted) -> _Place:
        """Return the place, with one user more."""
        with self._lock:
            if not self._left.wait_for(lambda: not self._leaving(wanted.name), wanted.timeout):
                raise DeadlineError(f"The index is on its way out of memory for {wanted.timeout:g} s: try again.")
            place, gone = self._place(wanted)
            place.users, place.used = place.users + 1, time.monotonic()
        for live in gone:
            live.close()
        return place

    def _place(self, wanted: Wanted) -> tuple[_Place, list[Following]]:
        """Return the place with what is needed in it, and the indexes that are not needed any more."""
        place = self._places.get(wanted.name)
        if place is None or place.definition != wanted.definition:
            fresh = self._places[wanted.name] = _Place(wanted.definition, _started(wanted.make))
            return fresh, [] if place is None else place.all()
        version = None if wanted.version == place.live.version else wanted.version
        beside = place.next
        if version == (beside and beside.version):
            return place, []
        place.next = None if version is None else _started(wanted.make)
        place.since = time.monotonic()
        return place, [] if beside is None else [beside]

    def _whole(self, place: _Place, following: Following, wanted: Wanted) -> bool:
        """Say whether the next index holds all that it will.

        Who has waited for the new version's jobs (and so asks `after` them) waits for the index, too.
        """
        if wanted.pending() or (wanted.after is None and not following.ready):
            return False
        following.seeing(wanted.after, wanted.timeout)
        # Between the new version's record and the jobs it brings there is a moment in which nothing is pending. Then
        # some documents are still the old version's; also later, where jobs were cancelled, but that is not awaited.
        complete = following.size >= place.live.size or not following.older_left()
        return complete or time.monotonic() - place.since > _GRACE_S

    def _swap(self, name: Name, place: _Place, following: Following) -> None:
        with self._lock:
            if self._places.get(name) is not place or place.next is not following:
                return
            old, place.live, place.next = place.live, following, None
        old.close()

    # --- memory ------------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Memory that all take."""
        with self._lock:
            return self._total()

    def _total(self) -> int:
        return sum(live.nbytes for place in self._places.values() for live in place.all())

    def _leaving(self, name: Name) -> bool:
        place = self._places.get(name)
        return place is not None and place.leaving

    def _make_room(self) -> None:
        """Begin to take out what is too much, in a thread: whoever has just searched does not wait for it."""
        with self._lock:
            if self._mover is None and self._least_used() is not None:
                self._mover = threading.Thread(target=self._move_out, name="index memory", daemon=True)
                self._mover.start()

    def _least_used(self) -> Name | None:
        """Return the one that has to go."""
        if self._memory is None or len(self._places) < 2 or self._total() <= self._memory:
            return None
        last = max(self._places, key=lambda name: self._places[name].used)
        idle = [name for name, place in self._places.items() if place.idle and name != last]
        return min(idle, key=lambda name: self._places[name].used, default=None)

    def _move_out(self) -> None:
        while (leaving := self._leave()) is not None:
            name, place = leaving
            try:
                place.live.close(keep=True)
            finally:
                with self._lock:
                    if self._places.get(name) is place:
                        del self._places[name]
                    self._left.notify_all()
            del place, leaving  # and with them the arrays

    def _leave(self) -> tuple[Name, _Place] | None:
        with self._lock:
            name = self._least_used()
            if name is None:
                self._mover = None
                return None
            self._places[name].leaving = True
            return name, self._places[name]

    # --- all of them -------------------------------------------------------------------------------------------------

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
        if (mover := self._mover) is not None:
            mover.join()
        with self._lock:
            places = list(self._places.values())
            self._places.clear()
        for place in places:
            for live in place.all():
                live.close(keep=live is place.live)


def _started(make: Callable[[], Following]) -> Following:
    live = make()
    live.start()
    return live


def _described(place: _Place) -> dict[str, Any]:
    following = place.next
    return place.live.describe() | ({"next_version": following.version} if following is not None else {})
