"""An index with a graph finds what one without it finds, also after changes, unlike queries, and from its file."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson.codec_options import CodecOptions

import superduper_nb as sd
from superduper_nb.errors import InvalidInputError
from superduper_nb.search import coding, graph, graphing
from superduper_nb.search.graph import Graph
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.measures import Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.rows import View
from superduper_nb.search.snapshots import Snapshot, read_snapshot, write_snapshot
from superduper_nb.search.subset import Subset
from tests.search.conftest import Corpus
from tests.waiting import until

pytest.importorskip("turbovec")
pytest.importorskip("rabitqlib")

ROWS = 4000
IDENTITY = {"of": "this"}
OPTIONS: Any = CodecOptions()


def vectors(n: int, d: int = 64, seed: int = 0) -> np.ndarray:
    basis = np.random.default_rng(9).standard_normal((24, d))
    random = np.random.default_rng(seed)
    made = random.standard_normal((n, 24)) @ basis + 0.2 * random.standard_normal((n, d))
    return made.astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make codes and graphs worth it for small indexes."""
    monkeypatch.setattr(coding, "_SCAN_FROM", 1)
    monkeypatch.setattr(coding, "_TAIL", 500)
    monkeypatch.setattr(graph, "LEAST", 2000)


def index_of(rows: np.ndarray, measure: str = "cosine") -> VectorIndex:
    index = VectorIndex(Measure(measure), IndexOptions(kind="graph"))
    index.put(range(len(rows)), rows)
    index.settle()
    return index


def view_of(index: VectorIndex) -> View:
    view = index.view()
    assert view is not None
    return view


def graph_of(index: VectorIndex) -> Graph:
    found = view_of(index).graph
    assert found is not None
    return found


def recall(index: VectorIndex, queries: np.ndarray, n: int = 10) -> float:
    truth = [index.search(query, n, exact=True) for query in queries]
    found = [index.search(query, n) for query in queries]
    assert all(len(hits.ids) == len(true.ids) for hits, true in zip(found, truth, strict=True))
    return float(np.mean([len({*hits.ids} & {*true.ids}) / n for hits, true in zip(found, truth, strict=True)]))


@pytest.mark.parametrize("measure", ["cosine", "l2"])
@pytest.mark.parametrize("d", [64, 30])
def test_it_finds_what_the_exact_search_finds(measure: str, d: int) -> None:
    index, queries = index_of(vectors(ROWS, d), measure), vectors(60, d, seed=1)
    assert index.kind == "graph"
    for n in (1, 10, 40):
        assert recall(index, queries, n) >= 0.985
        hits, true = index.search(queries[0], n), index.search(queries[0], ROWS, exact=True)
        assert hits.kind == "graph"
        scores = dict(zip(true.ids, true.scores.tolist(), strict=True))
        assert hits.scores.tolist() == [scores[id] for id in hits.ids] == sorted(hits.scores, reverse=True)


def test_inner_products_of_vectors_of_like_lengths() -> None:
    rows = vectors(ROWS)
    index = index_of(rows / np.linalg.norm(rows, axis=1, keepdims=True), "dot")
    assert index.kind == "graph"
    assert recall(index, 7 * vectors(40, seed=1)) >= 0.99
    assert len(index.search(np.zeros(64, dtype=np.float32), 10).ids) == 10


def test_a_batch_finds_what_each_query_finds_alone() -> None:
    index, queries = index_of(vectors(ROWS)), list(vectors(40, seed=1))
    batch, alone = index.search_many(queries, 10), [index.search(query, 10) for query in queries]
    assert [(hits.ids, hits.kind) for hits in batch] == [(hits.ids, hits.kind) for hits in alone]
    for hits, other in zip(batch, alone, strict=True):
        np.testing.assert_array_equal(hits.scores, other.scores)


def test_changes_count_at_once_though_the_graph_stays_as_it_is() -> None:
    rows = vectors(ROWS)
    index = index_of(rows)
    before = graph_of(index)
    index.put(["new", 1], np.stack([rows[0], -rows[1]]))
    index.remove([0])
    assert index.search(rows[0], 1).ids == ["new"]
    assert index.search(rows[0], 1).kind == "graph"
    assert 1 not in index.search(rows[1], 5).ids
    index.put(range(10_000, 10_800), vectors(800, seed=2))
    index.settle()
    view = view_of(index)
    assert view.graph is before
    assert [segment.start for segment in view.segments] == [0, ROWS]
    assert index.search(vectors(800, seed=2)[7], 1).ids == [10_007]
    assert recall(index, vectors(40, seed=1)) >= 0.99


