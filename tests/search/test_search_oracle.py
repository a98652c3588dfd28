"""Every search gives what brute force over MongoDB in float64 gives."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import numpy as np
import pytest
from bson import Decimal128, Int64, ObjectId, Timestamp
from bson.binary import Binary
from bson.max_key import MaxKey
from bson.min_key import MinKey

from superduper_nb.search import IndexOptions
from superduper_nb.search.ids import id_key, sort_key
from superduper_nb.search.measures import BUILTIN
from superduper_nb.search.plan import Matching
from tests.search.conftest import Corpus, packed
from tests.waiting import until


def softmin(queries: Any, vectors: Any) -> Any:
    """Return a measure that is none of the built-in ones."""
    return -np.abs(queries[:, None, :] - vectors[None, :, :]).max(axis=2)


MEASURES = ["cosine", "dot", "l2", "chebyshev"]


KINDS = {"scan": IndexOptions(kind="scan"), "compact": IndexOptions(compact=True)}


def filled(
    corpus: Any, measure: str, rows: int = 3000, d: int = 16, seed: int = 0, index: IndexOptions | None = None
) -> tuple[Corpus, Any]:
    made = corpus(measure, function=softmin if measure == "chebyshev" else None, index=index)
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, d)).astype(np.float32)
    vectors[rows // 2 : rows // 2 + 50] = vectors[:50]  # ties
    made.insert(vectors, n=random.permutation(rows).tolist(), even=[i % 2 == 0 for i in range(rows)])
    return made, random


@pytest.mark.parametrize("measure", MEASURES)
def test_search_equals_brute_force(corpus: Any, measure: str) -> None:
    made, random = filled(corpus, measure)
    for n in (1, 7, 100):
        made.check(random.standard_normal(16), n)
        made.check(random.standard_normal(16), n, exact=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("measure", BUILTIN)
def test_every_kind_equals_brute_force(corpus: Any, measure: str, kind: str) -> None:
    made, random = filled(corpus, measure, index=KINDS[kind])
    until(lambda: made.ask([1.0] * 16).strategy == "scan")
    for matching in (3000, 1500, 30, 3):
        filter = {"n": {"$lt": matching}} if matching < 3000 else None
        for n in (7, 100):
            made.check(random.standard_normal(16), n, filter)
            made.check(random.standard_normal(16), n, filter, exact=True)
    made.docs.delete_many({"even": True})
    made.compute({1: random.standard_normal(16)})
    made.check(random.standard_normal(16), 10)
    found = made.ask(vector=random.standard_normal((20, 16)).tolist(), n=5)
    assert len(found.ids) == 20


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("matching", [0, 3, 30, 300, 1500, 3000])
def test_if_few_match_exactly_those_come_back(corpus: Any, measure: str, matching: int) -> None:
    made, random = filled(corpus, measure)
    for n in (1, 10, 64, 1000):
        reply = made.check(random.standard_normal(16), n, {"n": {"$lt": matching}})
        assert len(reply.ids) == min(n, matching)
        made.check(random.standard_normal(16), n, {"n": {"$lt": matching}}, exact=True)


def test_the_plan_learns_how_many_match_and_stays_complete_where_that_changes(corpus: Any) -> None:
    made, random = filled(corpus, "cosine")
    query = random.standard_normal(16)
    seen = {}
    for share, matching in {"most": 2500, "a tenth": 300, "few": 5, "none": 0}.items():
        filter = {"n": {"$lt": matching}}
        made.check(query, 10, filter)
        seen[share] = made.check(query, 10, filter).strategy
    assert seen == {
        "most": "exact, then filter",
        "a tenth": "exact, then filter",
        "few": "filter, then exact",
        "none": "filter, then exact",
    }
    for update in ({"$set": {"n": 4}}, {"$set": {"n": 2999}}):  # all match what few matched; then none do
        made.docs.update_many({}, update)
        for matching in (5, 300, 2500):
            made.check(query, 10, {"n": {"$lt": matching}})


def test_a_filter_that_is_asked_for_again_is_listed_once_and_searched_by_codes(corpus: Any, asked: list[Any]) -> None:
    made, random = filled(corpus, "cosine", index=KINDS["scan"])
    filter = {"n": {"$lt": 1500}}
    until(lambda: made.ask([1.0] * 16).strategy == "scan")
    until(lambda: made.check(random.standard_normal(16), 10, filter).strategy == "filter, then scan")
    asked.clear()
    for n in (1, 10, 100):
        made.check(random.standard_normal(16), n, filter)
    assert not asked
    made.docs.update_many({"n": {"$lt": 700}}, {"$set": {"n": 2000}})
    made.check(random.standard_normal(16), 100, filter)
    assert asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what MongoDB is asked of filters."""
    asked: list[Any] = []
    ids = Matching._ids
    monkeypatch.setattr(Matching, "_ids", lambda self, *query: asked.append(query) or ids(self, *query))
    return asked


