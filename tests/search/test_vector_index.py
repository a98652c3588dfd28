"""The index without MongoDB: large ones are searched by codes and answer like small ones."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions

from superduper_nb.search import coding, scan
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.measures import Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.scoring import Scorer
from superduper_nb.search.snapshots import Snapshot, read_snapshot, write_snapshot
from superduper_nb.search.subset import Subset

pytest.importorskip("turbovec")


def rows(n: int, d: int = 64, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    basis = random.standard_normal((24, d))
    made = random.standard_normal((n, 24)) @ basis + 0.2 * random.standard_normal((n, d))
    return made.astype(np.float32)


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make codes worth it for small indexes."""
    monkeypatch.setattr(coding, "_SCAN_FROM", 1)
    monkeypatch.setattr(coding, "_TAIL", 1000)
    monkeypatch.setattr(coding, "_SEGMENT", 8000)

    def make(measure: str, vectors: np.ndarray, step: int = 1000) -> VectorIndex:
        index = VectorIndex(Measure(measure))
        for start in range(0, len(vectors), step):
            index.put(list(range(start, min(start + step, len(vectors)))), vectors[start : start + step])
        index.settle()
        return index

    return make


def recall(index: VectorIndex, queries: np.ndarray, n: int = 10, **options: Any) -> float:
    truth = {**options, "exact": True}
    same = [len(set(index.search(q, n, **options).ids) & set(index.search(q, n, **truth).ids)) / n for q in queries]
    return float(np.mean(same))


def segments_of(index: VectorIndex) -> tuple[scan.Segment, ...]:
    view = index.view()
    assert view is not None
    return view.segments


def depth_of(index: VectorIndex) -> int:
    view = index.view()
    assert view is not None
    assert view.depth is not None
    return view.depth


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
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


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_a_search_among_some_is_complete_by_codes(coded: Any, measure: str) -> None:
    vectors = rows(20_000)
    index = coded(measure, vectors)
    random, queries = np.random.default_rng(7), rows(30, seed=1)
    alike = index.search(vectors[5], 4000, exact=True).ids
    for ids in (alike, random.permutation(20_000)[:2000].tolist(), [*range(9000, 12_000), "not there"]):
        subset = Subset(ids)
        for _ in range(2):
            assert {index.search(query, 10, among=subset).kind for query in queries} == {"scan"}
            assert recall(index, queries, among=subset) >= 0.99
            index.remove(ids[:50])  # the second time it is of another moment: some are gone, some have no codes yet
            index.put(ids[50:60], rows(10, seed=8))


def test_a_search_among_some_is_complete_while_codes_grow(coded: Any) -> None:
    vectors = rows(8400)
    index = coded("cosine", vectors[:6000])
    view = index.view()
    subset = Subset(list(range(0, 6000, 2)))
    places = subset.places({id: id for id in range(6000)}, object())
    scorer = Scorer(Measure("cosine"), IndexOptions())
    before = [scorer.among(view, places, query, 10, exact=False) for query in vectors[:20]]
    index.put(list(range(6000, 7200)), vectors[6000:7200])
    index.settle()
    after = [scorer.among(view, places, query, 10, exact=False) for query in vectors[:20]]
    assert [hits.ids for hits in after] == [hits.ids for hits in before]
    assert {hits.kind for hits in after} == {"scan"}


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_what_no_vector_resembles_is_looked_up_deeper_among_some(monkeypatch: pytest.MonkeyPatch, measure: str) -> None:
    monkeypatch.setattr(scan, "_OFTEN", 1)
    vectors = rows(33_000, 96)
    index = VectorIndex(Measure(measure), IndexOptions(kind="scan"))
    index.put(range(33_000), vectors)
    index.settle()
    unlike = np.random.default_rng(5).standard_normal((60, 96)).astype(np.float32)
    for ids in (index.search(vectors[7], 9000, exact=True).ids, list(range(0, 33_000, 2))):
        assert recall(index, unlike, among=Subset(ids)) >= 0.99


def test_a_batch_finds_what_each_query_finds_alone(coded: Any) -> None:
    vectors = rows(9500)
    index = coded("l2", vectors)
    index.put(["twin", "third"], vectors[[3, 3]])
    index.remove([8, 9])
    queries = [*vectors[:40], *rows(10, seed=9)]
    for n in (1, 10, 100):
        for together, query in zip(index.search_many(queries, n), queries, strict=True):
            alone = index.search(query, n)
            assert together.ids == alone.ids
            np.testing.assert_array_equal(together.scores, alone.scores)
            np.testing.assert_array_equal(together.distances, alone.distances)


def test_dead_rows_do_not_use_up_the_candidates(coded: Any) -> None:
    vectors = rows(10_000)
    index = coded("cosine", vectors)
    near = index.search(vectors[5], 2000, exact=True).ids
    index.remove(near)
    assert index.search(vectors[5], 10).ids == index.search(vectors[5], 10, exact=True).ids


