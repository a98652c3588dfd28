"""Under a filter whose share is known, the documents of candidates are read by the filter: one question, not two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from client_models import double
from pymongo.collation import Collation
from pymongo.database import Database
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

import superduper_nb as sd

ROWS, D = 1500, 8
VECTORS = np.random.default_rng(0).standard_normal((ROWS, D)).astype(np.float32)
PLACES = np.random.default_rng(1).permutation(ROWS)
QUERIES = np.random.default_rng(2).standard_normal((40, D)).astype(np.float32)


class Reads(CommandListener):
    """How many documents came by each query for them."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def started(self, event: CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        cursor = event.reply.get("cursor", {})
        if event.command_name == "find" and cursor.get("ns", "").endswith(".docs"):
            self.counts.append(len(cursor["firstBatch"]))

    def failed(self, event: CommandFailedEvent) -> None:
        pass


@pytest.fixture
def reads() -> Reads:
    return Reads()


@pytest.fixture
def places(mongo_uri: str, database: Database[Any], reads: Reads) -> Iterator[sd.Collection[Any]]:
    """Return documents with a vector, and a place `n` among all, at random."""
    with sd.Client[Any](mongo_uri, event_listeners=[reads]) as client:
        docs = client[database.name]["docs"]
        docs.create_model("double", double, type="vector")
        docs.create_watcher("double", "x")
        docs.create_semantic_index("near", ["double"], ["x"])
        docs.insert_many([{"_id": i, "x": v, "n": int(PLACES[i])} for i, v in enumerate(VECTORS)])
        yield docs


def truth(query: np.ndarray, among: np.ndarray) -> list[int]:
    """Rank by brute force."""
    rows = VECTORS[among].astype(np.float64)
    return among[np.argsort(-(rows @ query) / np.linalg.norm(rows, axis=1), kind="stable")].tolist()


def ids(found: Any) -> list[Any]:
    return [document["_id"] for document in found]


def below(most: int) -> np.ndarray:
    return np.flatnonzero(most > PLACES)


def test_what_is_found_is_complete_and_documents_come_in_the_same_query(
    places: sd.Collection[Any], reads: Reads
) -> None:
    list(places.find({"n": {"$lt": 700}}, like={"x": QUERIES[0]}))  # from now on it is known how many match
    reads.counts.clear()
    for most, query in enumerate(QUERIES, 750):
        cursor = places.find({"n": {"$lt": most}}, like={"x": query}, n=5)
        found = list(cursor)
        assert ids(found) == truth(query, below(most))[:5]
        reply: Any = cursor.reply
        assert reply.ids == ids(found)
        assert [document["_score"] for document in found] == reply.scores
        assert reply.strategy.endswith("then filter")
        assert 5 <= reply.survivors <= reply.candidates < 100
        assert not reply.untested
    assert len(reads.counts) < 1.2 * len(QUERIES)  # again only where fewer matched than should
    assert np.mean(reads.counts) < 20
    assert max(reads.counts) < 26


def test_where_too_few_or_too_many_match_it_is_searched_again(places: sd.Collection[Any], reads: Reads) -> None:
    for most in (1400, 3, 1500, 40, 0, 800, 200, 1):
        for query in QUERIES[:3]:
            for n in (1, 10):
                found = list(places.find({"n": {"$lt": most}}, like={"x": query}, n=n))
                assert ids(found) == truth(query, below(most))[:n]
    assert max(reads.counts) <= 36


@pytest.mark.parametrize("n", [1, 3, 5])
def test_few_that_most_documents_match_take_one_query(places: sd.Collection[Any], reads: Reads, n: int) -> None:
    list(places.find({"n": {"$lt": 1400}}, like={"x": QUERIES[0]}, n=n))
    reads.counts.clear()
    for most, query in enumerate(QUERIES, 1400):
        assert ids(places.find({"n": {"$lt": most}}, like={"x": query}, n=n)) == truth(query, below(most))[:n]
    assert len(reads.counts) < 1.2 * len(QUERIES)


def test_a_collation_does_not_change_what_the_filter_of_a_search_means(
    places: sd.Collection[Any], database: Database[Any]
) -> None:
    for least, tag in ((0, "a"), (750, "A"), (1000, "b")):
        database["docs"].update_many({"n": {"$gte": least}}, {"$set": {"tag": tag}})
    for query in QUERIES[:4]:
        found = places.find({"tag": "a"}, like={"x": query}, n=10).collation(Collation("en", strength=2))
        assert ids(found) == truth(query, below(750))[:10]


def test_options_belong_to_the_result(places: sd.Collection[Any]) -> None:
    def find(*args: Any, **options: Any) -> list[Any]:
        return list(places.find({"n": {"$lt": 750}}, *args, like={"x": QUERIES[0]}, n=6, **options))

    best = truth(QUERIES[0], below(750))[:6]
    for _ in range(2):
        assert ids(find()) == best
        assert ids(find(sort=[("n", 1)])) == sorted(best, key=lambda id: PLACES[id])
        assert ids(find(sort=[("_score", 1)])) == best[::-1]
        assert ids(find(skip=1, limit=2)) == best[1:3]
        assert [document["n"] for document in find({"n": 1, "_id": 0})] == [PLACES[id] for id in best]
        assert find({"_id": 1})[0].keys() == {"_id", "_score"}
        assert ids(find(features={"x": "double"})) == best
        assert ids(find(exact=True)) == best
        scores = [document["_score"] for document in find()]
        assert ids(find(min_score=scores[2])) == best[:3]
        cursor = places.find({"n": {"$lt": 750}}, like={"x": QUERIES[0]}, n=6)
        assert set(cursor.distinct("n")) == {PLACES[id] for id in best}
        assert ids(cursor.clone()) == best


def test_documents_that_are_large_are_tested_first(places: sd.Collection[Any], reads: Reads) -> None:
    places.update_many({}, {"$set": {"text": "x" * 20_000}})
    for query in QUERIES[:2]:
        list(places.find({"n": {"$lt": 700}}, like={"x": query}))
    reads.counts.clear()
    for most, query in enumerate(QUERIES, 750):
        assert ids(places.find({"n": {"$lt": most}}, like={"x": query}, n=5)) == truth(query, below(most))[:5]
    assert reads.counts == [5] * len(QUERIES)


def test_explain_tells_of_the_candidates(places: sd.Collection[Any]) -> None:
    for _ in range(2):
        search = places.find({"n": {"$lt": 750}}, like={"x": QUERIES[0]}, n=6).explain()["search"]
        assert (search["found"], search["strategy"]) == (6, "exact, then filter")
        assert 6 <= search["survivors"] < search["candidates"] < 100
    assert search["stages_ms"].keys() == {"encode", "search", "documents"}


def test_what_changed_meanwhile_counts_as_it_is_now(places: sd.Collection[Any], database: Database[Any]) -> None:
    query = QUERIES[0]
    list(places.find({"n": {"$lt": 750}}, like={"x": query}))
    gone = truth(query, below(750))[:3]
    database["docs"].delete_one({"_id": gone[0]})  # by another program, unseen by the index, perhaps
    database["docs"].update_many({"_id": {"$in": gone[1:]}}, {"$set": {"n": 2000}})
    left = np.setdiff1d(below(750), gone)
    assert ids(places.find({"n": {"$lt": 750}}, like={"x": query}, n=10)) == truth(query, left)[:10]