def test_a_new_filter_begins_where_one_of_its_shape_did(corpus: Any, asked: list[Any]) -> None:
    made, random = filled(corpus, "cosine")
    query = random.standard_normal(16)
    questions = []
    for filter in ({"n": {"$lt": 300}}, {"n": {"$lt": 301}}, {"n": {"$lte": 300}}):
        asked.clear()
        made.check(query, 10, filter)
        questions.append(len(asked))
    assert questions[1] == 1  # as many candidates as the first needed in the end
    assert questions[0] == questions[2] > 1


def test_a_new_filter_is_listed_at_once_where_few_passed_one_of_its_shape(corpus: Any, asked: list[Any]) -> None:
    made, random = filled(corpus, "cosine")
    query = random.standard_normal(16)
    made.check(query, 10, {"n": {"$lt": 5}})
    for matching, questions in (
        (6, 1),
        (90, 1),
        (2500, 2),
    ):  # the last one passes so many: a beginning of the list shows
        made.check(query, 10, {"n": {"$lt": 5}})
        asked.clear()
        found = made.check(query, 10, {"n": {"$lt": matching}})
        assert (len(asked), found.strategy == "filter, then exact") == (questions, questions == 1)


def test_filters_that_agree_with_the_ranking_or_go_against_it(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[i / 3000, 1.0] for i in range(3000)])
    for low in (0, 10, 2900, 2999):
        made.check([1.0, 0.0], 10, {"_id": {"$lte": low}})
        made.check([1.0, 0.0], 10, {"_id": {"$gte": low}})
        made.check([-1.0, 0.0], 10, {"$or": [{"_id": low}, {"_id": {"$mod": [700, 1]}}]})


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_equal_vectors_come_in_the_order_of_their_id(corpus: Any, measure: str) -> None:
    made = corpus(measure)
    made.insert(np.ones((500, 5)), ids=np.random.default_rng(1).permutation(500).tolist())
    assert made.ask([1.0] * 5, n=20).ids == list(range(20))
    assert made.ask([1.0] * 5, n=20, filter={"_id": {"$gte": 100}}).ids == list(range(100, 120))


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_numbers_near_the_ends_of_float32(corpus: Any, measure: str, scale: float) -> None:
    made = corpus(measure)
    random = np.random.default_rng(2)
    vectors = random.standard_normal((400, 8)) * scale * 10.0 ** random.integers(-3, 4, (400, 1))
    made.insert(vectors)
    for query in random.standard_normal((4, 8)) * scale:
        made.check(query, 10)


