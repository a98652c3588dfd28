"""One search library on given vectors: ``search_engines.py NAME FOLDER RECALL`` prints its figures as JSON.

``FOLDER`` holds ``vectors.npy``, ``queries.npy`` and ``truth.npy`` (the rows of the ten nearest). All search on one
thread, one query at a time and in one batch; graphs are built on two. Each library runs in an environment and a
process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

N = 10
BUILDERS = 2
EFFORTS = (16, 32, 64, 128, 256, 512)
"""How many candidates a graph looks at: the first with the recall@10 that is wanted counts."""

INSERTS = (1_000, 20_000)
"""Vectors that are added at the end, 1 000 at a time; more to us, whose codes are made every now and then."""

Rows = np.ndarray
Search = Callable[[Rows, int], Sequence[int]]


@dataclass
class Engine:
    """A library with the vectors in it.

    Attributes
    ----------
    search : callable
        (query, effort) -> the ten nearest.
    efforts : sequence of int
    batch : callable, optional
        (queries, effort) -> the same for many.
    insert : callable, optional
        (identifiers, vectors): adds vectors.
    """

    search: Search
    efforts: Sequence[int] = (0,)
    batch: Callable[[Rows, int], Any] | None = None
    insert: Callable[[Rows, Rows], Any] | None = None


def superduper(vectors: Rows, kind: Any = "auto") -> Engine:
    """Our index."""
    from superduper_nb.search.index import VectorIndex
    from superduper_nb.search.measures import Measure
    from superduper_nb.search.options import IndexOptions

    index = VectorIndex(Measure("cosine"), IndexOptions(kind=kind))
    index.put(range(len(vectors)), vectors)
    index.settle()

    def insert(ids: Rows, rows: Rows) -> None:
        index.put(ids.tolist(), rows)
        index.settle()

    return Engine(
        lambda query, _: index.search(query, N).ids,
        batch=lambda queries, _: index.search_many(list(queries), N),
        insert=insert,
    )


def superduper_graph(vectors: Rows) -> Engine:
    """Our index with a graph, which is built by half of the processors."""
    return superduper(vectors, "graph")


def superduper_exact(vectors: Rows) -> Engine:
    """Our index, which compares with every vector."""
    from superduper_nb.search.index import VectorIndex
    from superduper_nb.search.measures import Measure

    index = VectorIndex(Measure("cosine"))
    index.put(range(len(vectors)), vectors)
    return Engine(
        lambda query, _: index.search(query, N, exact=True).ids,
        batch=lambda queries, _: index.search_many(list(queries), N, exact=True),
        insert=lambda ids, rows: index.put(ids.tolist(), rows),
    )


def turbovec(vectors: Rows) -> Engine:
    """Its codes alone, not re-scored."""
    from turbovec import TurboQuantIndex

    index = TurboQuantIndex(vectors.shape[1], 4)
    index.add(vectors)
    index.prepare()
    return Engine(
        lambda query, _: index.search(query[None], N)[1][0],
        batch=lambda queries, _: index.search(queries, N),
        insert=lambda _, rows: index.add(rows),
    )


def faiss_knn(vectors: Rows) -> Engine:
    """Every vector."""
    import faiss

    def search(query: Rows, _: int) -> Sequence[int]:
        found = faiss.knn(query[None], vectors, N, metric=faiss.METRIC_INNER_PRODUCT)[1][0]
        return [int(i) for i in found]

    return Engine(search, batch=lambda q, _: faiss.knn(q, vectors, N, metric=faiss.METRIC_INNER_PRODUCT))


def faiss_hnsw(vectors: Rows, m: int = 32, building: int = 100) -> Engine:
    """HNSW, M = 32, 100 candidates while it is built."""
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = building
    faiss.omp_set_num_threads(BUILDERS)
    index.add(vectors)
    faiss.omp_set_num_threads(1)

    def many(queries: Rows, effort: int) -> Any:
        index.hnsw.efSearch = effort
        return index.search(queries, N)[1]

    return Engine(lambda q, effort: many(q[None], effort)[0], EFFORTS, many, lambda _, rows: index.add(rows))


def faiss_small_hnsw(vectors: Rows) -> Engine:
    """HNSW, M = 16, 64 candidates while it is built."""
    return faiss_hnsw(vectors, 16, 64)


def faiss_ivf(vectors: Rows) -> Engine:
    """Cells, in them 4-bit product codes that are scanned, the best 160 re-scored; the effort is how many cells."""
    import faiss

    faiss.omp_set_num_threads(BUILDERS)
    index = faiss.index_factory(
        vectors.shape[1], f"IVF1024,PQ{vectors.shape[1] // 2}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT
    )
    index.k_factor = 16
    index.train(vectors[:: max(1, len(vectors) // 100_000)])
    index.add(vectors)
    faiss.omp_set_num_threads(1)

    def many(queries: Rows, effort: int) -> Any:
        faiss.extract_index_ivf(index).nprobe = effort
        return index.search(queries, N)[1]

    return Engine(lambda q, effort: many(q[None], effort)[0], EFFORTS, many, lambda _, rows: index.add(rows))


def hnswlib(vectors: Rows) -> Engine:
    """HNSW, M = 16, 200 candidates while it is built."""
    import hnswlib as library

    index = library.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=2 * len(vectors), M=16, ef_construction=200)
    index.add_items(vectors, num_threads=BUILDERS)

    def many(queries: Rows, effort: int) -> Any:
        index.set_ef(effort)
        return index.knn_query(queries, N, num_threads=1)[0]

    insert = lambda ids, rows: index.add_items(rows, ids, num_threads=1)  # noqa: E731
    return Engine(lambda q, effort: many(q[None], effort)[0], EFFORTS, many, insert)


def usearch(vectors: Rows) -> Engine:
    """HNSW in bfloat16."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="cos", dtype="bf16")
    index.add(np.arange(len(vectors)), vectors, threads=BUILDERS)

    def many(queries: Rows, effort: int) -> Any:
        index.expansion_search = effort
        return index.search(queries, N, threads=1).keys

    def insert(ids: Rows, rows: Rows) -> None:
        index.add(ids, rows, threads=1)

    return Engine(many, EFFORTS, many, insert)


