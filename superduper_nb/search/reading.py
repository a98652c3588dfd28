"""All vectors of an index as one array, read from MongoDB: for work over all pairs, in whatever process it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import bson
import numpy as np
from pymongo.collection import Collection

from superduper_nb.components.store import Component
from superduper_nb.documents.paths import get_path, output_path, token_path
from superduper_nb.models.loading import Loader
from superduper_nb.search.batches import Batches
from superduper_nb.search.ids import packed_ids, unpacked_id
from superduper_nb.search.measures import BUILTIN, Floats, Measure
from superduper_nb.search.vectors import Block, blocks_of, stored_vector

__all__ = ["current_outputs", "measure_of", "read_vectors"]

_BATCH: Final = 2000


def measure_of(loader: Loader, index: Component) -> Measure:
    """Return the measure of a semantic index."""
    name = index.definition["measure"]
    return Measure(name) if name in BUILTIN else Measure(name, loader.object(loader.store.get("measure", name)))


def current_outputs(loader: Loader, index: Component) -> dict[str, Any]:
    """Return the filter for the documents with a current output of an index's first model."""
    model, key = index.definition["models"][0], index.definition["keys"][0]
    token = token_path(model, key)
    current = {f"{token}.v": loader.store.get("model", model).version, f"{token}.error": {"$exists": False}}
    return {"$and": [current, index.definition["filter"]]} if index.definition["filter"] else current


def read_vectors(
    collection: Collection[dict[str, Any]],
    loader: Loader,
    index: Component,
    *,
    filter: Mapping[str, Any] | None = None,
    limit: int = 0,
) -> tuple[list[Any], Floats]:
    """Return the identifiers of the documents of an index, in their order, and an array of their vectors.

    What is no vector, of another dimension than the first, or under cosine without a direction, is left out.

    Parameters
    ----------
    filter : mapping, optional
        Only of documents that match it.
    limit : int, default 0
        Of the first so many; 0: of all.
    """
    path = output_path(index.definition["keys"][0], index.definition["models"][0])
    directed = index.definition["measure"] == "cosine"
    ids: list[Any] = []
    rows: list[Floats] = []
    query = {"$and": [current_outputs(loader, index), dict(filter or {})]}
    found = Batches(collection, query, {path: 1}, batch_size=_BATCH, sort=[("_id", 1)], limit=limit)
    for batch in found:
        for some, vectors in _blocks(cast("bytes", batch), path, collection):
            keep = np.isfinite(vectors).all(axis=1) & (vectors.any(axis=1) | (not directed))
            if vectors.shape[1] == (rows[0] if rows else vectors).shape[1]:
                ids += [unpacked_id(some[i]) for i in np.flatnonzero(keep).tolist()]
                rows.append(vectors[keep])
    return ids, np.concatenate(rows) if rows else np.empty((0, 1), dtype=np.float32)


def _blocks(batch: bytes, path: str, collection: Collection[dict[str, Any]]) -> Iterator[Block]:
    """Yield identifiers, packed, and vectors: all of a batch at once where they are of one layout."""
    blocks, rest = blocks_of(batch, path)
    if len(blocks) == 1 and not rest:
        yield blocks[0]
        return
    documents: list[Mapping[str, Any]] = bson.decode_all(batch, collection.codec_options)
    for document in documents:  # in their order, which blocks of several layouts don't keep
        if (vector := stored_vector(get_path(document, path, None))) is not None:
            yield packed_ids([document["_id"]]), vector[None, :]
