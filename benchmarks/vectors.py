"""The vectors that are searched in benchmarks: synthetic ones, and embeddings of WordNet's glosses.

``python benchmarks/vectors.py GLOSSES OUT.npy`` makes the latter, in some minutes on one core: ``GLOSSES`` is a folder
with WordNet's ``data.noun``, … (Debian: ``wordnet-base``). They are encoded by all-MiniLM-L6-v2, a dependency of the
demo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["add_options", "given", "mixture", "queries_near"]

_PARTS = ("noun", "verb", "adj", "adv")


def mixture(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Make vectors of about the intrinsic dimension of sentence embeddings, at length 1."""
    random = np.random.default_rng(seed)
    inner = min(96, dimension)
    basis = random.standard_normal((inner, dimension)).astype(np.float32)
    made = np.empty((rows, dimension), dtype=np.float32)
    weights = np.linspace(1.5, 0.2, inner, dtype=np.float32)
    for start in range(0, rows, 50_000):
        part = made[start : start + 50_000]
        part[:] = (random.standard_normal((len(part), inner)).astype(np.float32) * weights) @ basis
        part += 0.3 * random.standard_normal(part.shape, dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def queries_near(vectors: np.ndarray, count: int, seed: int = 1) -> np.ndarray:
    """Make queries near vectors."""
    random = np.random.default_rng(seed)
    near = vectors[random.integers(0, len(vectors), count)]
    return np.asarray(near + 0.05 * random.standard_normal(near.shape), dtype=np.float32)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which vectors."""
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--copies", type=int, default=1, help="of each embedding, all but one of them moved")


def given(options: argparse.Namespace, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors, and so many queries: some of the embeddings, or what is made."""
    if options.embeddings is None:
        vectors = mixture(options.rows, options.dimension)
        print(f"{len(vectors):,} x {vectors.shape[1]}, synthetic", flush=True)
        return vectors, queries_near(vectors, queries)
    found = np.load(options.embeddings)
    order = np.random.default_rng(1).permutation(len(found))
    vectors = np.vstack([found[order[queries:]], *moved(found[order[queries:]], options.copies - 1)])
    print(f"{len(vectors):,} x {found.shape[1]}, {options.embeddings.stem}", flush=True)
    return vectors, found[order[:queries]]


def moved(vectors: np.ndarray, copies: int) -> Iterator[np.ndarray]:
    """Yield copies, each vector moved to about where its neighbours are (by 0.8 of its length, then of length 1)."""
    random = np.random.default_rng(3)
    for _ in range(copies):
        made = random.standard_normal(vectors.shape, dtype=np.float32)
        made *= 0.8 * np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(made, axis=1, keepdims=True)
        made += vectors
        yield made / np.linalg.norm(made, axis=1, keepdims=True)


def _glosses(folder: Path, count: int) -> list[str]:
    lines = [line for part in _PARTS for line in (folder / f"data.{part}").read_text().splitlines()]
    found = {line.partition("| ")[2].strip() for line in lines}
    return sorted(found - {""})[:count]


def _encode(texts: list[str]) -> np.ndarray:
    """Encode texts, on one thread, those of about one length together."""
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    import torch
    from serving_models import Encoder

    torch.set_num_threads(1)
    model = Encoder().eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    made = np.empty((len(texts), 384), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            some = order[start : start + 64]
            made[some] = model(model.collate([model.preprocess(texts[i]) for i in some])).numpy()
            if not start % 6400:
                print(f"{start:,} of {len(order):,}", flush=True)
    return made


def main() -> None:
    """Encode WordNet's glosses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glosses", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100_500)
    arguments = parser.parse_args()
    np.save(arguments.out, _encode(_glosses(arguments.glosses, arguments.count)))


if __name__ == "__main__":
    main()