def vsag(vectors: Rows) -> Engine:
    """Its hierarchical graph over 8-bit codes."""
    import pyvsag

    graph = {
        **{"base_quantization_type": "sq8_uniform", "max_degree": 32, "ef_construction": 200},
        **{"use_reorder": True, "precise_quantization_type": "fp32", "build_thread_count": BUILDERS},
    }
    common = {"dtype": "float32", "metric_type": "ip", "dim": vectors.shape[1], "index_param": graph}
    index = pyvsag.Index("hgraph", json.dumps(common))
    index.build(vectors.ravel(), np.arange(len(vectors)), len(vectors), vectors.shape[1])
    asked = {effort: json.dumps({"hgraph": {"ef_search": effort}}) for effort in EFFORTS}
    return Engine(lambda query, effort: index.knn_search(query, N, asked[effort])[0], EFFORTS)


def rabitqlib(vectors: Rows) -> Engine:
    """Its SymphonyQG, 32 neighbours, 200 candidates while it is built; nothing can be added to it."""
    from rabitqlib import SymqgIndex

    index = SymqgIndex(vectors.shape[1], 32, "ip")
    index.build(vectors, 200, BUILDERS)

    def many(queries: Rows, effort: int) -> Any:
        return index.search_batch(queries, N, effort)[0]

    return Engine(lambda q, effort: index.search(q[None], N, effort)[0][0], EFFORTS, many)


def lancedb(vectors: Rows) -> Engine:
    """Its HNSW over 8-bit codes, re-scored."""
    import lancedb as library

    table = library.connect(tempfile.mkdtemp(dir=os.environ["BENCH_FOLDER"])).create_table("t", _arrow(vectors))
    table.create_index(metric="dot", index_type="IVF_HNSW_SQ", vector_column_name="v", num_partitions=1)

    def search(query: Rows, effort: int) -> Sequence[int]:
        found = table.search(query, vector_column_name="v").distance_type("dot").ef(effort).refine_factor(2)
        return [int(i) for i in found.select(["id"]).limit(N).to_arrow()["id"].to_pylist()]

    return Engine(search, EFFORTS[1:])


