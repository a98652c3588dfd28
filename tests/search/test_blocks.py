"""Blocked products give what float64 over all pairs gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from superduper_nb.search.blocks import BestPairs, blocked_topk
from superduper_nb.search.measures import Measure


def softmin(queries: Any, vectors: Any) -> Any:
    return -np.abs(queries[:, None, :] - vectors[None, :, :]).max(axis=2)


def measure_of(name: str) -> Measure:
    return Measure(name, softmin if name == "chebyshev" else None)


def all_scores(vectors: Any, measure: str) -> Any:
    """Score every pair in float64."""
    wide = vectors.astype(np.float64)
    if measure == "chebyshev":
        return np.asarray(softmin(wide, wide))
    if measure == "l2":
        return 1 / (1 + np.sqrt(((wide[:, None, :] - wide[None, :, :]) ** 2).sum(axis=2)))
    products = (wide[:, None, :] * wide[None, :, :]).sum(axis=2)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    return products / np.outer(lengths, lengths) if measure == "cosine" else products


def rows_of(kind: str) -> Any:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 12))
    if kind == "ties":
        vectors = np.repeat(vectors[:60], 5, axis=0)
    elif kind == "scales":
        vectors *= 10.0 ** random.integers(-20, 20, (300, 1))
    elif kind == "narrow":
        vectors = vectors[0] + 1e-4 * vectors
    elif kind == "ascending":
        vectors = np.ones((300, 12)) * np.arange(1, 301)[:, None] + 1e-3 * vectors
    return vectors.astype(np.float32)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superduper_nb.search.blocks._ROWS", 64)


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2", "chebyshev"])
@pytest.mark.parametrize("kind", ["plain", "ties", "scales", "narrow", "ascending"])
def test_neighbours_and_pairs(measure: str, kind: str) -> None:
    vectors = rows_of(kind)
    truth = all_scores(vectors, measure)
    np.fill_diagonal(truth, -np.inf)
    for n in (1, 7, 299, 500):
        wanted = -np.sort(-truth, axis=1)[:, : min(n, 299)]
        blocks = list(blocked_topk(vectors, n, measure_of(measure), block=128))
        assert [start for start, _, _ in blocks] == [0, 128, 256]
        found = np.concatenate([neighbours for _, neighbours, _ in blocks])
        scores = np.concatenate([scores for _, _, scores in blocks])
        np.testing.assert_allclose(scores, wanted, rtol=1e-12 if measure != "chebyshev" else 1e-6)
        np.testing.assert_allclose(np.take_along_axis(truth, found, axis=1), wanted, rtol=1e-6)
        assert all(len(set(row)) == len(row) for row in found.tolist())
    least = float(np.quantile(truth[np.isfinite(truth)], 0.9))
    best = BestPairs(vectors, least, measure_of(measure), 10**6)
    assert list(best.look(block=128)) == [128, 256, 300]
    first, second, scores = best.found()
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    sure = np.argwhere(np.triu(truth > least + 1e-6 * abs(least), 1))
    possible = np.argwhere(np.triu(truth > least - 1e-6 * abs(least), 1))
    assert set(map(tuple, sure)) <= pairs <= set(map(tuple, possible))
    few = BestPairs(vectors, least, measure_of(measure), 50)
    assert list(few.look(block=32))[-1] == 300
    assert few.least > least
    assert [column.tolist() for column in few.found()] == [column[:50].tolist() for column in (first, second, scores)]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(rows: int) -> None:
    vectors = np.eye(3, dtype=np.float32)[:rows]
    found = list(blocked_topk(vectors, 5, Measure("dot")))
    assert [neighbours.tolist() for _, neighbours, _ in found] == (
        [] if not rows else [[[]]] if rows == 1 else [[[1], [0]]]
    )
    best = BestPairs(vectors, 0.0, Measure("dot"), 10)
    assert list(best.look()) == ([rows] if rows else [])
    assert len(best.found()[0]) == (rows == 2)
