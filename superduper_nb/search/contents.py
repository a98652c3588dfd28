"""What an index holds of its documents: loaded from all of them, moved on by those that changed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import bson
import numpy as np
from bson import Timestamp
from numpy.typing import NDArray
from toolz import partition_all

from superduper_nb.documents.paths import get_path
from superduper_nb.search.ids import id_keys, packed_ids, packed_keys, unpacked_id
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.measures import Floats
from superduper_nb.search.rows import Rows
from superduper_nb.search.source import BATCH, Source
from superduper_nb.search.stream import News
from superduper_nb.search.vectors import Block, blocks_of, stored_vector

__all__ = ["Contents"]


class Contents:
    """The vectors of a source in an index, and which documents have none that fits.

    Parameters
    ----------
    index : VectorIndex
        Empty.
    source : Source
        Where they come from.

    Attributes
    ----------
    index : VectorIndex
        What to search in; another one after `load`.
    skipped : dict
        Identifiers of documents without a usable output, by their keys.
    """

    def __init__(self, index: VectorIndex, source: Source) -> None:
        self.index, self._source = index, source
        self.skipped: dict[Any, Any] = {}

    def restore(self, rows: Rows, skipped: Iterable[Any]) -> None:
        """Begin with what a snapshot held."""
        self.index = self.index.anew(rows)
        self.index.tend()
        self._skip(list(skipped))

    # --- all of them -------------------------------------------------------------------------------------------------

    def load(self, stop: threading.Event) -> bool:
        """Read all documents into a new index, which then takes the place of the old one; False where that is off."""
        fresh = self.index.anew(expected=self._source.expected())
        self.skipped.clear()
        for batch in self._source.batches():
            fresh.put_packed(*self._fitting(fresh, batch))
            if stop.is_set():
                return False
        fresh.complete()
        self.index = fresh
        return True

    # --- those that changed ------------------------------------------------------------------------------------------

    def apply(self, news: News) -> None:
        """Move the index to what the documents were at the time of the last change."""
        held = len(self.index)
        self._read_again(news.ids, news.at, set(id_keys(news.computed)).difference(id_keys(news.changed)))
        if held and not len(self.index):  # of another dimension than those that went, some were skipped
            for part in partition_all(BATCH, list(self.skipped.items())):
                self._read_again(dict(part), news.at)
        self.index.tend()

    def _read_again(self, ids: Mapping[Any, Any], at: Timestamp, older: Set[Any] = frozenset()) -> None:
        """Move the index, in one step, to what these documents were at a time.

        Parameters
        ----------
        ids : mapping
            Identifiers by their keys.
        at : bson.Timestamp
        older : set
            Keys of those whose vectors stay where a newer version has computed them: their content is the same.
        """
        for key in ids.keys() & self.skipped.keys():
            del self.skipped[key]
        fitting, vectors = self._fitting(self.index, self._source.as_of(at, list(ids.values())))
        gone = ids.keys() - packed_keys(fitting)
        if computed := [ids[key] for key in gone & older]:
            gone -= set(id_keys(self._source.newer(at, computed)))
        self.index.change(fitting, vectors, [ids[key] for key in gone])

    # --- what fits ---------------------------------------------------------------------------------------------------

    def _fitting(self, index: VectorIndex, batch: bytes) -> Block:
        """Return the identifiers, packed, and outputs of those documents whose outputs are vectors that fit."""
        found: list[Block] = []
        for ids, vectors in self._read(batch):
            wanted = index.dimension or (found[0][1].shape[1] if found else None)
            fits = self._usable(vectors) if wanted in (None, vectors.shape[1]) else np.zeros(len(ids), dtype=bool)
            if fits.all():
                found.append((ids, vectors))
                continue
            self._skip([unpacked_id(ids[i]) for i in np.flatnonzero(~fits).tolist()])
            if fits.any():
                found.append(([ids[i] for i in np.flatnonzero(fits).tolist()], vectors[fits]))
        if len(found) == 1:
            return found[0]
        return [id for ids, _ in found for id in ids], np.concatenate([rows for _, rows in found] or [np.empty((0, 1))])

    def _read(self, batch: bytes) -> Iterator[Block]:
        """Yield identifiers and outputs, many of one layout at a time; those that are no vectors are skipped."""
        blocks, rest = blocks_of(batch, self._source.path)
        yield from blocks
        for raw in rest:
            document = bson.decode(raw, self._source.codec_options)
            if (vector := stored_vector(get_path(document, self._source.path, None))) is None:
                self._skip([document["_id"]])
            else:
                yield packed_ids([document["_id"]]), vector[None, :]

    def _usable(self, vectors: Floats) -> NDArray[np.bool_]:
        """Say which are finite and, where that counts, have a direction."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            squares = np.vecdot(vectors, vectors)
        if not (np.isfinite(squares) & (squares > 0)).all():  # as they seem to be in float32: look closer
            squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)  # no float32 is too large for that
        fits = np.isfinite(squares)
        return np.asarray(fits & (squares > 0) if self.index.measure.name == "cosine" else fits)

    def _skip(self, ids: list[Any]) -> None:
        self.skipped.update(zip(id_keys(ids), ids, strict=True))