def test_where_all_candidates_are_dead_those_behind_them_count_and_not_only_the_newest() -> None:
    vectors = rows(6000)
    vectors[:2000] = vectors[0] + 0.01 * vectors[:2000]
    vectors[2000:2200] = vectors[0] + 0.5 * vectors[2000:2200]
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="scan", depth=32))
    index.put(list(range(5500)), vectors[:5500])
    index.put(list(range(5500, 6000)), vectors[5500:])  # there is room behind it: nothing moves below
    index.settle()
    index.remove(list(range(2000)))
    index.put(list(range(7000, 7020)), rows(20, seed=11))
    truth = index.search(vectors[0], 10, exact=True).ids
    assert max(truth) < 7000
    assert index.search(vectors[0], 10).ids == truth
    assert [hits.ids for hits in index.search_many([vectors[0]] * 3, 10)] == [truth] * 3


def test_one_segment_is_searched_deeper_where_its_candidates_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "_SEGMENT", 8000)
    vectors = rows(18_000)
    vectors[:1500] = vectors[0] + 0.01 * vectors[:1500]
    vectors[1500:1700] = vectors[0] + 0.3 * vectors[1500:1700]
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="scan", depth=32))
    index.put(list(range(18_000)), vectors)
    index.settle()
    assert len(segments_of(index)) > 1
    index.remove(list(range(1500)))
    truth = index.search(vectors[0], 10, exact=True).ids
    assert max(truth) < 1700
    assert index.search(vectors[0], 10).ids == truth


def test_a_list_that_is_kept_keeps_no_codes(coded: Any) -> None:
    index = coded("cosine", rows(6000))
    subset = Subset(list(range(0, 6000, 2)))
    assert index.search(rows(1)[0], 10, among=subset).kind == "scan"
    codes = weakref.ref(segments_of(index)[0].codes)
    del index
    gc.collect()
    assert codes() is None
    assert len(subset) == 3000


def test_tight_clusters_are_searched_deeper_or_exactly(coded: Any) -> None:
    random = np.random.default_rng(4)
    centres = rows(20)
    index = coded("cosine", (centres[random.integers(0, 20, 8000)] + 0.01 * random.standard_normal((8000, 64))))
    assert recall(index, centres + 0.01) >= 0.99


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_codes_for_l2_do_with_vectors_far_from_the_origin_and_of_any_length(coded: Any, spread: float) -> None:
    lengths = np.random.default_rng(2).lognormal(0, spread, (10_000, 1))
    index = coded("l2", rows(10_000) * lengths + 1000)
    assert index.kind == "scan"
    assert recall(index, rows(40, seed=3) + 1000) >= 0.995


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_what_no_vector_resembles_is_looked_up_deeper(monkeypatch: pytest.MonkeyPatch, measure: str) -> None:
    monkeypatch.setattr(scan, "_OFTEN", 1)
    vectors = rows(33_000, 96)  # so many are searched in stages, in which low scores fall out
    index = VectorIndex(Measure(measure), IndexOptions(kind="scan"))
    index.put(range(33_000), vectors)
    index.settle()
    for _ in range(2):
        unlike = np.random.default_rng(5).standard_normal((60, 96)).astype(np.float32)
        assert recall(index, unlike) >= 0.99
        deep, usual = ([index.search(query, 10).candidates for query in some] for some in (unlike, vectors[:60] + 0.1))
        assert np.mean(usual) < np.mean(deep) / 2
        segment = segments_of(index)[0]
        segment.codes = scan.codes_of(segment.codes.to_bytes(), 33_000)  # they know it as well when read again


def test_where_most_searches_would_have_to_look_deeper_there_are_no_stages() -> None:
    random = np.random.default_rng(6)
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="scan"))
    index.put(range(33_000), random.standard_normal((33_000, 64)).astype(np.float32))
    index.settle()
    queries = random.standard_normal((60, 64)).astype(np.float32)
    assert recall(index, queries) >= 0.99
    assert np.mean([index.search(query, 10).candidates > depth_of(index) for query in queries]) < 0.2


@pytest.mark.parametrize("measure", ["cosine", "l2"])
def test_a_segment_is_coded_in_parts(coded: Any, monkeypatch: pytest.MonkeyPatch, measure: str) -> None:
    monkeypatch.setattr(coding, "_PART", 3000)
    vectors = rows(9000) + np.linspace(0, 4, 9000)[:, None]
    index = coded(measure, vectors, step=9000)
    assert [(segment.start, segment.stop) for segment in segments_of(index)] == [(0, 8000), (8000, 9000)]
    assert recall(index, (vectors[::300] + 0.3).astype(np.float32)) >= 0.99


