"""Rows of vectors that only grow, and what a search sees of them at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superduper_nb.search.measures import Floats
from superduper_nb.search.scan import DEPTHS, Segment

__all__ = ["Rows", "View"]


@dataclass(slots=True)
class Rows:
    """Append-only storage. A slot's vector and identifier never change; only `alive` does.

    Attributes
    ----------
    vectors : array of shape (capacity, d), float32
    norms : array of shape (capacity,), float32
    alive : array of shape (capacity,), bool
    ids : list
        As `superduper_nb.search.ids.packed_ids` keeps them.
    count : int
        Slots in use, dead ones among them.
    segments : tuple of Segment
        Codes of the first slots, without a gap; what is behind them is the tail.
    depth : int or None
        Candidates that a segment has to give; None where codes are of no use on these vectors.
    """

    vectors: Floats
    norms: Floats
    alive: NDArray[np.bool_]
    ids: list[Any]
    count: int = 0
    segments: tuple[Segment, ...] = ()
    depth: int | None = DEPTHS[0]

    @classmethod
    def empty(cls, capacity: int, dimension: int) -> Rows:
        """Make room for `capacity` vectors."""
        vectors = np.empty((capacity, dimension), dtype=np.float32)
        return cls(vectors, np.empty(capacity, dtype=np.float32), np.zeros(capacity, dtype=bool), [])

    def append(self, vectors: Floats, ids: Sequence[Any]) -> None:
        """Add rows behind the last; there must be room."""
        end = self.count + len(ids)
        self.vectors[self.count : end] = vectors
        with np.errstate(over="ignore"):
            self.norms[self.count : end] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        self.alive[self.count : end] = True
        self.ids.extend(ids)
        self.count = end

    @property
    def coded(self) -> int:
        """Slots that have codes."""
        return self.segments[-1].stop if self.segments else 0


@dataclass(frozen=True, slots=True)
class View:
    """What a search sees: the state of one moment.

    Attributes
    ----------
    alive : array of shape (count,), bool, or None
        None where all are.
    """

    rows: Rows
    count: int
    living: int
    alive: NDArray[np.bool_] | None
    segments: tuple[Segment, ...]
    depth: int | None
