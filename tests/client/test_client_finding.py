"""Finding: every argument, the cursor's manners, and what was wrong in the original."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
from bson import Decimal128, ObjectId
from bson.binary import Binary, BinaryVectorDtype
from client_models import double, length, words
from pymongo import ASCENDING, DESCENDING, DeleteOne, UpdateOne
from pymongo.errors import InvalidOperation
from pymongo.results import InsertManyResult

import superduper_nb as sd
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.jobs.duplicates import DuplicatesWork

ROWS = [
    {"_id": 0, "text": "warm red wool scarf", "price": 29},
    {"_id": 1, "text": "warm winter coat", "price": 120},
    {"_id": 2, "text": "wool hat", "price": 19},
    {"_id": 3, "text": "warm gloves", "price": 35},
    {"_id": 4, "text": "straw hat", "price": 15},
    {"_id": 5, "text": "swimming trunks", "price": 22},
]


@pytest.fixture
def shop(findable: sd.Collection[Any]) -> sd.Collection[Any]:
    findable.insert_many(copy.deepcopy(ROWS))
    return findable


def ranked(query: str, rows: list[dict[str, Any]]) -> list[tuple[Any, float]]:
    """Rank by brute force: best first, ties by ``_id``."""

    def score(row: dict[str, Any]) -> float:
        a, b = words(query), words(row["text"])
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    return sorted(((row["_id"], score(row)) for row in rows), key=lambda pair: (-round(pair[1], 5), pair[0]))


def ids(found: Any) -> list[Any]:
    return [document["_id"] for document in found]


BEST = [id for id, _ in ranked("warm hat", ROWS)]


def test_like_finds_the_nearest_in_order_with_scores(shop: sd.Collection[Any]) -> None:
    found = list(shop.find(like={"text": "warm hat"}, n=4))
    assert ids(found) == BEST[:4]
    assert [d["_score"] for d in found] == pytest.approx([score for _, score in ranked("warm hat", ROWS)[:4]], abs=1e-5)
    assert ids(shop.find({"$like": {"text": "warm hat"}}, n=4)) == BEST[:4]
    assert all("_sddb" not in document for document in found)


def test_a_search_sees_what_others_wrote_once_it_caught_up(
    shop: sd.Collection[Any], other_client: sd.Client[Any]
) -> None:
    other = other_client[shop.database.name]["docs"]
    for i in range(10, 20):
        other.insert_one({"_id": i, "text": "warm hat"})
        shop.catch_up()
        assert len(list(shop.find({"_id": i}, like={"text": "warm hat"}))) == 1


@pytest.mark.parametrize("n", [1, 3, 6, 100])
@pytest.mark.parametrize("limit", [10, 22, 30, 1000])
def test_s3_exactly_as_many_as_match_come_back(shop: sd.Collection[Any], n: int, limit: int) -> None:
    rows = [row for row in ROWS if row["price"] < limit]
    expected = [id for id, _ in ranked("warm hat", rows)][:n]
    assert ids(shop.find({"price": {"$lt": limit}}, like={"text": "warm hat"}, n=n)) == expected
    assert ids(shop.find({"price": {"$lt": limit}, "$like": {"text": "warm hat"}}, n=n)) == expected


def test_s1_find_one_by_likeness(shop: sd.Collection[Any]) -> None:
    assert ids([shop.find_one(like={"text": "warm hat"}, n=1)]) == BEST[:1]
    assert ids([shop.find_one({"$like": {"text": "warm hat"}})]) == BEST[:1]
    assert ids([shop.find_one({"price": {"$lt": 16}}, like={"text": "warm hat"})]) == [4]
    assert shop.find_one({"price": -1}, like={"text": "warm hat"}) is None


def test_s4_documents_without_an_output_are_passed_over(shop: sd.Collection[Any]) -> None:
    shop.insert_many([{"_id": 10, "price": 1}, {"_id": 11, "text": 5, "price": 1}])
    assert ids(shop.find({"price": {"$lt": 16}}, like={"text": "warm hat"})) == [4]


def test_s5_the_index_follows_every_write(shop: sd.Collection[Any]) -> None:
    query = {"text": "entirely different words"}
    shop.insert_one({"_id": 20, **query})
    assert ids(shop.find(like=query, n=1)) == [20]
    shop.update_one({"_id": 20}, {"$set": {"text": "warm hat"}})
    shop.replace_one({"_id": 5}, query)
    assert ids(shop.find(like=query, n=1)) == [5]
    shop.delete_one({"_id": 5})
    assert 5 not in ids(shop.find(like=query, n=100))
    shop.find_one_and_delete({"_id": 20})
    assert 20 not in ids(shop.find(like={"text": "warm hat"}, n=100))
    shop.delete_many({})
    assert ids(shop.find(like=query, n=100)) == []


@pytest.mark.parametrize("id", [ObjectId(), "text", 7, 2**40, 1.5, b"bytes", Decimal128("1.1"), {"a": 1, "b": [1]}])
def test_s6_an_id_of_any_type_is_found_and_searched_by(shop: sd.Collection[Any], id: Any) -> None:
    shop.insert_one({"_id": id, "text": "one of its kind", "price": 1})
    assert ids(shop.find({"price": 1}, like={"text": "kind"}, n=3)) == [id]
    assert ids(shop.find(like={"_id": id}, n=1)) == [id]


def test_a_query_by_id_uses_the_stored_vector(shop: sd.Collection[Any]) -> None:
    assert ids(shop.find(like={"_id": 2}, n=2)) == [id for id, _ in ranked("wool hat", ROWS)][:2]
    with pytest.raises(NotFoundError, match="99"):
        list(shop.find(like={"_id": 99}))


def test_s8_options_belong_to_the_result(shop: sd.Collection[Any]) -> None:
    near = {"text": "warm hat"}
    assert next(shop.find({}, {"price": 1, "_id": 0}, like=near, n=1)).keys() == {"price", "_score"}
    assert "text" not in next(shop.find({}, {"text": 0}, like=near, n=1))
    assert next(shop.find({}, ["price"], like=near, n=1)).keys() == {"_id", "price", "_score"}
    assert ids(shop.find(like=near, n=4, skip=1, limit=2)) == BEST[1:3]
    assert ids(shop.find(like=near, n=4).skip(1).limit(2)) == BEST[1:3]
    assert ids(shop.find(like=near, n=4).limit(-2)) == BEST[:2]
    prices = {row["_id"]: row["price"] for row in ROWS}
    assert ids(shop.find(like=near, n=4).sort("price", ASCENDING)) == sorted(BEST[:4], key=lambda id: prices[id])
    assert ids(shop.find(like=near, n=4, sort=[("price", DESCENDING)], limit=1)) == [
        max(BEST[:4], key=lambda id: prices[id])
    ]
    worst_first = [document["_score"] for document in shop.find(like=near, n=4).sort("_score", ASCENDING)]
    assert worst_first == sorted(worst_first)


def test_min_score(shop: sd.Collection[Any]) -> None:
    expected = [id for id, score in ranked("warm hat", ROWS) if score >= 0.4]
    assert 0 < len(expected) < len(ROWS)
    assert ids(shop.find(like={"text": "warm hat"}, min_score=0.4)) == expected


def test_more_than_the_nearest(shop: sd.Collection[Any]) -> None:
    """The search room's tests say what each option means; here, that each arrives, also with the filter."""
    warm, price = {"text": "warm"}, {"price": {"$lt": 100}}
    scores = {d["_id"]: d["_score"] for d in shop.find(price, like=warm)}
    middle = sorted(scores.values())[2]
    assert ids(shop.find(price, like=warm, max_score=middle)) == [id for id, s in scores.items() if s <= middle]
    hat = ids(shop.find(like={"text": "hat"}, n=2))
    assert ids(shop.find(like=[{"text": "hat"}, {"_id": hat[0]}], n=2))[0] == hat[0]
    assert hat[1] not in ids(shop.find(like={"text": "hat"}, unlike={"_id": hat[1]}, n=1))
    assert sorted(ids(shop.find(like=warm, n=6, diversity=0.8))) == [0, 1, 2, 3, 4, 5]
    shop.update_many({"price": {"$gt": 25}}, {"$set": {"meta.kind": "dear"}})
    groups = list(shop.find(price, like=warm, group_by="meta.kind"))
    assert [d.get("meta") for d in groups] == [{"kind": "dear"}, None]
    with pytest.raises(InvalidInputError, match="create_index"):
        list(shop.find(like=warm, text="straw"))
    shop.create_index([("text", "text")])
    found = list(shop.find(price, like=warm, text="straw", n=6))
    assert max(found, key=lambda d: d["_id"] == 4)["_score"] > 1 / 61
    assert len(found) == 5
    with pytest.raises(InvalidInputError, match="goes with like="):
        shop.find(diversity=0.5)


