"""A static graph over many rows: searched in a tenth of the time that a scan of a million takes, built in minutes.

It is SymphonyQG (Gou et al., SIGMOD 2025; `rabitqlib`): each node keeps codes of one bit a number of its neighbours,
which are scored together, and vectors in full, by which what it returns is in order. A graph is of the rows of one
moment: nothing can be added to it, and what has gone is left out of what it finds.

It finds nearly all for queries that are like the vectors. How much effort that takes is tried with rows moved by as
much as they are long, and, as these have it easy where rows come in clusters, with means of two rows, which are harder
than most queries. Where a query's best are farther away than those of any such, it says so: then one scans.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from superduper_nb.search.blocks import near_rows
from superduper_nb.search.measures import Floats, Measure, tame
from superduper_nb.search.scan import CALIBRATED_N, Allowed, Found, Slots, as_coded

__all__ = ["LEAST", "MOST_CANDIDATES", "Graph", "SavedGraph", "made", "restored"]

log = logging.getLogger(__name__)

LEAST: Final = 200_000
"""Rows from which it is worth it: 100 000 are scanned as quickly."""
MOST_CANDIDATES: Final = 1024
_DEGREE: Final = 32
_BUILDING: Final = 400
"""Candidates for a node's neighbours while it is built: 200 take half as long, and a search half as long again."""
_WIDTH: Final = 64
"""Vectors are filled up with zeros to a multiple of so many numbers: not every other length can be coded."""
_EFFORTS: Final = (64, 80, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1536, 2048)
_RECALL: Final = (0.95, 0.995)
"""Of means and of moved rows: then it is 0.99 and more of queries like the vectors."""
_PROBES: Final = 128
"""Of each kind."""
_TINY: Final = np.finfo(np.float64).tiny
_NEIGHBOUR: Final = 4 + 8
"""Bytes for a neighbour, beside its code: which it is, and what corrects its score."""


@dataclass(frozen=True, slots=True)
class SavedGraph:
    """A file with a graph, and what is not in it.

    Attributes
    ----------
    path : pathlib.Path
    digest : str
        SHA-256 of the file.
    stop : int
        So many rows it is of.
    effort : int
    farthest : float
    """

    path: Path
    digest: str
    stop: int
    effort: int
    farthest: float


