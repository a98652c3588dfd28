"""A collection with an index whose vectors the test writes itself, and brute force over MongoDB beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import Timestamp
from bson.binary import Binary
from pymongo import UpdateOne
from pymongo.database import Database

from superduper_nb.components import ComponentStore
from superduper_nb.documents.arrays import Vector
from superduper_nb.errors import SuperduperError
from superduper_nb.search import IndexOptions, SearchEngine, SearchReply, SearchRequest


def packed(vector: Any) -> Binary:
    """Return a vector as MongoDB stores it."""
    return Binary(Vector().encode(np.asarray(vector, dtype=np.float32)), 9)


def identity(x: Any) -> Any:
    return x


class Corpus:
    """Documents with a vector each at ``_outputs.x.m``, indexed as ``near``."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        measure: str = "cosine",
        *,
        name: str = "docs",
        filter: Mapping[str, Any] | None = None,
        function: Callable[[Any, Any], Any] | None = None,
        snapshots: Path | None = None,
        index: IndexOptions | None = None,
        **engine: Any,
    ) -> None:
        self.engine_options = {"snapshots": snapshots, **engine}
        self.snapshots = snapshots
        self.database, self.docs, self.measure, self.function = database, database[name], measure, function
        self.filter = dict(filter or {})
        self.store = ComponentStore(database)
        self.version = 0
        self.retrain()
        if function is not None:
            self.store.put("measure", measure, {}, obj=function)
        definition: dict[str, Any] = {"models": ["m"], "keys": ["x"], "measure": measure, "filter": self.filter}
        if index is not None:
            definition["index"] = index.definition()
        self.store.put("semantic_index", "near", definition, collection=name)
        self.pending = 0
        self.queries: list[tuple[str, int | None]] = []
        self.engine = self._started()

    def _started(self, **options: Any) -> SearchEngine:
        return SearchEngine(
            self.database.client, self._encode, lambda *_: self.pending, **self.engine_options, **options
        )

    def restart(self) -> None:
        """End the engine, as the notebook server does, and start another."""
        self.engine.close()
        self.engine = self._started()

    def describe(self) -> dict[str, Any]:
        return self.engine.describe(self.database.name, self.docs.name, "near")

    def _encode(self, database: str, model: str, inputs: list[Any], version: int | None) -> list[Any]:
        self.queries.append((model, version))
        return inputs

    # --- writing -------------------------------------------------------------------------------------------------

    def retrain(self) -> int:
        """Register a new version of the model."""
        definition = {"type": "vector", "batch_size": None, "device": "auto", "note": self.version}
        model, _ = self.store.put("model", "m", definition, obj={"object": identity})
        self.version = model.version
        return self.version

    def token(self, version: int | None = None) -> dict[str, Any]:
        return {"m/x": {"v": version or self.version, "h": b"h"}}

    def document(self, id: Any, vector: Any, version: int | None = None, **fields: Any) -> dict[str, Any]:
        """Return a document whose output has been computed."""
        stored = vector if isinstance(vector, (Binary, list, dict)) else packed(vector)
        outputs = {"_outputs": {"x": {"m": stored}}, "_sddb": {"outputs": self.token(version)}}
        return {"_id": id, "x": 0, **fields, **outputs}

    def insert(self, vectors: Sequence[Any], ids: Sequence[Any] | None = None, **fields: Sequence[Any]) -> None:
        ids = range(len(vectors)) if ids is None else ids
        rows = enumerate(zip(ids, vectors, strict=True))
        self.docs.insert_many(
            [
                self.document(id, packed(v), **{name: values[i] for name, values in fields.items()})
                for i, (id, v) in rows
            ]
        )

    def compute(self, vectors: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        """Write new outputs, as a job does; pairs where identifiers are equal to Python (1 and True) only."""
        pairs = vectors.items() if isinstance(vectors, Mapping) else vectors
        change = [
            UpdateOne({"_id": id}, {"$set": {"_outputs.x.m": packed(v), "_sddb.outputs.m/x": self.token()["m/x"]}})
            for id, v in pairs
        ]
        self.docs.bulk_write(change)

    # --- searching -----------------------------------------------------------------------------------------------

    def now(self) -> Timestamp:
        """Return the time of the last write."""
        time: Timestamp = self.database.command("ping")["operationTime"]
        return time

    def ask(self, vector: Any = None, **options: Any) -> SearchReply:
        """Search, seeing everything written so far."""
        like = {} if vector is None else {"vector": vector}
        where = {"database": self.database.name, "collection": self.docs.name}
        return self.engine.search(SearchRequest(**{**where, "after": self.now(), **like, **options}))

    def truth(self, query: Any, filter: Mapping[str, Any] | None = None) -> list[tuple[Any, float]]:
        """Return what brute force over MongoDB says: every match with its score, best first, ties by ``_id``."""
        q = np.asarray(query, dtype=np.float32).astype(np.float64)
        ids, rows = [], []
        matching = {"$and": [dict(filter or {}), self.filter]}
        for document in self.docs.find(matching, {"_outputs.x.m": 1, "_sddb.outputs.m/x": 1}).sort("_id", 1):
            token = document.get("_sddb", {}).get("outputs", {}).get("m/x", {})
            if token.get("v") == self.version and "error" not in token:
                row = Vector().decode(document["_outputs"]["x"]["m"])
                if self.measure != "cosine" or row.any():
                    ids.append(document["_id"])
                    rows.append(row)
        scores = self.scores(q, np.array(rows, dtype=np.float64)).tolist() if rows else []
        return sorted(zip(ids, scores, strict=True), key=lambda pair: -pair[1])  # stable: MongoDB's order among equals

    def score(self, q: np.ndarray, row: np.ndarray) -> float:
        return float(self.scores(q, row[None])[0])

    def scores(self, q: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Score rows, each by itself: equal ones get equal scores, as a product of matrices may not give them."""
        if self.function is not None:
            return self.function(q[None].astype(np.float32), rows.astype(np.float32))[0].astype(np.float64)
        if self.measure == "l2":
            return 1 / (1 + np.sqrt(((rows - q) ** 2).sum(axis=1)))
        products = (rows * q).sum(axis=1)
        return products / np.sqrt((rows * rows).sum(axis=1) * (q * q).sum()) if self.measure == "cosine" else products

    def check(self, query: Any, n: int = 10, filter: Mapping[str, Any] | None = None, **options: Any) -> SearchReply:
        """Search, and compare with the truth."""
        reply = self.ask(query, n=n, filter=filter, **options)
        assert_equal(reply, self.truth(query, filter), n)
        return reply


def assert_equal(reply: SearchReply, truth: Sequence[tuple[Any, float]], n: int, tolerance: float = 1e-9) -> None:
    """Assert that a reply is the first `n` of the truth; scores that rounding can't tell apart may swap."""
    wanted = [score for _, score in truth[:n]]
    assert len(reply.ids) == len(wanted)
    scale = max(1.0, *map(abs, wanted)) if wanted else 1.0
    np.testing.assert_allclose(reply.scores, wanted, rtol=0, atol=tolerance * scale)
    scores = {repr(id): score for id, score in truth}
    for i, (id, (expected, score)) in enumerate(zip(reply.ids, truth, strict=False)):
        assert repr(id) == repr(expected) or 0 < abs(scores[repr(id)] - score) < tolerance * scale, (i, id, expected)


@pytest.fixture
def corpus(database: Database[dict[str, Any]], home: Any) -> Iterator[Callable[..., Corpus]]:
    """Return what makes a `Corpus` in a fresh database; its engine is closed after the test."""
    with ExitStack() as stack:

        def make(measure: str = "cosine", **options: Any) -> Corpus:
            made = Corpus(database, measure, **options)
            stack.callback(lambda: made.engine.close())
            return made

        yield make


__all__ = ["Corpus", "SuperduperError", "assert_equal", "packed"]