def lancedb_ivf(vectors: Rows) -> Engine:
    """Cells with 8-bit product codes, the best 80 re-scored; the effort is how many cells."""
    import lancedb as library

    table = library.connect(tempfile.mkdtemp(dir=os.environ["BENCH_FOLDER"])).create_table("t", _arrow(vectors))
    codes = {"num_partitions": 1024, "num_sub_vectors": vectors.shape[1] // 4}
    table.create_index(metric="dot", index_type="IVF_PQ", vector_column_name="v", **codes)

    def search(query: Rows, effort: int) -> Sequence[int]:
        found = table.search(query, vector_column_name="v").distance_type("dot").nprobes(effort).refine_factor(8)
        return [int(i) for i in found.select(["id"]).limit(N).to_arrow()["id"].to_pylist()]

    return Engine(search, EFFORTS)


def _arrow(vectors: Rows) -> Any:
    import pyarrow

    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    return pyarrow.table({"id": np.arange(len(vectors)), "v": column})


def chroma(vectors: Rows) -> Engine:
    """Its HNSW, with as many candidates as are asked for."""
    import chromadb

    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    graph = {"space": "ip", "ef_construction": 200, "ef_search": 128, "max_neighbors": 16, "num_threads": BUILDERS}
    made = client.create_collection("bench", configuration={"hnsw": graph}, embedding_function=None)
    for start in range(0, len(vectors), 5000):
        part = vectors[start : start + 5000]
        made.add(ids=[str(start + i) for i in range(len(part))], embeddings=part)

    def many(queries: Rows, _: int) -> Any:
        return made.query(query_embeddings=queries, n_results=N, include=[])["ids"]

    def insert(ids: Rows, rows: Rows) -> None:
        made.add(ids=list(map(str, ids.tolist())), embeddings=rows)

    return Engine(lambda q, effort: [int(i) for i in many(q[None], effort)[0]], (128,), many, insert)


def qdrant(vectors: Rows) -> Engine:
    """Its local mode: numpy, every vector."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection("t", vectors_config=size)
    client.upload_collection("t", vectors=vectors, ids=range(len(vectors)))

    def search(query: Rows, _: int) -> Sequence[int]:
        return [int(point.id) for point in client.query_points("t", query=query, limit=N).points]

    return Engine(search)


ENGINES = {
    **{"superduper_nb": superduper, "superduper_nb graph": superduper_graph},
    **{"superduper_nb exact": superduper_exact, "turbovec": turbovec, "rabitqlib": rabitqlib},
    **{"faiss knn": faiss_knn, "faiss hnsw": faiss_hnsw, "hnswlib": hnswlib, "usearch": usearch, "vsag": vsag},
    **{"faiss hnsw 16": faiss_small_hnsw, "faiss ivf": faiss_ivf, "lancedb ivf": lancedb_ivf},
    **{"lancedb": lancedb, "chroma": chroma, "qdrant": qdrant},
}


def recall(engine: Engine, queries: Rows, truth: Rows, effort: int) -> float:
    """Return which share of the ten nearest is found."""
    found = [np.asarray(engine.search(query, effort), dtype=np.int64) for query in queries]
    return float(np.mean([len(np.intersect1d(some, true)) / N for some, true in zip(found, truth, strict=True)]))


def timed(step: Callable[[], Any]) -> float:
    """Return how long a step takes, in seconds."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def measure(engine: Engine, queries: Rows, truth: Rows, wanted: float) -> dict[str, Any]:
    """Measure at the least effort that finds enough, or the most there is."""
    for effort in engine.efforts:
        if (found := recall(engine, queries, truth, effort)) >= wanted:
            break
    taken = [timed(lambda: engine.search(query, effort)) * 1000 for query in queries]  # noqa: B023
    figures: dict[str, Any] = {"recall": found, "effort": effort}
    figures |= {"p50": float(np.median(taken)), "p99": float(np.percentile(taken, 99))}
    if (batch := engine.batch) is not None:
        some = queries[:256]
        batch(some, effort)
        figures["batch"] = min(timed(lambda: batch(some, effort)) for _ in range(3)) / len(some) * 1000
    return figures


def main() -> None:
    """Build, measure, print."""
    name, folder, wanted = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    vectors, queries, truth = (np.load(folder / f"{part}.npy") for part in ("vectors", "queries", "truth"))
    begin = time.perf_counter()
    engine = ENGINES[name](vectors)
    figures = {"build": time.perf_counter() - begin}
    figures |= measure(engine, queries, truth, wanted)
    if (insert := engine.insert) is not None:
        count = INSERTS[name.startswith("superduper")]
        rows = np.resize(vectors[::-1], (count, vectors.shape[1]))
        ids = np.arange(len(vectors), len(vectors) + count)
        parts = np.array_split(np.arange(count), count // 1000)
        figures["insert"] = count / timed(lambda: [insert(ids[part], rows[part]) for part in parts])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