class Graph:
    """The first rows of an index, as a graph; searched like a `Segment`.

    Parameters
    ----------
    index : rabitqlib.SymqgIndex
    measure : Measure
    effort : int, default 0
        Nodes that a search keeps, at least.
    farthest : float, default inf
        A query whose tenth is farther away than this is unlike those that were tried.

    Attributes
    ----------
    saved : SavedGraph or None
        Where it is saved.
    is_new : bool
        Nobody has tried to save it.
    """

    start: Final = 0

    def __init__(self, index: Any, measure: Measure, effort: int = 0, farthest: float = np.inf) -> None:
        self._index, self._measure = index, measure
        self.stop = int(index.num_points)
        self.effort, self.farthest = effort, farthest
        self.saved: SavedGraph | None = None
        self.is_new = True

    @property
    def nbytes(self) -> int:
        """Memory that it takes: vectors once more, and what nodes keep of their neighbours."""
        width = int(self._index.dim)
        return self.stop * (4 * width + _DEGREE * (width // 8 + _NEIGHBOUR))

    def search(self, queries: Floats, k: int, only: Allowed | None = None) -> Found:
        """Return about the best `k` rows for each query, best first; all in doubt where the query is unlike them."""
        assert only is None
        k = min(k, self.stop)
        try:
            found, distances = self.walked(queries, k)
        except RuntimeError:  # it is in pieces, and one of them has fewer
            return Found(np.zeros((len(queries), k), dtype=np.intp), np.ones((len(queries), k), dtype=bool))
        near = distances[:, min(k, CALIBRATED_N) - 1] <= self.farthest  # so what is no number counts as far
        last = distances >= distances[:, -1:]  # others may be as far away as these
        return Found(found, last | ~near[:, None])

    def walked(self, queries: Floats, k: int) -> tuple[Slots, Floats]:
        """Return the best `k` rows for each query, and their distances, as the graph measures them."""
        if self._measure.name != "l2":  # of length 1, so that distances compare with those of other queries
            lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
            queries = queries / np.maximum(lengths, _TINY)
        found, distances = self._index.search(_filled(queries), k, max(self.effort, 2 * k))
        return found.astype(np.intp), distances

    def kept(self, path: Path) -> SavedGraph | None:
        """Have it saved beside a file, under that file's name and its own digest; None where that fails."""
        if self.saved is None or not self.saved.path.exists():
            self.saved, self.is_new = None, False
            try:
                self.saved = self._save(path)
            except (OSError, RuntimeError) as error:  # a full disk
                log.warning("The graph of %d vectors was not saved: %s", self.stop, error)
        return self.saved

    def _save(self, path: Path) -> SavedGraph:
        part = path.with_name(f".{path.name}.graph.{os.getpid()}.part")
        try:
            self._index.save(os.fspath(part))
            part.chmod(0o600)
            digest = _digest(part)
            name = f"{path.stem}-{digest[:32]}.graph"
            return SavedGraph(part.replace(path.with_name(name)), digest, self.stop, self.effort, self.farthest)
        finally:
            part.unlink(missing_ok=True)


def restored(saved: SavedGraph, measure: Measure) -> Graph | None:
    """Return a graph that was saved; None where the file is not as it was written, or can't be read here."""
    try:
        from rabitqlib import SymqgIndex

        if _digest(saved.path) != saved.digest:  # a damaged one would take the process down
            return None
        graph = Graph(SymqgIndex.load(os.fspath(saved.path)), measure, saved.effort, saved.farthest)
    except (ImportError, OSError, RuntimeError, ValueError):
        return None
    graph.saved, graph.is_new = saved, False
    return graph


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made(vectors: Floats, norms: Floats, measure: Measure) -> Graph | None:
    """Build the graph of some rows; None where it would not find 0.99 of what there is, or can't be made.

    Parameters
    ----------
    vectors : array of shape (n, d), float32
    norms : array of shape (n,)
    measure : Measure
        A built-in one.
    """
    try:
        from rabitqlib import SymqgIndex
    except ImportError:
        return None
    if not tame(norms):
        return None
    rows = _filled(as_coded(measure, vectors, norms))
    index = SymqgIndex(rows.shape[1], _DEGREE, "l2" if measure.name == "l2" else "ip")
    index.build(rows, _BUILDING, max(1, (os.cpu_count() or 1) // 2))
    return _tried(Graph(index, measure), vectors, norms, measure)


def _tried(graph: Graph, vectors: Floats, norms: Floats, measure: Measure) -> Graph | None:
    """Find out with how much effort it finds enough."""
    queries = _probes(vectors)
    wanted = _tenth(queries, vectors, norms, measure)
    for graph.effort in _EFFORTS:
        try:
            slots, distances = graph.walked(queries, CALIBRATED_N)
        except RuntimeError:
            return None
        graph.farthest = float(distances[:, -1].max())
        found = measure.exact_each(queries, vectors[slots])[0] >= wanted[:, None]
        if (found.reshape(2, -1).mean(axis=1) >= _RECALL).all():
            return graph
    return None


def _tenth(queries: Floats, vectors: Floats, norms: Floats, measure: Measure) -> Floats:
    """Return the score of each query's tenth: of rows that tie, any will do."""
    near = near_rows(queries, vectors, norms, CALIBRATED_N, measure)
    scores = [measure.exact(query, vectors[some])[0] for query, some in zip(queries, near, strict=True)]
    return np.array([np.partition(some, -CALIBRATED_N)[-CALIBRATED_N] for some in scores])


def _probes(vectors: Floats) -> Floats:
    """Return means of two rows, and behind them as many rows moved by as much as they are long."""
    random = np.random.default_rng(0)
    one, other, moved = vectors[random.integers(0, len(vectors), (3, _PROBES))].astype(np.float64)
    lengths = np.linalg.norm(moved, axis=1, keepdims=True) / np.sqrt(moved.shape[1])
    return np.vstack([(one + other) / 2, moved + lengths * random.standard_normal(moved.shape)]).astype(np.float32)


def _filled(rows: Floats) -> Floats:
    pad = -rows.shape[1] % _WIDTH
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, pad))) if pad else rows, dtype=np.float32)
