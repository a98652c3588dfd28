"""How quick search is: figures of one run, each with its ratio to a yardstick in the same run.

Run it with ``python benchmarks/search.py [--rows 100000] [--dimension 384]``: it starts a MongoDB of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bson.binary import Binary
from pymongo.collection import Collection
from pymongo.database import Database

import superduper_nb as sd
from superduper_nb.cluster.mongod import Mongod
from superduper_nb.search import SearchRequest
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.measures import Measure

Figures = list[tuple[str, float, str]]


def passing(x: Any) -> Any:
    """Return the input: a model that costs nothing, so that the rest can be seen."""
    return np.asarray(x, dtype=np.float32)


def embeddings(rows: int, dimension: int) -> np.ndarray:
    """Make vectors of about the intrinsic dimension of sentence embeddings."""
    random = np.random.default_rng(0)
    inner = min(96, dimension)
    basis = random.standard_normal((inner, dimension)).astype(np.float32)
    made = np.empty((rows, dimension), dtype=np.float32)
    weights = np.linspace(1.5, 0.2, inner, dtype=np.float32)
    for start in range(0, rows, 50_000):
        part = made[start : start + 50_000]
        part[:] = (random.standard_normal((len(part), inner)).astype(np.float32) * weights) @ basis
        part += 0.3 * random.standard_normal(part.shape, dtype=np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True))


def median_ms(step: Callable[[int], Any], times: int = 41) -> float:
    """Return the median time of a step, after one to warm up."""
    step(0)
    taken = []
    for i in range(times):
        begin = time.perf_counter()
        step(i)
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken)) * 1000


def engine(vectors: np.ndarray, queries: np.ndarray) -> Figures:
    """Measure the index alone."""
    index = VectorIndex(Measure("cosine"))
    begin = time.perf_counter()
    index.put(range(len(vectors)), vectors)
    index.settle()
    built = time.perf_counter() - begin
    gemv = median_ms(lambda i: vectors @ queries[i])
    exact = median_ms(lambda i: index.search(queries[i], 10, exact=True))
    quick = median_ms(lambda i: index.search(queries[i], 10))
    found = [len(set(index.search(q, 10).ids) & set(index.search(q, 10, exact=True).ids)) / 10 for q in queries]
    return [
        ("numpy vectors @ query", gemv, "yardstick"),
        ("exact", exact, f"{exact / gemv:.2f} of numpy"),
        (f"{index.kind}, recall@10 {np.mean(found):.4f}", quick, f"{quick / gemv:.3f} of numpy"),
        ("build, codes included", built * 1000, f"{len(vectors) / built:,.0f} rows/s"),
        ("memory, bytes of one vector", index.nbytes / len(vectors), f"{index.nbytes / vectors.nbytes:.2f} of float32"),
    ]


def end_to_end(vectors: np.ndarray, queries: np.ndarray) -> Figures:
    """Measure `find` with MongoDB, model and documents, in one process."""
    with tempfile.TemporaryDirectory() as folder, Mongod.attach(Path(folder), cache_gb=1.0) as mongod:
        client = sd.connect(remote=False, mongodb={"uri": mongod.uri})
        docs = client["bench"]["docs"]
        docs.create_model("m", passing, type="vector")
        docs.create_semantic_index("near", models=["m"], keys=["x"])
        for start in range(0, len(vectors), 5000):
            _insert(docs, vectors, start, start + 5000)
        yardstick = _read_ms(docs)
        begin = time.perf_counter()
        client.services.refresh_index("bench", "docs", "near")
        docs.find(like={"x": queries[0].tolist()}).to_list()
        first = (time.perf_counter() - begin) * 1000
        held = 0
        while held != (held := client.services.describe_index("bench", "docs", "near")["bytes"]):
            time.sleep(2)  # its codes are being made
        figures = [
            ("read all vectors with pymongo", yardstick, "yardstick"),
            ("load the index, first search", first, f"{first / yardstick:.2f} of pymongo"),
        ]
        plain = median_ms(lambda i: list(docs.find({"_id": {"$in": list(range(i, i + 10))}})))
        figures.append(("find 10 documents by _id", plain, "yardstick"))
        for name, filter in (("", None), ("50 %", 0.5), ("10 %", 0.1), ("1 %", 0.01), ("0.1 %", 0.001)):
            query = {"p": {"$lt": filter}} if filter else None
            took = median_ms(partial(_find, docs, query, queries), 15)
            figures.append((f"find(like=) {name}", took, f"{took / plain:.1f} x find by _id"))
        request = SearchRequest(database="bench", collection="docs", vector=queries[0].tolist())
        took = median_ms(lambda i: client.services.search(request))
        figures.append(("services.search(vector=)", took, f"{took / plain:.1f} x find by _id"))
        client.close()
        return figures


def _plain(docs: Any) -> Collection[dict[str, Any]]:
    """Return the collection as pymongo's own class."""
    return Collection(Database(docs.database.client, "bench"), "docs")


def _insert(docs: Any, vectors: np.ndarray, start: int, stop: int) -> None:
    """Write documents whose outputs have been computed."""
    random = np.random.default_rng(start)
    rows = [
        {
            "_id": i,
            "p": random.random(),
            "text": f"document {i}",
            "_outputs": {"x": {"m": Binary(b"\x27\x00" + vectors[i].tobytes(), 9)}},
            "_sddb": {"outputs": {"m/x": {"v": 1, "h": b"123456789012"}}},
        }
        for i in range(start, min(stop, len(vectors)))
    ]
    _plain(docs).insert_many(rows, ordered=False)


def _find(docs: Any, filter: Any, queries: np.ndarray, i: int) -> Any:
    return list(docs.find(filter, like={"x": queries[i]}))


def _read_ms(docs: Any) -> float:
    """Return how long it takes to read the bytes of all vectors through pymongo, the quickest way there is."""
    begin = time.perf_counter()
    for _ in _plain(docs).find_raw_batches({}, {"_outputs.x.m": 1}, batch_size=2000):
        pass
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    options = parser.parse_args()
    vectors = embeddings(options.rows, options.dimension)
    random = np.random.default_rng(1)
    queries = vectors[random.integers(0, len(vectors), 60)]
    queries = (queries + 0.05 * random.standard_normal(queries.shape)).astype(np.float32)
    print(f"{options.rows:,} x {options.dimension}")
    for name, figure, ratio in engine(vectors, queries) + end_to_end(vectors, queries):
        print(f"{name:<40} {figure:10.2f}   {ratio}")


if __name__ == "__main__":
    main()
