"""Which documents matched a filter: known for as long as nothing in their collection changes.

A cell that is run again, and a service that offers few filters, ask for the same ones. An index follows its collection:
where it has seen all that MongoDB did by now, it can say whether anything has changed since.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Final

from superduper_nb.search.subset import Subset

__all__ = ["MOST", "Kept", "Remembered"]

MOST: Final = 20_000
"""Documents a filter: more take MongoDB longer than is saved."""
_FILTERS: Final = 16
_OFTEN: Final = 3


class Kept:
    """What is known of a filter at one moment.

    Attributes
    ----------
    moment : object
        Another one after each change.
    asked : int
        How often it was asked for.
    all : Subset or None
        All that match.
    """

    def __init__(self, moment: object) -> None:
        self.moment, self.asked = moment, 0
        self.all: Subset | None = None

    @property
    def wanted(self) -> bool:
        """It is asked for so often, and nothing changes meanwhile, that a list is worth its price."""
        return self.all is None and self.asked >= _OFTEN


class Remembered:
    """What is known of some filters, the last that were asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Hashable, Kept] = {}

    def at(self, filter: Hashable, moment: object) -> Kept:
        """Return what is known of a filter at a moment, for one who asks."""
        with self._lock:
            kept = self._kept.pop(filter, None)
            if kept is None or kept.moment is not moment:
                kept = Kept(moment)
            self._kept[filter] = kept
            if len(self._kept) > _FILTERS:
                del self._kept[next(iter(self._kept))]
            kept.asked += 1
            return kept