def test_where_what_it_finds_is_dead_the_codes_are_searched() -> None:
    rows = vectors(ROWS)
    index = index_of(rows)
    index.remove(index.search(rows[0], 600, exact=True).ids)
    hits = index.search(rows[0], 10)
    assert hits.kind != "graph"
    assert hits.ids == index.search(rows[0], 10, exact=True).ids


def test_where_many_tie_the_first_by_identifier_are_found() -> None:
    rows = vectors(ROWS)
    rows[1000:1400] = rows[5]
    index = index_of(rows)
    assert index.search(rows[5], 10).ids == index.search(rows[5], 10, exact=True).ids == [5, *range(1000, 1009)]


def test_a_query_unlike_all_vectors_is_scanned() -> None:
    rows, queries = vectors(ROWS), np.random.default_rng(3).standard_normal((40, 64)).astype(np.float32)
    directions = np.linalg.svd(rows, full_matrices=False)[2][:24]
    unlike = queries - queries @ directions.T @ directions
    index, scanned = index_of(rows), VectorIndex(Measure("cosine"), IndexOptions(kind="scan"))
    scanned.put(range(ROWS), rows)
    scanned.settle()
    assert "graph" not in {index.search(query, 10).kind for query in unlike}
    assert recall(index, unlike) >= recall(scanned, unlike)


def test_a_query_between_vectors_is_scanned() -> None:
    index, (one, other) = index_of(vectors(ROWS)), vectors(2, seed=1)
    hits = index.search((one + other) / 2, 10, unusual=True)
    assert hits.kind == "scan"
    assert hits.ids == index.search((one + other) / 2, 10, exact=True).ids


def test_one_in_pieces_is_passed_over() -> None:
    index = index_of(vectors(ROWS))

    class Pieces:
        def search(self, *_: Any) -> Any:
            raise RuntimeError("QuantizedGraph search could not produce k results")

    graph_of(index)._index = Pieces()
    hits = index.search(vectors(1, seed=1)[0], 10)
    assert hits.kind == "scan"
    assert hits.ids == index.search(vectors(1, seed=1)[0], 10, exact=True).ids


def test_one_in_pieces_hides_nothing_behind_what_came_later() -> None:
    index, queries = index_of(vectors(ROWS)), vectors(40, seed=1)
    index.put(range(ROWS, ROWS + 900), vectors(900, seed=2))
    index.settle()
    assert len(view_of(index).parts(32)) == 2

    class Pieces:
        def search(self, *_: Any) -> Any:
            raise RuntimeError("QuantizedGraph search could not produce k results")

    graph_of(index)._index = Pieces()
    assert recall(index, queries) >= 0.995


def test_it_is_not_used_where_it_would_miss_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_EFFORTS", (10,))
    index = index_of(np.random.default_rng(0).standard_normal((ROWS, 64)).astype(np.float32))
    assert index.kind == "scan"
    index.put(["new"], vectors(1))
    index.settle()
    assert view_of(index).rows.planned == ROWS  # it is not tried again for every change


@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_numbers_at_the_ends_of_float32(measure: str, scale: float) -> None:
    index = index_of(vectors(3000) * np.float32(scale), measure)
    assert index.kind == ("scan" if scale < 1 else "exact")
    query = vectors(1, seed=1)[0] * np.float32(scale)
    assert index.search(query, 5).ids == index.search(query, 5, exact=True).ids


def test_among_some_the_codes_are_searched() -> None:
    index, query = index_of(vectors(ROWS)), vectors(1, seed=1)[0]
    some = Subset(range(0, ROWS, 2))
    hits = index.search(query, 10, among=some)
    assert hits.kind == "scan"
    assert hits.ids == index.search(query, 10, among=some, exact=True).ids


def test_it_is_built_anew_when_a_quarter_has_come() -> None:
    rows = vectors(ROWS + 2000)
    index = index_of(rows[:ROWS])
    index.put(range(ROWS, len(rows)), rows[ROWS:])
    index.settle()
    view = view_of(index)
    assert graph_of(index).stop == len(rows)
    assert [(segment.start, segment.stop) for segment in view.segments] == [(0, ROWS), (ROWS, len(rows))]
    assert recall(index, vectors(40, seed=1)) >= 0.99


def test_what_comes_while_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    building, go_on = threading.Event(), threading.Event()
    made = graph.made

    def waits(*given: Any) -> Graph | None:
        building.set()
        assert go_on.wait(60)
        return made(*given)

    monkeypatch.setattr(graph, "made", waits)
    rows = vectors(ROWS + 900)
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="graph"))
    index.put(range(ROWS), rows[:ROWS])
    index.tend()
    assert building.wait(60)
    for start in range(ROWS, len(rows), 300):  # codes are made meanwhile
        index.put(range(start, start + 300), rows[start : start + 300])
        index.tend()
        until(lambda: not index.tending)
    assert index.kind == "scan"
    index.remove(range(50))
    go_on.set()
    index.settle()
    assert graph_of(index).stop == ROWS
    assert [segment.start for segment in view_of(index).segments][:2] == [0, ROWS]
    assert recall(index, vectors(40, seed=1)) >= 0.99