def test_find_many_is_find_for_each(shop: sd.Collection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    likes = [{"text": "warm hat"}, {"_id": 2}, {"text": "wool"}, {"text": "warm hat"}]
    price = {"price": {"$lt": 100}}
    alone = [list(shop.find(price, {"text": 1}, like=like, n=3)) for like in likes]
    services, searches = shop._workspace.services, []
    monkeypatch.setattr(services, "search", lambda r, go=services.search: searches.append(r) or go(r))
    many = shop.find_many(likes, price, {"text": 1}, n=3)
    assert many == alone
    assert len(searches) == 1
    many[0][0]["text"] = "changed"
    assert many[3] == alone[3]  # each place has a document of its own
    assert all("_id" not in d for found in shop.find_many(likes, None, {"_id": 0, "price": 1}) for d in found)
    assert shop.find_many(likes, {"price": -1}) == [[], [], [], []]
    with pytest.raises(InvalidInputError, match="likes="):
        shop.find_many({"text": "warm"})  # type: ignore[arg-type]


def test_a_cursor_has_pymongos_manners(shop: sd.Collection[Any]) -> None:
    cursor = shop.find(like={"text": "warm hat"}, n=4)
    assert cursor.alive
    assert cursor.reply is None
    assert ids(cursor.clone()) == BEST[:4]
    assert cursor.clone().to_pandas()["_id"].tolist() == BEST[:4]
    assert cursor[2]["_id"] == BEST[2]
    assert ids(cursor[1:3]) == BEST[1:3]
    with pytest.raises(IndexError):
        shop.find(like={"text": "warm hat"}, n=2)[2]
    cursor = shop.find(like={"text": "warm hat"}, n=4)
    assert next(cursor)["_id"] == BEST[0]
    with pytest.raises(InvalidOperation):
        cursor.sort("price")
    assert cursor.reply is not None
    assert cursor.retrieved == 4
    assert ids(cursor) == BEST[1:4]
    assert not cursor.alive
    assert ids(cursor.rewind()) == BEST[:4]
    assert ids(copy.deepcopy(cursor)) == BEST[:4]
    assert ids(shop.find(like={"text": "warm hat"}, n=4).to_list(2)) == BEST[:2]
    assert ids(shop.find(like={"text": "warm hat"}, n=4, batch_size=1)) == BEST[:4]
    with shop.find(like={"text": "warm hat"}) as closing:
        closing.close()
        assert list(closing) == []


def test_explain_and_distinct(shop: sd.Collection[Any]) -> None:
    search = shop.find({"price": {"$lt": 30}}, like={"text": "warm hat"}).explain()["search"]
    assert search["found"] == 4
    assert search["survivors"] == 4
    assert search["stages_ms"].keys() == {"encode", "search", "filter", "documents"}
    assert search["index"] == "meaning"
    assert search["pending"] == 0
    assert "queryPlanner" in shop.find({"price": 1}).explain()
    assert set(shop.find(like={"text": "warm hat"}, n=2).distinct("price")) == {
        d["price"] for d in ROWS if d["_id"] in BEST[:2]
    }
    assert shop.find({"price": 15}).distinct("text") == ["straw hat"]


def test_aggregate(shop: sd.Collection[Any]) -> None:
    stages: list[dict[str, Any]] = [{"$like": {"text": "warm hat"}}, {"$project": {"_score": 1}}]
    found = list(shop.aggregate(stages, n=3))
    assert ids(found) == BEST[:3]
    assert found[0].keys() == {"_id", "_score"}
    assert ids(shop.aggregate([{"$match": {"price": {"$lt": 16}}}, *stages])) == [4]
    assert list(shop.aggregate([{"$like": {"text": "hat"}}, {"$count": "n"}], n=2)) == [{"n": 2}]
    scores = [document["_score"] for document in shop.find(like={"text": "warm hat"}, n=6)]
    for exact in (False, True):
        found = list(shop.aggregate(stages, n=6, min_score=scores[2], max_score=scores[1], exact=exact))
        assert ids(found) == [id for id, score in zip(BEST, scores, strict=False) if scores[2] <= score <= scores[1]]
    assert list(shop.aggregate(stages, min_score=1.1)) == []
    with pytest.raises(InvalidInputError, match="min_score= goes with"):
        shop.aggregate([{"$count": "n"}], min_score=0.5)
    with pytest.raises(InvalidInputError, match="first stage"):
        shop.aggregate([{"$sort": {"price": 1}}, *stages])


def test_what_is_read_is_decoded_unless_raw(shop: sd.Collection[Any]) -> None:
    decoded = shop.find_one({"_id": 2})
    assert decoded is not None
    assert decoded["_outputs"]["text"]["words"].tolist() == words("wool hat").tolist()
    decoded["_outputs"]["text"]["words"][0] = 1  # writable
    raw = shop.find_one({"_id": 2}, raw=True)
    assert raw is not None
    assert isinstance(raw["_outputs"]["text"]["words"], bytes)
    assert next(iter(shop.aggregate([{"$match": {"_id": 2}}])))["_outputs"]["text"]["words"].dtype == np.float32


OPTIONS: dict[str, list[Any]] = {
    "filter": [None, {"price": {"$lt": 30}}, {"price": {"$lt": np.float64(30), "$ne": np.int32(15)}}, {"price": -1}],
    "projection": [None, {"price": 1}, {"price": 1, "_id": 0}, ["text"], {"text": 0}, {"_outputs": 0, "_id": 0}],
    "n": [1, 3, 100],
    "exact": [False, True],
    "min_score": [None, 0.4],
    "features": [None, {"text": "length"}],
    "sort": [None, [("price", 1)], [("price", -1)], [("_score", 1)]],
    "skip": [0, 1, 10],
    "limit": [0, 2, -2],
    "batch_size": [0, 1, 2],
    "raw": [False, True],
}


def by_definition(stored: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Do with plain pymongo and Python what each option says."""
    matching = {d["_id"] for d in stored.find(plain(asked["filter"]))}
    scores = dict(ranked("warm hat", [row for row in ROWS if row["_id"] in matching]))
    best = [id for id, score in scores.items() if asked["min_score"] is None or score >= asked["min_score"]]
    best = best[: asked["n"]]
    prices = {row["_id"]: row["price"] for row in ROWS}
    if asked["sort"]:
        ((field, direction),) = asked["sort"]
        best.sort(key=lambda id: prices[id] if field == "price" else scores[id], reverse=direction == -1)
    best = best[asked["skip"] :]
    best = best[: abs(asked["limit"]) or None]
    documents = []
    for id in best:
        document = stored.find_one({"_id": id}, asked["projection"])
        if asked["features"] and "text" in document:
            document["text"] = length(document["text"])
        document["_score"] = pytest.approx(scores[id], abs=1e-5)
        document.pop("_sddb", None)
        documents.append(document)
    return documents


def plain(filter: Any) -> Any:
    return filter and {key: v if v == -1 else {op: float(x) for op, x in v.items()} for key, v in filter.items()}


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without bookkeeping, and with the vector as MongoDB holds it."""
    shown = {name: value for name, value in document.items() if name != "_sddb"}
    vector = shown.get("_outputs", {}).get("text", {}).get("words")
    if isinstance(vector, np.ndarray):
        shown["_outputs"]["text"]["words"] = Binary.from_vector(vector.tolist(), BinaryVectorDtype.FLOAT32)
    return shown


def test_every_combination_of_arguments_means_what_each_says(shop: sd.Collection[Any], stored: Any) -> None:
    rng = random.Random(5)
    for _ in range(250):
        asked = {name: rng.choice(values) for name, values in OPTIONS.items()}
        given = {name: value for name, value in asked.items() if value is not None}
        cursor = shop.find(like={"text": "warm hat"}, **given)
        expected = by_definition(stored, asked)
        assert [comparable(document) for document in cursor] == expected, given
        assert [comparable(document) for document in cursor.clone()] == expected, given


def test_filters_take_what_numpy_and_types_hold(shop: sd.Collection[Any]) -> None:
    assert sorted(ids(shop.find({"price": {"$in": np.array([19, 35])}}))) == [2, 3]
    assert ids(shop.find({"price": np.int64(15)}, like={"text": "hat"})) == [4]
    assert ids(shop.find({"$or": [{"price": {"$gt": np.float32(119)}}, {"_id": np.int16(0)}]}).sort("_id")) == [0, 1]
    assert ids(shop.find_many([{"text": "hat"}], {"price": {"$nin": np.array([15, 19])}}, n=1)[0]) == [0]
    assert shop.update_many({"price": {"$lt": np.int64(20)}}, {"$set": {"cheap": True}}).matched_count == 2
    shop.insert_one({"_id": 50, "v": np.array([1, 2], np.float32)})
    assert ids(shop.find({"v": np.array([1, 2], np.float32)})) == [50]
    assert shop.delete_one({"_id": np.int8(50)}).deleted_count == 1
    assert shop.bulk_write([DeleteOne({"_id": np.int8(5)}), UpdateOne({"_id": np.int8(4)}, {"$set": {"a": 1}})])
    assert shop.find_one({"_id": 5}) is None
    assert shop.find_one({"_id": 4, "a": 1}) is not None
    for filter in ({"price": object()}, {"price": {"$lt": {1, 2}}}):
        with pytest.raises(InvalidInputError, match=r"^Value at 'price[^\n]*no type stores a[^\n]*$"):
            shop.find(filter, like={"text": "hat"})


@pytest.mark.parametrize("like", [{}, "warm", {"nothing": 1}, {"text": 5}, []])
def test_a_bad_query_is_said(shop: sd.Collection[Any], like: Any) -> None:
    with pytest.raises(sd.SuperduperError):
        list(shop.find(like=like))


@pytest.mark.parametrize("n", [0, -1, 10_001, 1.5, True, "3"])
def test_a_bad_n_is_said_at_once(shop: sd.Collection[Any], n: Any) -> None:
    with pytest.raises(InvalidInputError, match="n="):
        shop.find(like={"text": "warm"}, n=n)


def test_like_and_a_filter_that_holds_like_exclude_each_other(shop: sd.Collection[Any]) -> None:
    with pytest.raises(InvalidInputError, match="one of them"):
        shop.find({"$like": {"text": "a"}}, like={"text": "a"})


# --- features ------------------------------------------------------------------------------------------------------


def test_s9_features_with_a_filter_and_likeness(shop: sd.Collection[Any]) -> None:
    found = list(shop.find({"price": {"$lt": 30}}, like={"text": "warm hat"}, n=2, features={"text": "length"}))
    texts = {row["_id"]: row["text"] for row in ROWS}
    assert [document["text"] for document in found] == [len(texts[id]) for id in ids(found)]


def test_features_replace_values_and_respect_a_projection(shop: sd.Collection[Any]) -> None:
    lengths = {row["_id"]: len(row["text"]) for row in ROWS}
    assert {d["_id"]: d["text"] for d in shop.find(features={"text": "length"})} == lengths
    found = shop.find_one({"_id": 2}, {"text": 1}, features={"text": "length"})
    assert found == {"_id": 2, "text": 8}
    found = shop.find_one({"_id": 2}, {"price": 1}, features={"text": "length"})
    assert found == {"_id": 2, "price": 19}
    found = shop.find_one({"_id": 2}, {"_outputs": 0, "_fold": 0}, features={"text": "length"})
    assert found == {"_id": 2, "text": 8, "price": 19}
    found = shop.find_one({"_id": 2}, features={"text": "words"})
    assert found is not None
    assert found["text"].tolist() == words("wool hat").tolist()
    raw = shop.find_one({"_id": 2}, features={"text": "words"}, raw=True)
    assert raw is not None
    assert isinstance(raw["text"], bytes)


def test_s10_features_of_nested_keys_and_missing_outputs(docs: sd.Collection[Any]) -> None:
    docs.create_watcher("length", "meta.title")
    docs.insert_many(
        [{"_id": 1, "meta": {"title": "abc"}}, {"_id": 2, "meta": {"title": 5}}, {"_id": 3}, {"_id": 4, "meta": 1}]
    )
    found = {d["_id"]: d.get("meta") for d in docs.find(features={"meta.title": "length"})}
    assert found == {1: {"title": 3}, 2: {"title": None}, 3: {"title": None}, 4: 1}


def test_features_never_show_outputs_of_an_older_version(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_one({"_id": 1, "text": "abc"})
    stored.update_one({"_id": 1}, {"$set": {"_sddb.outputs.length/text.v": 0}})
    found = docs.find_one(1, features={"text": "length"})
    assert found is not None
    assert found["text"] is None


def test_features_without_a_watcher_are_refused(docs: sd.Collection[Any]) -> None:
    with pytest.raises(NotFoundError, match="length/title"):
        docs.find(features={"title": "length"})


def test_nothing_of_the_users_arguments_is_changed(shop: sd.Collection[Any]) -> None:
    filter, projection, like = {"price": {"$lt": 30}}, {"text": 1}, {"text": "warm"}
    kept = copy.deepcopy((filter, projection, like))
    list(shop.find(filter, projection, like=like, features={"text": "length"}))
    assert (filter, projection, like) == kept


def test_another_client_finds_the_same(shop: sd.Collection[Any], other_client: sd.Client[Any]) -> None:
    other = other_client[shop.database.name]["docs"]
    assert ids(other.find(like={"text": "warm hat"}, n=3)) == BEST[:3]
    assert isinstance(other.insert_many([{"_id": 30, "text": "exactly this"}]), InsertManyResult)
    assert ids(other.find(like={"text": "exactly this"}, n=1)) == [30]


def test_predict_is_the_model_applied_here(shop: sd.Collection[Any]) -> None:
    assert shop.predict("length", "four") == length("four")
    assert shop.predict_many("length", ["a", "bb"]) == [1, 2]
    shop.create_model("double", double)
    assert shop.predict("double", 4) == 8
    with pytest.raises(NotFoundError, match="double"):
        shop.predict("duble", 4)
    for one in ("text", {"text": "warm"}):
        with pytest.raises(InvalidInputError, match=r"takes a list of inputs; given a (str|dict)"):
            shop.predict_many("length", one)


# --- measuring -----------------------------------------------------------------------------------------------------


def test_evaluate(shop: sd.Collection[Any]) -> None:
    queries = [({"text": "warm hat"}, BEST[:2]), ({"text": "warm hat"}, [BEST[2], 99]), ({"_id": 2}, {2, 99})]
    found = shop.evaluate("meaning", queries, n=3)
    gain = [1 / np.log2(2 + rank) for rank in range(6)]
    assert [q["recall"] for q in found.queries] == [1, 0.5, 0.5]
    assert [q["mrr"] for q in found.queries] == pytest.approx([1, 1 / 3, 1])
    assert [q["ndcg"] for q in found.queries] == pytest.approx([1, gain[2] / sum(gain[:2]), 1 / sum(gain[:2])])
    assert found.recall == pytest.approx(2 / 3)
    assert found.to_pandas().shape == (3, 6)
    assert "recall@3 0.667" in repr(found)
    assert shop.evaluate("meaning", queries, n=3, filter={"price": -1}).ndcg == 0
    for bad in ([], [({"text": "a"}, [])], [{"text": "a"}], ["ab"]):
        with pytest.raises(InvalidInputError, match="queries="):
            shop.evaluate("meaning", bad)  # type: ignore[arg-type]


def test_evaluate_on_a_validation_set(shop: sd.Collection[Any]) -> None:
    """Each query part is to find its own document: the rank of that says the same as a `find` of its own."""
    shop.create_splitter("first_word", lambda d: ({"text": d["text"].split()[0]}, {"text": d["text"]}))
    shop.create_validation_set(
        "words", {"text": {"$type": "string"}, "_fold": {"$exists": True}}, splitter="first_word"
    )
    found = shop.evaluate("meaning", "words", n=3)
    held = shop.validation_sets["words"]
    ranks = [
        [hit["_id"] for hit in shop.find(like=query, n=3)].index(document["_id"]) + 1
        if document["_id"] in [hit["_id"] for hit in shop.find(like=query, n=3)]
        else None
        for document, (query, _) in zip(held, held.pairs(), strict=True)
    ]
    assert len(ranks) == len(ROWS)
    assert [q["mrr"] for q in found.queries] == pytest.approx([1 / rank if rank else 0 for rank in ranks])
    shop.create_validation_set("whole", {"_fold": {"$exists": True}})
    with pytest.raises(InvalidInputError, match="without splitter="):
        shop.evaluate("meaning", "whole")
    with pytest.raises(NotFoundError, match="Did you mean 'words'"):
        shop.evaluate("meaning", "word")


def test_find_duplicates(shop: sd.Collection[Any], other_client: sd.Client[Any]) -> None:
    shop.insert_many([{"_id": "twin", "text": "wool hat"}, {"_id": "none"}, {"_id": "bad", "text": 5}])
    job = shop.find_duplicates("meaning", min_score=0.3)
    texts = {
        row["_id"]: words(str(row["text"])).astype(np.float64) for row in [*ROWS, {"_id": "twin", "text": "wool hat"}]
    }
    unit = {id: vector / np.linalg.norm(vector) for id, vector in texts.items()}
    keys = list(texts)
    expected = {(a, b): float(unit[a] @ unit[b]) for i, a in enumerate(keys) for b in keys[i + 1 :]}
    expected = {pair: score for pair, score in expected.items() if score >= 0.3}
    found = list(job.pairs())
    assert {(pair["a"], pair["b"]): pair["score"] for pair in found} == pytest.approx(expected)
    assert [pair["score"] for pair in found] == sorted((pair["score"] for pair in found), reverse=True)
    assert (found[0]["a"], found[0]["b"]) == (2, "twin")
    assert job.progress == (7, 7, 0)
    best = shop.find_duplicates("meaning", min_score=-1, limit=2)
    assert [(p["a"], p["b"]) for p in best.pairs()] == [(p["a"], p["b"]) for p in found[:2]]
    again = other_client[shop.database.name]["docs"].duplicates(job.id)
    assert list(again.pairs()) == found
    DuplicatesWork(shop._workspace.store.database, shop._workspace.loader, job.record).run([])  # as after a lost worker
    assert list(again.pairs()) == found
    for options in ({"min_score": "1"}, {"limit": 0}, {"limit": True}):
        with pytest.raises(InvalidInputError):
            shop.find_duplicates("meaning", **options)
    with pytest.raises(NotFoundError):
        shop.find_duplicates("nothing")
    with pytest.raises(NotFoundError, match="two weeks"):
        shop.duplicates("nothing")
