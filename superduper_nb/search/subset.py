"""Identifiers to which searches are restricted, and where an index has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import numpy as np

from superduper_nb.search.ids import packed_keys
from superduper_nb.search.measures import Measure
from superduper_nb.search.rows import View
from superduper_nb.search.scan import Allowed, Segment, Slots, as_coded

__all__ = ["Places", "Subset"]


@dataclass(slots=True)
class Places:
    """Where an index has some identifiers, at one moment.

    Attributes
    ----------
    moment : object
        The index's.
    slots : array of int
        In order, each once; all of them alive.
    """

    moment: object
    slots: Slots
    _allowed: tuple[list[ref[Segment]], list[Allowed | None]] = field(default=([], []))

    def before(self, slot: int) -> int:
        """Return how many slots are before one."""
        return int(np.searchsorted(self.slots, slot))

    def allowed(self, view: View, measure: Measure) -> list[Allowed | None]:
        """Return what restricts a search of each segment's codes to these; made when it is first asked for."""
        # Else a list that is kept would keep the codes of an index that is gone.
        (known, allowed), segments = self._allowed, list(map(ref, view.segments))
        if known != segments:
            rows = view.rows
            allowed = [
                segment.allowed(self.slots, lambda some: as_coded(measure, rows.vectors[some], rows.norms[some]))
                for segment in view.segments
            ]
            self._allowed = segments, allowed
        return allowed


class Subset:
    """Identifiers to which searches are restricted; an index notes in it where it has them, for the next search.

    Attributes
    ----------
    ids : list
        As `superduper_nb.search.ids.packed_ids` keeps them.
    keys : list
        Theirs.
    """

    def __init__(self, ids: list[Any]) -> None:
        self.ids, self.keys = ids, packed_keys(ids)
        self._places: Places | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, slots: Mapping[Any, int], moment: object) -> Places:
        """Return where an index has them that has so many slots by key, and stays as it is for a moment."""
        places = self._places
        if places is None or places.moment is not moment:
            found = [slot for slot in map(slots.get, self.keys) if slot is not None]
            places = self._places = Places(moment, np.unique(np.array(found, dtype=np.intp)))
        return places