def test_measures_of_the_users_own_are_exact() -> None:
    index = VectorIndex(Measure("own", lambda queries, vectors: -np.abs(queries[:, None] - vectors).sum(axis=2)))
    index.put(range(5000), rows(5000))
    index.settle()
    assert index.kind == "exact"


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_a_kind_that_is_asked_for(measure: str) -> None:
    vectors = rows(5000)
    found = {}
    for kind in ("exact", "scan", "auto"):
        index = VectorIndex(Measure(measure), IndexOptions(kind=kind))
        index.put(range(5000), vectors)
        index.settle()
        assert index.kind == index.search(vectors[3], 10).kind == ("scan" if kind == "scan" else "exact")
        found[kind] = [index.search(query, 10).ids for query in rows(20, seed=1)]
        assert len(index.search(vectors[3], 5000).ids) == 5000
    assert found["scan"] == found["exact"] == found["auto"]


def test_a_depth_that_is_asked_for(coded: Any) -> None:
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="scan", depth=200))
    index.put(range(5000), rows(5000))
    index.settle()
    assert index.search(rows(1, seed=1)[0], 10).candidates >= 200


def test_without_turbovec_search_is_exact(coded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "encoder", lambda measure: None)
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


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_codes_grow_in_place_and_what_was_seen_before_stays(coded: Any, measure: str, tmp_path: Path) -> None:
    vectors = rows(8400)
    index = coded(measure, vectors[:6000])
    before = index.view()
    assert before is not None
    index.put(list(range(6000, 7200)), vectors[6000:7200])
    index.settle()
    after = index.view()
    assert after is not None
    assert after.segments[-1].codes is before.segments[-1].codes
    assert recall(index, vectors[6000:6030]) >= 0.99
    scorer = Scorer(Measure(measure), IndexOptions())
    seen = [scorer.nearest(before, query, 10, exact=False) for query in vectors[6000:6030]]
    assert {hits.kind for hits in seen} == {"scan"}
    assert max(id for hits in seen for id in hits.ids) < 6000

    write_snapshot(tmp_path / "one", Snapshot({}, "", {}, [], before.rows), before, CodecOptions())
    again = VectorIndex(Measure(measure), rows=read_snapshot(tmp_path / "one", {}, CodecOptions()).rows)
    again.put(list(range(7200, 8400)), vectors[7200:])
    again.settle()
    restored = again.view()
    assert restored is not None
    assert [segment.stop for segment in restored.segments] == [7200]
    assert recall(again, vectors[7200:7230]) >= 0.99


@pytest.mark.parametrize("kind", ["exact", "scan"])
def test_memory_is_at_most_half_more_than_the_vectors(kind: Any) -> None:
    index = VectorIndex(Measure("cosine"), IndexOptions(kind=kind))
    for start in range(0, 20_000, 2500):
        index.put([ObjectId() for _ in range(2500)], rows(2500, 128, seed=start))
    index.settle()
    assert index.kind == kind
    assert index.nbytes <= 1.5 * 20_000 * 128 * 4
    assert index.nbytes == sum(index.memory.values())


def test_a_compact_one_answers_alike_and_holds_codes_only(tmp_path: Path) -> None:
    vectors, held = rows(16_000, 256), psutil.Process().memory_info
    index, before = VectorIndex(Measure("l2"), IndexOptions(compact=True), folder=tmp_path), held()
    index.put(range(8_000), vectors[:8_000])
    index.put(range(8_000, 16_000), vectors[8_000:])  # more room is needed
    index.remove(range(0, 16_000, 9))
    index.settle()
    assert index.memory["vectors"] + index.memory["codes"] < 0.2 * vectors.nbytes
    if sys.platform == "linux":
        assert held().shared - before.shared < 0.2 * vectors.nbytes  # pages of files
    assert index.kind == "scan"
    assert recall(index, rows(20, 256, seed=1)) == 1
    assert index.search(vectors[5], 3, among=Subset([5, 7, 9])).ids[0] == 5
    assert not list(tmp_path.iterdir())  # the file has no name: whatever happens, nothing is left of it


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


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_queries_at_the_ends_of_float32_are_answered_exactly(coded: Any, measure: str, scale: float) -> None:
    index, query = coded(measure, rows(5000)), rows(1, seed=3)[0] * np.float32(scale)
    assert index.kind == "scan"
    found = index.search(query, 5)
    assert (found.kind, found.ids) == ("exact", index.search(query, 5, exact=True).ids)
    assert index.search_many([query, rows(1, seed=4)[0]], 5)[0].kind == "exact"


@pytest.mark.parametrize("measure", ["dot", "l2"])
def test_vectors_too_large_for_codes_are_searched_exactly(coded: Any, measure: str) -> None:
    index = coded(measure, rows(5000) * np.float32(1e18))
    assert index.kind == "exact"
    index.put(["new"], rows(1, seed=5) * np.float32(1e18))
    index.settle()
    query = rows(1, seed=5)[0] * np.float32(1e18)
    assert index.search(query, 3).ids == index.search(query, 3, exact=True).ids
