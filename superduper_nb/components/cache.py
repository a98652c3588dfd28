"""The components of a database as they were when it was last asked: one small question a search instead of five."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from pymongo.database import Database

from superduper_nb.components.store import Component, ComponentStore, Kind

__all__ = ["CachedStore"]

_AT_MOST_S: Final = 5.0
"""Also without a new stamp everything is read again now and then: whoever registered may have died before stamping."""


class CachedStore(ComponentStore):
    """A `ComponentStore` that remembers what it read, until `refresh` finds that something was registered or deleted.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose components.
    """

    def __init__(self, database: Database[Any]) -> None:
        super().__init__(database)
        self._known: dict[tuple[Any, ...], Any] = {}
        self._stamp: Any = None
        self._read = float("-inf")
        self._guard = threading.Lock()

    def refresh(self) -> None:
        """Forget what was read, if the database has changed since."""
        # The stamp is read before anything that is remembered under it: that may be newer than the stamp, never older.
        stamp, now = self.stamp(), time.monotonic()
        with self._guard:
            if stamp != self._stamp or now - self._read > _AT_MOST_S:
                self._known, self._stamp, self._read = {}, stamp, now

    def find(self, kind: Kind, id: str, *, collection: str = "", version: int | None = None) -> Component | None:
        """Return a version (the current one by default), or None."""
        known, key = self._known, ("find", kind, id, collection, version)
        if key not in known:
            known[key] = super().find(kind, id, collection=collection, version=version)
        found: Component | None = known[key]
        return found

    def current(self, *kinds: Kind, collection: str | None = None) -> list[Component]:
        """List the current version of each component of these kinds (of every collection when None is given)."""
        known, key = self._known, ("current", kinds, collection)
        if key not in known:
            known[key] = super().current(*kinds, collection=collection)
        found: list[Component] = known[key]
        return found