def test_what_came_while_it_was_built_is_seen_to_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graph.made

    def grows(*given: Any) -> Graph | None:
        monkeypatch.setattr(graph, "made", made)
        index.put(range(ROWS, 2 * ROWS), vectors(ROWS, seed=4))
        index.tend()
        return made(*given)

    monkeypatch.setattr(graph, "made", grows)
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="graph"))
    index.put(range(ROWS), vectors(ROWS))
    index.tend()  # and nothing changes any more

    def grown() -> bool:
        found = view_of(index).graph
        return found is not None and found.stop == 2 * ROWS

    until(grown)


def test_rows_that_moved_meanwhile_have_no_use_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graph.made

    def moves(*given: Any) -> Graph | None:
        monkeypatch.setattr(graph, "made", made)
        index.remove(range(3000))
        index.put(range(20_000, 26_000), vectors(6000, seed=4))
        return made(*given)

    monkeypatch.setattr(graph, "made", moves)
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="graph"))
    index.put(range(ROWS), vectors(ROWS))
    index.settle()
    assert graph_of(index).stop == len(index)
    assert recall(index, vectors(40, seed=1)) >= 0.99


def test_one_that_is_dropped_before_its_turn_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    monkeypatch.setattr(graph, "made", lambda rows, *_: built.append(len(rows)))
    index = VectorIndex(Measure("cosine"), IndexOptions(kind="graph"))
    index.put(range(ROWS), vectors(ROWS))
    with graphing._ONE_AT_A_TIME:  # another one's is being built
        index.tend()
        grapher, gone = index._coder._grapher, weakref.ref(index)
        until(lambda: grapher.builder is not None)
        del index
        until(lambda: gc.collect() >= 0 and gone() is None)  # the thread that made the codes is ending
    until(lambda: grapher.builder is None)
    assert not built


