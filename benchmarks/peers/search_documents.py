"""One search library beside MongoDB: ``search_documents.py NAME FOLDER URI RECALL PACKAGES`` prints figures as JSON.

The nearest come from the library, their documents from MongoDB by pymongo (which is taken from ``PACKAGES`` where the
library's environment has none). Under a filter, the library's own is used where it has one; `faiss knn` compares those
that MongoDB lists; from any other more are fetched than are wanted, as many as should do, and MongoDB is asked for the
documents of those that match: again, for four times as many, where that were too few.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import search_engines as engines

N = engines.N
REPEATS = 41
EFFORTS = tuple(step << power for power in range(14) for step in (16, 24))
"""Of graphs: for as many as are fetched, at least."""

Rows = np.ndarray
Nearest = Callable[[Rows, int, float], list[int]]
"""(query, how many, share that may pass) -> rows, best first."""


def graph(name: str, vectors: Rows, queries: Rows, truth: Rows, recall: float) -> Nearest:
    """Return a graph without filters, at the least effort that finds so much of the ten nearest."""
    engines.EFFORTS = EFFORTS
    engine = engines.ENGINES[name](vectors)
    least = next((e for e in engine.efforts if engines.recall(engine, queries, truth, e) >= recall), engine.efforts[-1])

    def search(query: Rows, n: int, _: float) -> list[int]:
        engines.N = n  # how many they return is the module's
        effort = next((e for e in engine.efforts if e >= max(least, n)), least)
        return [int(row) for row in engine.search(query, effort)]

    return search


def lancedb(vectors: Rows, p: Rows) -> Nearest:
    """Its HNSW over 8-bit codes, re-scored, with its filter before the search."""
    import lancedb as library
    import pyarrow

    made = engines._arrow(vectors).append_column("p", pyarrow.array(p))
    table = library.connect(tempfile.mkdtemp(dir=os.environ["BENCH_FOLDER"])).create_table("t", made)
    table.create_index(metric="dot", index_type="IVF_HNSW_SQ", vector_column_name="v", num_partitions=1)
    table.create_scalar_index("p")

    def search(query: Rows, n: int, share: float) -> list[int]:
        found = table.search(query, vector_column_name="v").distance_type("dot").ef(128).refine_factor(2)
        found = found.where(f"p < {share}", prefilter=True) if share < 1 else found
        return [int(i) for i in found.select(["id"]).limit(n).to_arrow()["id"].to_pylist()]

    return search


def chroma(vectors: Rows, p: Rows) -> Nearest:
    """Its HNSW, and its filter by metadata."""
    import chromadb

    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    settings = {"space": "ip", "ef_construction": 200, "ef_search": 128, "max_neighbors": 16, "num_threads": 2}
    made = client.create_collection("bench", configuration={"hnsw": settings}, embedding_function=None)
    for start in range(0, len(vectors), 5000):
        part = range(start, min(start + 5000, len(vectors)))
        metadata = [{"p": float(p[row])} for row in part]
        made.add(ids=list(map(str, part)), embeddings=vectors[part.start : part.stop], metadatas=metadata)

    def search(query: Rows, n: int, share: float) -> list[int]:
        where = {"p": {"$lt": share}} if share < 1 else None
        found = made.query(query_embeddings=query[None], n_results=n, include=[], where=where)
        return [int(i) for i in found["ids"][0]]

    return search


def qdrant(vectors: Rows, p: Rows) -> Nearest:
    """Its local mode: numpy, every vector; and its filter by payload."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection("t", vectors_config=size)
    client.upload_collection("t", vectors=vectors, ids=range(len(vectors)), payload=[{"p": float(x)} for x in p])

    def search(query: Rows, n: int, share: float) -> list[int]:
        only = models.Filter(must=[models.FieldCondition(key="p", range=models.Range(lt=share))])
        found = client.query_points("t", query=query, limit=n, query_filter=only if share < 1 else None)
        return [int(point.id) for point in found.points]

    return search


FILTERING = {"lancedb": lancedb, "chroma": chroma, "qdrant": qdrant}


class Finder:
    """Finds documents: the library's nearest, and MongoDB's documents of them."""

    def __init__(self, name: str, vectors: Rows, queries: Rows, truth: Rows, recall: float, docs: Any) -> None:
        self._docs, self._vectors, self._filters = docs, vectors, name in FILTERING
        if name in FILTERING:
            p = {document["_id"]: document["p"] for document in docs.find({}, {"p": 1})}
            self._nearest = FILTERING[name](vectors, np.array([p[row] for row in range(len(vectors))]))
        else:
            self._nearest = graph(name, vectors, queries[:100], truth[:100], recall)
        self.find = self._listed_first if name == "faiss knn" else self._nearest_first

    def _nearest_first(self, query: Rows, share: float) -> list[Any]:
        # So many pass 98 times of 100.
        n = N if self._filters else math.ceil((N + 2 * math.sqrt(N) + 2) / share) if share < 1 else N
        while True:
            n = min(n, len(self._vectors))
            rows = self._nearest(query, n, share)
            found = self._documents(rows, share)
            if len(found) == N or self._filters or n == len(self._vectors):
                return found
            n *= 4

    def _listed_first(self, query: Rows, share: float) -> list[Any]:
        import faiss

        if share == 1:
            return self._documents(self._nearest(query, N, share), share)
        rows = np.array([document["_id"] for document in self._docs.find({"p": {"$lt": share}}, {"_id": 1})])
        near = faiss.knn(query[None], self._vectors[rows], N, metric=faiss.METRIC_INNER_PRODUCT)[1][0]
        return self._documents(rows[near].tolist(), 1)

    def _documents(self, rows: list[int], share: float) -> list[Any]:
        """Return the documents of the first ten that match, in order."""
        query = {"_id": {"$in": rows}} | ({"p": {"$lt": share}} if share < 1 and not self._filters else {})
        place = {row: i for i, row in enumerate(rows)}
        return sorted(self._docs.find(query), key=lambda document: place[document["_id"]])[:N]


def main() -> None:
    """Build, measure, print."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    sys.path.append(sys.argv[5])
    from pymongo import MongoClient

    docs = MongoClient(sys.argv[3])["bench"]["docs"]
    vectors, queries = (np.load(folder / f"{part}.npy") for part in ("vectors", "queries"))
    truths: dict[str, Any] = json.loads((folder / "truths.json").read_text())
    finder = Finder(name, vectors, queries, np.array(truths["1.0"]), float(sys.argv[4]), docs)
    figures = {}
    for given, truth in truths.items():
        share, found, taken = float(given), [], []
        finder.find(queries[0], share)
        for query in queries[:REPEATS]:
            begin = time.perf_counter()
            found.append(finder.find(query, share))
            taken.append(time.perf_counter() - begin)
        parts = [len({d["_id"] for d in some} & set(true)) / N for some, true in zip(found, truth, strict=False)]
        figures[given] = {"ms": float(np.median(taken)) * 1000, "recall": float(np.mean(parts))}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
