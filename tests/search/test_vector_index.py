"""The index without MongoDB: large ones are searched by codes and answer like small ones."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from superduper_nb.search import index as module
from superduper_nb.search import scan
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.measures import Measure

pytest.importorskip("turbovec")


def rows(n: int, d: int = 64, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    basis = random.standard_normal((24, d))
    made = random.standard_normal((n, 24)) @ basis + 0.2 * random.standard_normal((n, d))
    return made.astype(np.float32)


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make codes worth it for small indexes."""
    monkeypatch.setattr(module, "_SCAN_FROM", 1)
    monkeypatch.setattr(module, "_TAIL", 1000)
    monkeypatch.setattr(module, "_SEGMENT", 8000)

    def make(measure: str, vectors: np.ndarray, step: int = 1000) -> VectorIndex:
        index = VectorIndex(Measure(measure))
        for start in range(0, len(vectors), step):
            index.put(list(range(start, min(start + step, len(vectors)))), vectors[start : start + step])
        index.settle()
        return index

    return make


def recall(index: VectorIndex, queries: np.ndarray, n: int = 10, **options: Any) -> float:
    same = [len(set(index.search(q, n, **options).ids) & set(index.search(q, n, exact=True).ids)) / n for q in queries]
    return float(np.mean(same))


@pytest.mark.parametrize("measure", ["cosine", "dot"])
@pytest.mark.parametrize("d", [64, 61])
def test_codes_find_what_the_exact_search_finds(coded: Any, measure: str, d: int) -> None:
    index = coded(measure, rows(20_000, d))
    assert index.kind == "scan"
    queries = rows(60, d, seed=1)
    assert recall(index, queries) >= 0.995
    hits = index.search(queries[0], 10)
    assert hits.kind == "scan"
    np.testing.assert_array_equal(hits.scores, index.search(queries[0], 10, exact=True).scores)


def test_what_has_just_been_written_is_found_without_codes_for_it(coded: Any) -> None:
    vectors = rows(10_000)
    index = coded("cosine", vectors)
    index.put(["new"], vectors[:1])
    index.remove([0])
    index.put([1], -vectors[1:2])
    assert index.search(vectors[0], 1).ids == ["new"]
    assert index.search(vectors[0], 1).kind == "scan"
    assert 1 not in index.search(vectors[1], 5).ids
    assert recall(index, rows(40, seed=2)) >= 0.99


def test_dead_rows_do_not_use_up_the_candidates(coded: Any) -> None:
    vectors = rows(10_000)
    index = coded("cosine", vectors)
    near = index.search(vectors[5], 2000, exact=True).ids
    index.remove(near)
    assert index.search(vectors[5], 10).ids == index.search(vectors[5], 10, exact=True).ids


def test_tight_clusters_are_searched_deeper_or_exactly(coded: Any) -> None:
    random = np.random.default_rng(4)
    centres = rows(20)
    index = coded("cosine", (centres[random.integers(0, 20, 8000)] + 0.01 * random.standard_normal((8000, 64))))
    assert recall(index, centres + 0.01) >= 0.99


def test_l2_and_measures_of_the_users_own_are_exact(coded: Any) -> None:
    assert coded("l2", rows(5000)).kind == "exact"


def test_without_turbovec_search_is_exact(coded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "encoder", lambda measure: None)
    index = coded("cosine", rows(5000))
    assert index.kind == "exact"
    assert len(index.search(rows(1)[0], 10).ids) == 10


def test_segments_are_merged_and_follow_a_move(coded: Any) -> None:
    vectors = rows(12_000)
    index = coded("cosine", vectors, step=500)
    assert index._rows is not None
    assert len(index._rows.segments) <= 5
    index.remove(list(range(0, 12_000, 2)))
    index.put(list(range(12_000, 20_000)), rows(8000, seed=3))  # more room is needed: the dead are left behind
    index.settle()
    assert index._rows.count == len(index) == 14_000
    assert recall(index, rows(30, seed=5)) >= 0.99


def test_memory_is_at_most_half_more_than_the_vectors(coded: Any) -> None:
    index = coded("cosine", rows(20_000))
    assert index.nbytes <= 1.5 * 20_000 * 64 * 4


def test_changes_beside_searches(coded: Any) -> None:
    vectors = rows(6000)
    index, stop, wrong = coded("cosine", vectors), threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            hits = index.search(vectors[17], 5)
            if hits.ids[0] != 17 or len(hits.ids) != 5:
                wrong.append(hits)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(60):
        index.put(list(range(10_000 + 200 * i, 10_200 + 200 * i)), -vectors[:200])
        index.remove(list(range(10_000 + 200 * i, 10_150 + 200 * i)))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_equal_identifiers_in_one_batch_are_one() -> None:
    index = VectorIndex(Measure("dot"))
    index.put([1, 2, 1.0], np.array([[1.0], [2.0], [3.0]]))
    assert len(index) == 2
    assert index.search(np.ones(1, "f4"), 9).scores.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_the_bound_on_the_error_of_float32_holds(measure: str) -> None:
    random = np.random.default_rng(6)
    for d in (1, 3, 64, 500):
        vectors = (random.standard_normal((300, d)) * 10.0 ** random.integers(-4, 5, (300, 1))).astype(np.float32)
        query = random.standard_normal(d).astype(np.float32)
        it = Measure(measure)
        scores, error = it.rough(query, vectors, np.linalg.norm(vectors.astype(np.float64), axis=1).astype(np.float32))
        wide, q = vectors.astype(np.float64), query.astype(np.float64)
        true = {"cosine": it.exact(query, vectors)[0], "dot": wide @ q, "l2": 2 * wide @ q - (wide**2).sum(1)}[measure]
        assert (np.abs(scores - true) <= error).all()


def test_depths_grow() -> None:
    assert list(scan.DEPTHS) == sorted(scan.DEPTHS)