def test_scores_that_float32_can_not_tell_apart(corpus: Any) -> None:
    made = corpus("cosine")
    random = np.random.default_rng(3)
    base = random.standard_normal(64)
    made.insert(base + 1e-4 * random.standard_normal((2000, 64)))
    made.check(base, 10)
    made.check(base, 10, {"_id": {"$mod": [3, 0]}})


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_zero_vectors(corpus: Any, measure: str) -> None:
    made = corpus(measure)
    made.insert([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    reply = made.check([1.0, 0.0], 10)
    assert len(reply.ids) == (2 if measure == "cosine" else 3)  # without a direction there is no cosine


def test_distances_for_l2_only(corpus: Any) -> None:
    made = corpus("l2")
    made.insert([[0.0, 0.0], [3.0, 4.0]])
    reply = made.ask([0.0, 0.0])
    assert reply.distances == [0.0, 5.0]
    assert reply.scores == [1.0, pytest.approx(1 / 6)]


def test_min_score(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[float(i)] for i in range(10)])
    assert made.ask([1.0], min_score=7.0).ids == [9, 8, 7]
    assert made.ask([1.0], min_score=99.0).ids == []
    assert made.ask([1.0], min_score=7.0, filter={"_id": {"$ne": 8}}).ids == [9, 7]


IDS = [
    None, 1, 2.5, Int64(2**40), Decimal128("7.25"), -3, "text", "täxt", "", b"bytes", b"longer bytes",
    Binary(b"\1\2", 5), uuid.UUID(int=7), ObjectId(b"abcdefghijkl"), True, False, Timestamp(3, 4),
    datetime.datetime(2020, 1, 1), datetime.datetime(1960, 1, 1), {"a": 1, "b": [1, 2]}, {"a": 1}, {"b": 0}, {"a": "1"},
    {"a": Int64(300)}, {"a": {"b": "x" * 300}}, MinKey(), MaxKey(),
]  # fmt: skip


def as_stored(id: Any) -> Any:
    return Binary.from_uuid(id) if isinstance(id, uuid.UUID) else id


def test_ids_of_any_type_are_found_and_ordered_as_mongodb_orders_them(corpus: Any) -> None:
    made = corpus("dot")
    ids = [as_stored(id) for id in IDS]
    made.insert([[1.0]] * len(ids), ids=ids)
    in_order = [document["_id"] for document in made.docs.find({}, {"_id": 1}).sort("_id", 1)]
    assert made.ask([1.0], n=100).ids == in_order
    assert sorted(ids, key=sort_key) == in_order
    for id in ids:
        assert made.ask([1.0], n=100, filter={"_id": id}).ids == [id]
        if id is not None:
            assert len(made.ask(id=id, n=100).ids) == len(ids)
    made.docs.delete_many({"_id": {"$in": ids[::2]}})
    assert made.ask([1.0], n=100).ids == [id for id in in_order if id_key(id) in map(id_key, ids[1::2])]


def test_ids_that_mongodb_holds_to_be_equal_are_one() -> None:
    assert id_key(1) == id_key(1.0) == id_key(Int64(1)) == id_key(Decimal128("1"))
    assert id_key({"a": 1}) == id_key({"a": Int64(1)})
    assert id_key(True) != id_key(1)
    assert id_key("1") != id_key(1)
    assert id_key({"a": 1, "b": 2}) != id_key({"b": 2, "a": 1})
    assert id_key(b"x") != id_key(Binary(b"x", 5))
    assert id_key(float("nan")) == id_key(Decimal128("NaN"))


@pytest.mark.parametrize(
    "stored",
    [
        [3.0, 4.0],
        [3, 4],
        Binary.from_vector([3, 4], dtype=__import__("bson").binary.BinaryVectorDtype.INT8),
        {"_content": {"type": "array", "bytes": b"nd1 float64 2\n" + np.array([3.0, 4.0]).tobytes()}},
        {"_content": {"type": "tensor", "bytes": b"nd1 float16 2\n" + np.array([3, 4], "f2").tobytes()}},
        {"_content": {"type": "tensor", "bytes": b"nd1 bfloat16 2\n\x40\x40\x80\x40"}},
    ],
    ids=["floats", "ints", "int8", "array", "half", "bfloat16"],
)
def test_every_stored_form_of_a_vector(corpus: Any, stored: Any) -> None:
    made = corpus("l2")
    made.docs.insert_many([made.document("it", stored), made.document("other", [9.0, 9.0])])
    assert made.ask([3.0, 4.0]).ids == ["it", "other"]
    assert made.ask([3.0, 4.0]).distances[0] == 0


BAD = [
    [1.0, float("nan")], [1.0, float("inf")], [1.0], [1.0, 2.0, 3.0], [], ["a", "b"], [1e300, 1.0], [[1.0, 2.0]],
    {"a": 1},
    Binary(b"\x27\x00abc", 9), Binary(b"", 9), Binary(b"xx", 0), {"_content": {"type": "array", "bytes": b"junk"}},
    {"_content": {"type": "image", "bytes": b"nd1"}}, {"_content": {"url": "http://x/"}}, [True, False],
]  # fmt: skip


@pytest.mark.parametrize("stored", BAD, ids=map(repr, range(len(BAD))))
def test_what_is_no_vector_is_left_out_and_counted(corpus: Any, stored: Any) -> None:
    made = corpus("l2")
    made.docs.insert_one(made.document("first", [1.0, 2.0]))
    made.docs.insert_one(made.document("bad", stored))
    assert made.ask([1.0, 2.0]).ids == ["first"]
    assert made.engine.describe(made.database.name, "docs", "near")["skipped"] == 1
    made.docs.replace_one({"_id": "bad"}, made.document("bad", [1.0, 3.0]))
    assert made.ask([1.0, 2.0]).ids == ["first", "bad"]
    made.docs.replace_one({"_id": "bad"}, made.document("bad", stored))
    assert made.ask([1.0, 2.0]).ids == ["first"]


def test_failed_and_missing_outputs_are_not_found(corpus: Any) -> None:
    made = corpus()
    made.insert([[1.0, 0.0]])
    failed = made.document("failed", packed([1.0, 0.0]))
    failed["_sddb"]["outputs"]["m/x"]["error"] = "ValueError: bad"
    made.docs.insert_many([failed, {"_id": "none", "x": 1}])
    assert made.ask([1.0, 0.0]).ids == [0]