def test_where_codes_are_of_no_use_any_more_neither_is_it(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(vectors(ROWS))
    assert index.memory["graph"]
    monkeypatch.setattr(coding, "calibrated", lambda *_: None)  # of what comes, no depth finds enough
    index.put(range(ROWS, ROWS + 600), vectors(600, seed=4))
    index.settle()
    assert (index.kind, index.memory["graph"]) == ("exact", 0)
    assert recall(index, vectors(5, seed=5)) == 1


def test_searches_beside_changes_and_graphs_that_are_built_anew() -> None:
    rows = vectors(ROWS)
    index, stop = index_of(rows), threading.Event()
    wrong: list[Any] = []
    kinds: set[str] = set()

    def search() -> None:
        while not stop.is_set():
            hits = index.search(rows[17], 5)
            kinds.add(hits.kind)
            if hits.ids[0] != 17 or len(hits.ids) != 5 or 18 in hits.ids:
                wrong.append(hits)

    index.remove([18])
    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(12):
        index.put(range(10_000 + 400 * i, 10_400 + 400 * i), -rows[:400])
        index.remove(range(10_000 + 400 * i, 10_100 + 400 * i))
        index.tend()
    index.settle()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert "graph" in kinds
    assert graph_of(index).stop > ROWS


def test_its_memory_is_said(tmp_path: Path) -> None:
    index = index_of(vectors(ROWS))
    saved = graph_of(index).kept(tmp_path / "a.index")
    assert index.memory["graph"] == pytest.approx(saved.path.stat().st_size, rel=0.02)
    assert index.nbytes == sum(index.memory.values())


# --- its file ------------------------------------------------------------------------------------------------------


def write(path: Path, index: VectorIndex) -> None:
    view = view_of(index)
    write_snapshot(path, Snapshot(IDENTITY, "s", {"_data": "82"}, [], view.rows), view, OPTIONS)


def again(path: Path) -> VectorIndex:
    rows = read_snapshot(path, IDENTITY, OPTIONS).rows
    return VectorIndex(Measure("cosine"), IndexOptions(kind="graph"), rows)


def test_it_is_read_from_its_file_instead_of_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, path = index_of(vectors(ROWS)), tmp_path / "a.index"
    index.put(["new"], vectors(1, seed=5))
    index.remove([4])
    write(path, index)
    monkeypatch.setattr(graph, "made", None)
    found = again(path)
    assert found.kind == "scan"  # answers at once
    found.settle()
    assert (found.kind, found.has_new_graph) == ("graph", False)
    queries = vectors(30, seed=1)
    assert [found.search(q, 10).ids for q in queries] == [index.search(q, 10).ids for q in queries]
    (kept,) = tmp_path.glob("*.graph")
    assert kept.stat().st_mode & 0o777 == 0o600
    write(path, found)
    assert list(tmp_path.glob("*.graph")) == [kept]


def test_a_snapshot_that_is_written_before_it_is_read_keeps_it(tmp_path: Path) -> None:
    index, path = index_of(vectors(ROWS)), tmp_path / "a.index"
    write(path, index)
    (kept,) = tmp_path.glob("*.graph")
    write(path, again(path))  # nothing has asked for its graph yet
    assert list(tmp_path.glob("*.graph")) == [kept]
    found = again(path)
    found.settle()
    assert (found.kind, found.has_new_graph) == ("graph", False)


def test_another_takes_its_place(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.index", vectors(ROWS + 3000)
    index = index_of(rows[:ROWS])
    write(path, index)
    (before,) = tmp_path.glob("*.graph")
    index.put(range(ROWS, len(rows)), rows[ROWS:])
    index.settle()
    assert index.has_new_graph
    write(path, index)
    (after,) = tmp_path.glob("*.graph")
    assert after != before
    assert sorted(tmp_path.iterdir()) == sorted([path, after])


@pytest.mark.parametrize("damage", ["a bit", "cut off", "empty", "gone"])
def test_a_damaged_one_is_built_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    index, path = index_of(vectors(ROWS)), tmp_path / "a.index"
    write(path, index)
    (kept,) = tmp_path.glob("*.graph")
    data = kept.read_bytes()
    middle = len(data) // 2
    damaged = {
        "a bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "cut off": data[:middle],
        "empty": b"",
    }
    kept.unlink() if damage == "gone" else kept.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        found = again(path)
        found.settle()
    assert "can't be read from its file: it is built anew" in caplog.text
    assert (found.kind, found.has_new_graph) == ("graph", True)
    assert recall(found, vectors(30, seed=1)) >= 0.99


def test_a_disk_that_is_full_for_it_has_room_for_the_snapshot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index, path = index_of(vectors(ROWS)), tmp_path / "a.index"

    class Full:
        num_points, dim = ROWS, 64

        def save(self, path: str) -> None:
            Path(path).write_bytes(b"half")
            raise RuntimeError("Failed to write the index")

    graph_of(index)._index = Full()
    with caplog.at_level(logging.WARNING):
        write(path, index)
    assert "was not saved: Failed to write" in caplog.text
    assert list(tmp_path.iterdir()) == [path]
    assert not index.has_new_graph  # it is not tried again for its own sake
    found = again(path)
    found.settle()
    assert (found.kind, found.has_new_graph) == ("graph", True)


# --- the service ---------------------------------------------------------------------------------------------------


def test_an_index_of_a_collection(
    corpus: Callable[..., Corpus], home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = corpus("cosine", index=IndexOptions(kind="graph"), snapshots=home / "indexes")
    monkeypatch.setattr("superduper_nb.search.keeper._WORTH", 1)
    monkeypatch.setattr("superduper_nb.search.keeper._EVERY_S", 0.0)
    made.insert(vectors(3000))

    def described() -> dict[str, Any]:
        (each,) = made.engine.indexes()
        return each

    query = vectors(1, seed=1)[0]
    made.check(query)
    until(lambda: described()["kind"] == "graph")
    made.check(query)
    made.check(query, 10, {"x": 0})
    assert made.ask(like={"x": query.tolist()}).strategy == "graph"
    assert made.ask(like=[{"x": query.tolist()}, {"x": (query + 1).tolist()}]).strategy == "scan"
    assert made.ask(like={"x": query.tolist()}, unlike={"x": (query + 1).tolist()}).strategy == "scan"
    until(lambda: list((home / "indexes").glob("*.graph")))
    made.docs.delete_many({"_id": {"$lt": 20}})
    made.check(query)


def test_without_the_library_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rabitqlib", None)
    assert index_of(vectors(ROWS)).kind == "scan"
    monkeypatch.setattr("superduper_nb.search.options.find_spec", lambda _: None)
    with pytest.raises(InvalidInputError, match=r"superduper-nb\[graph\]"):
        sd.IndexOptions(kind="graph").check_here()
    sd.IndexOptions(kind="scan").check_here()


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(InvalidInputError, match="choose one"):
        sd.IndexOptions(kind="graph", compact=True)
    with pytest.raises(InvalidInputError, match="kind='graph'"):
        sd.IndexOptions(kind="graph").check_measure("mine")
