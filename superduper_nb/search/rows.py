"""Rows of vectors that only grow, and what a search sees of them at one moment."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superduper_nb.search.blocks import row_norms
from superduper_nb.search.graph import MOST_CANDIDATES, Graph, SavedGraph
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
    graph : Graph or None
        Of the first slots, which are searched by it instead of their segments.
    planned : int
        So many slots a graph is of, or that is being built: segments end there.
    saved : SavedGraph or None
        A graph of so many slots that can be read from a file, instead of being built.
    filed : int
        So many slots' vectors, from the first, are in a file, from which the system can read them again.
    mapping : mmap.mmap or None
        Of that file, or of memory that came by small pages.
    """

    vectors: Floats
    norms: Floats
    alive: NDArray[np.bool_]
    ids: list[Any]
    count: int = 0
    segments: tuple[Segment, ...] = ()
    depth: int | None = DEPTHS[0]
    graph: Graph | None = None
    planned: int = 0
    saved: SavedGraph | None = None
    filed: int = 0
    mapping: mmap.mmap | None = None

    @classmethod
    def empty(cls, capacity: int, dimension: int) -> Rows:
        """Make room for `capacity` vectors, in memory."""
        return cls._of(np.empty((capacity, dimension), dtype=np.float32))

    @classmethod
    def by_page(cls, capacity: int, dimension: int) -> Rows:
        """Make room for vectors that are about to be loaded, in memory that comes by small pages.

        numpy asks for huge ones, which a virtual machine whose free memory is the host's gets five times as slowly.
        """
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return cls.empty(capacity, dimension)
        mapping = mmap.mmap(-1, 4 * capacity * dimension, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        made = cls._of(np.frombuffer(mapping, dtype=np.float32).reshape(capacity, dimension))
        made.mapping = mapping
        return made

    def join_pages(self) -> None:
        """Have the system make huge pages of small ones, by and by: searches are a tenth quicker on them."""
        if self.mapping is not None and not self.filed:
            self.mapping.madvise(mmap.MADV_HUGEPAGE)

    @classmethod
    def in_file(cls, capacity: int, dimension: int, folder: Path | None) -> Rows:
        """Make room for `capacity` vectors, in a file without a name; raises `OSError` where the disk is full."""
        size = 4 * capacity * dimension
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a mapping whose file can't grow kills who writes to it
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            mapping = mmap.mmap(file.fileno(), size)
        made = cls._of(np.frombuffer(mapping, dtype=np.float32).reshape(capacity, dimension))
        made.filed, made.mapping = capacity, mapping
        return made

    @classmethod
    def _of(cls, vectors: Floats) -> Rows:
        capacity = len(vectors)
        return cls(vectors, np.empty(capacity, dtype=np.float32), np.zeros(capacity, dtype=bool), [])

    def write(self, vectors: Floats) -> None:
        """Write rows behind the last, where nobody looks yet; there must be room."""
        end = self.count + len(vectors)
        self.vectors[self.count : end] = vectors
        self.norms[self.count : end] = row_norms(vectors)
        self.alive[self.count : end] = True

    def show(self, ids: Sequence[Any]) -> None:
        """Make the rows that were written behind the last part of it."""
        self.ids.extend(ids)
        self.count += len(ids)

    @property
    def coded(self) -> int:
        """Slots that have codes."""
        return self.segments[-1].stop if self.segments else 0

    def take_over(self, other: Rows) -> None:
        """Be searched as others are, of which these are the same slots."""
        self.segments, self.depth = other.segments, other.depth
        self.graph, self.planned, self.saved = other.graph, other.planned, other.saved

    def let_go(self) -> None:
        """Have the vectors that have codes, and are in the file, leave memory until they are read again."""
        length = min(self.coded, self.filed) * self.vectors.shape[1] * 4 // mmap.PAGESIZE * mmap.PAGESIZE
        if self.mapping is not None and length and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED, 0, length)

    def memory(self, *, compact: bool) -> dict[str, int]:
        """Return what is held in memory, in bytes; room that was never written to is none."""
        dimension = self.vectors.shape[1]
        held = max(0, self.count - self.filed) if compact else self.count
        return {
            "vectors": held * dimension * 4 + self.count * 5,  # norm and alive
            "codes": self.coded * dimension // 2,
            "graph": 0 if self.graph is None else self.graph.nbytes,
            "ids": sys.getsizeof(self.ids) + self.count * (sys.getsizeof(self.ids[-1]) if self.ids else 0),
        }


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
    graph: Graph | None
    saved: SavedGraph | None

    @property
    def coded(self) -> int:
        """Slots that have codes."""
        return self.segments[-1].stop if self.segments else 0

    def parts(self, depth: int) -> tuple[Segment | Graph, ...]:
        """Return what to search first for so many candidates: the graph, where there is one, and what is behind it."""
        if self.graph is None or depth > MOST_CANDIDATES:
            return self.segments
        stop = self.graph.stop
        return (self.graph, *(segment for segment in self.segments if segment.start >= stop))
