"""How quick search is beside other libraries, on the same vectors and queries: ``python benchmarks/search.py``.

The vectors are synthetic (``--rows``, ``--dimension``), or embeddings made by ``vectors.py`` (``--embeddings FILE``).
Other libraries are measured where their environments are: ``--install FOLDER`` makes one for each, ``--peers FOLDER``
uses them, ``--only NAME …`` some of them. They are nobody's dependency. Of graphs, the least effort counts that finds
``--recall``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
from vectors import add_options, given

HERE = Path(__file__).parent
PACKAGES = {
    **{"faiss knn": "faiss-cpu", "faiss hnsw": "faiss-cpu", "hnswlib": "hnswlib", "usearch": "usearch"},
    **{"vsag": "pyvsag", "faiss ivf": "faiss-cpu", "lancedb ivf": "lancedb", "lancedb": "lancedb"},
    **{"rabitqlib": "rabitqlib", "chroma": "chromadb", "qdrant": "qdrant-client", "faiss hnsw 16": "faiss-cpu"},
}
OURS = ("superduper_nb", "superduper_nb graph", "superduper_nb exact", "turbovec")
QUERIES = 500
ONE_THREAD = {
    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "LANCE_CPU_THREADS": "1"},
    **{"TOKENIZERS_PARALLELISM": "false", "ANONYMIZED_TELEMETRY": "False"},
}
TIMEOUT_S = 900

Figures = dict[str, Any]


def install(folder: Path) -> None:
    """Make an environment for each of the other libraries."""
    for package in set(PACKAGES.values()):
        venv.create(folder / package, with_pip=True)
        subprocess.run([folder / package / "bin" / "pip", "install", "--quiet", "numpy", package], check=True)


def nearest(vectors: np.ndarray, queries: np.ndarray, n: int = 10) -> np.ndarray:
    """Return the rows of the nearest to each query, in float64."""
    wide, found, best, start = queries.astype(np.float64), np.empty((len(queries), 0), int), None, 0
    for part in np.array_split(vectors, max(1, len(vectors) // 20_000)):
        scores = wide @ part.T.astype(np.float64)
        rows = np.argpartition(-scores, n, axis=1)[:, :n]
        scores = np.take_along_axis(scores, rows, axis=1)
        found = np.hstack([found, rows + start])
        best = scores if best is None else np.hstack([best, scores])
        start += len(part)
    return np.take_along_axis(found, np.argsort(-best, axis=1)[:, :n], axis=1)


def measured(name: str, folder: Path, peers: Path | None, recall: float) -> Figures | None:
    """Measure one library in a process of its own; None where it is not installed, or fails."""
    if name in OURS:
        python = Path(sys.executable)
    elif peers is None or not (python := peers / PACKAGES[name] / "bin" / "python").exists():
        return None
    command = [str(python), str(HERE / "peers" / "search_engines.py"), name, str(folder), str(recall)]
    environment = {**os.environ, **ONE_THREAD, "BENCH_FOLDER": str(folder)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print(f"{name}: not done in {TIMEOUT_S} s", flush=True)
        return None
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def row(name: str, figures: Figures, ours: Figures) -> str:
    """Return a line of the table."""
    batch = f"{figures['batch']:.3f}" if "batch" in figures else "-"
    insert = f"{figures['insert']:,.0f}" if "insert" in figures else "-"
    return (
        f"| {name} | {figures['build']:.1f} s | {figures['recall']:.4f} | {figures['p50']:.2f} / {figures['p99']:.2f} "
        f"| {figures['p50'] / ours['p50']:.2f} | {batch} | {insert} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--install", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--recall", type=float, default=0.99)
    options = parser.parse_args()
    if options.install:
        install(options.install)
    vectors, queries = given(options, QUERIES)
    print("| library | build | recall@10 | median / p99 ms | / ours | batch of 256, ms a query | inserts a second |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        parts = {"vectors": vectors, "queries": queries, "truth": nearest(vectors, queries)}
        for name, part in parts.items():
            np.save(Path(folder) / f"{name}.npy", part)
        ours: Figures | None = None
        for name in [*OURS, *PACKAGES]:
            if options.only and name not in (OURS[0], *options.only):
                continue
            figures = measured(name, Path(folder), options.peers or options.install, options.recall)
            if figures is not None:
                ours = ours or figures
                print(row(name, figures, ours), flush=True)


if __name__ == "__main__":
    main()
