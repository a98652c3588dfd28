"""Neighbourhoods are those of all pairs after every write, and are read as documents."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from bson import Decimal128, ObjectId
from client_models import double
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne

import superduper_nb as sd
from superduper_nb.errors import ConflictError, InvalidInputError, NotFoundError
from superduper_nb.jobs.neighbours import NeighboursWork
from superduper_nb.models.loading import Loader
from superduper_nb.search.ids import sort_key

Docs = sd.Collection[Any]


def place(x: Any) -> Any:
    return np.array(x, dtype=np.float32)


def nearest(stored: Any, n: int, key: str = "x", where: Any = None) -> dict[Any, list[Any]]:
    """Compare all pairs: best first by l2, ties by ``_id``."""
    found = [d for d in stored.find(where or {}) if isinstance(d.get(key), list)]
    found.sort(key=lambda d: sort_key(d["_id"]))
    lists = {}
    for one in found:
        far = [(float(np.linalg.norm(place(one[key]).astype(float) - place(d[key]))), i) for i, d in enumerate(found)]
        lists[str(one["_id"])] = [found[i]["_id"] for _, i in sorted(far) if found[i] is not one][:n]
    return lists


def kept(stored: Any, id: str = "near") -> dict[Any, list[Any]]:
    return {str(d["_id"]): d["_like"][id] for d in stored.find() if id in d.get("_like", {})}


@pytest.fixture
def docs(client: sd.Client[Any], database: Any) -> Docs:
    collection = client[database.name]["docs"]
    collection.create_model("place", place, type="vector")
    collection.create_semantic_index("where", ["place"], ["x"], "l2")
    return collection


def spots(count: int, rng: random.Random) -> list[list[float]]:
    return [[rng.randrange(12) / 2, rng.randrange(12) / 2] for _ in range(count)]  # many ties


@pytest.mark.parametrize("many", [2, 100], ids=["by what changed", "all anew"])
def test_w6_the_lists_are_those_of_all_pairs_after_every_write(
    docs: Docs, stored: Any, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr("superduper_nb.jobs.neighbours._MANY", many)
    monkeypatch.setattr("superduper_nb.search.blocks._ROWS", 16)
    rng = random.Random(1)
    docs.insert_many([{"_id": n, "x": x} for n, x in enumerate(spots(40, rng))])
    assert list(docs.create_neighbourhood("near", "where", n=4)) == ["neighbours near"]
    assert kept(stored) == nearest(stored, 4)
    writes = [
        lambda: docs.insert_one({"_id": 100, "x": [2.2, 2.2]}),
        lambda: docs.insert_many([{"_id": 200 + n, "x": x} for n, x in enumerate(spots(5, rng))]),
        lambda: docs.update_one({"_id": 3}, {"$set": {"x": [0.1, 5.0]}}),
        lambda: docs.update_many({"_id": {"$lt": 5}}, {"$inc": {"x.0": 1}}),
        lambda: docs.delete_one({"_id": 100}),
        lambda: docs.delete_many({"_id": {"$gte": 203}}),
        lambda: docs.replace_one({"_id": 7}, {"x": [3.3, 3.3]}),
        lambda: docs.update_one({"_id": 8}, {"$unset": {"x": ""}}),
        lambda: docs.find_one_and_delete({"_id": 9}),
        lambda: docs.find_one_and_update({"_id": 8}, {"$set": {"x": [1.0, 1.0]}}),
        lambda: docs.update_one({"_id": 300}, {"$set": {"x": [0.0, 0.0]}}, upsert=True),
        lambda: docs.bulk_write([DeleteOne({"_id": 10}), InsertOne({"_id": 11.5, "x": [5.0, 5.0]})]),
        lambda: docs.bulk_write([DeleteOne({"_id": 11})]),
        lambda: docs.bulk_write([UpdateOne({"_id": 12}, {"$set": {"x": [5.1, 5.0]}}), ReplaceOne({"_id": 13}, {})]),
    ]
    for number, write in enumerate(writes):
        jobs = getattr(write(), "jobs", {"neighbours near": None})
        assert list(jobs)[-1].startswith("neighbours near")
        assert kept(stored) == nearest(stored, 4), f"after write {number}"
    assert "near" not in stored.find_one(13).get("_like", {})
    docs.delete_many({"_id": {"$gte": 3}})
    assert kept(stored) == nearest(stored, 4)
    assert {len(near) for near in kept(stored).values()} == {2}
    docs.delete_many({"_id": {"$gte": 1}})
    assert kept(stored) == {"0": []}
    assert not docs.update_one({"_id": 0}, {"$set": {"other": 1}}).jobs


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2", "mine"])
def test_every_measure(docs: Docs, stored: Any, measure: str) -> None:
    docs.create_measure("mine", lambda queries, vectors: -np.abs(queries[:, None] - vectors[None]).max(axis=2))
    docs.create_semantic_index("by_measure", ["place"], ["x"], measure)
    docs.create_neighbourhood("near", "by_measure", n=5)
    rng = np.random.default_rng(2)

    def expected() -> dict[str, list[Any]]:
        found = list(stored.find().sort("_id", 1))
        v = np.array([d["x"] for d in found], dtype=np.float32).astype(float)
        unit = v / np.linalg.norm(v, axis=1)[:, None]
        scores = {"cosine": unit @ unit.T, "dot": v @ v.T}.get(measure)
        if scores is None:
            far = np.abs(v[:, None] - v[None])
            scores = -(far.max(axis=2) if measure == "mine" else np.sqrt((far**2).sum(axis=2)))
        np.fill_diagonal(scores, -np.inf)
        best = np.argsort(-scores, axis=1)[:, :5].tolist()
        return {str(d["_id"]): [found[i]["_id"] for i in row] for d, row in zip(found, best, strict=True)}

    docs.insert_many([{"_id": n, "x": x} for n, x in enumerate(rng.normal(size=(60, 3)).tolist())])
    assert kept(stored) == expected()
    for n in range(60, 66):
        docs.insert_one({"_id": n, "x": rng.normal(size=3).tolist()})
        docs.update_one({"_id": n - 60}, {"$set": {"x": (3 * rng.normal(size=3)).tolist()}})
        docs.delete_one({"_id": n - 30})
        assert kept(stored) == expected()


def test_of_two_jobs_at_once_none_loses_what_the_other_knows(
    docs: Docs, stored: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs.insert_many([{"_id": n, "x": x} for n, x in enumerate(spots(30, random.Random(3)))])
    docs.create_neighbourhood("near", "where", n=3)
    original, inserted = NeighboursWork._write, []

    def write(self: NeighboursWork, changes: Any) -> Any:
        if not inserted:  # another job comes in between reading and writing
            inserted.append(1)
            docs.insert_one({"_id": 101, "x": [3.05, 3.0]})
        return original(self, changes)

    stored.update_one({"_id": 5}, {"$unset": {"_sddb.like": ""}})
    stored.update_one({"_id": 6}, {"$set": {"_like.near": [1, "gone", 2]}})
    monkeypatch.setattr(NeighboursWork, "_write", write)
    NeighboursWork(database, Loader(database), {"component": "near", "collection": "docs"}).run(["all"])
    assert kept(stored) == nearest(stored, 3)


def test_what_the_lists_depend_on(docs: Docs, stored: Any, client: sd.Client[Any]) -> None:
    docs.create_semantic_index("where", ["place"], ["x"], "l2", filter={"hidden": {"$ne": True}})
    docs.insert_many([{"_id": n, "x": [n, n]} for n in range(12)])
    docs.create_neighbourhood("near", "where", n=2)
    assert kept(stored)["4"] == [3, 5]
    assert not docs.create_neighbourhood("near", "where", n=2), "the same again is nothing"
    docs.update_one({"_id": 5}, {"$set": {"hidden": True}})
    assert kept(stored) == nearest(stored, 2, where={"hidden": None})
    assert list(docs.create_neighbourhood("near", "where", n=3)) == ["neighbours near"]
    assert kept(stored) == nearest(stored, 3, where={"hidden": None})
    jobs = docs.create_model("place", lambda x: place(x) % 5, type="vector")
    assert list(jobs) == ["place/x", "neighbours near"]
    assert kept(stored)["4"] == [9, 3, 8]
    docs.create_semantic_index("where", ["place"], ["x"], "dot")
    assert kept(stored)["0"][:1] == [1], "all products with it are 0"
    assert kept(stored)["1"][:2] == [4, 9]
    with pytest.raises(ConflictError, match="neighbourhood near"):
        docs.semantic_indexes.delete("where")
    docs.create_model("double", double)
    assert docs.update_one({"_id": 1}, {"$set": {"other": 1}}).jobs.keys() == set(), "nothing that it reads changed"
    docs.neighbourhoods.delete("near")
    assert not stored.find_one({"$or": [{"_like.near": {"$exists": True}}, {"_sddb.like.near": {"$exists": True}}]})
    assert docs.insert_one({"x": [1, 1]}).jobs.keys() == {"place/x"}


def test_what_is_no_vector_is_near_to_nothing_and_no_job_is_busy_with_it(docs: Docs, stored: Any) -> None:
    docs.create_model("loose", place)  # of no type, so its outputs may have any length
    docs.create_semantic_index("directions", ["loose"], ["x"])
    docs.create_neighbourhood("near", "directions", n=2)
    docs.insert_many(
        [{"_id": 1, "x": [1, 0]}, {"_id": 2, "x": [1, 1]}, {"_id": 3, "x": [1, 1, 1]}, {"_id": 4, "x": [0, 0]}]
    )
    assert kept(stored) == {"1": [2], "2": [1], "3": [], "4": []}
    assert docs.insert_one({"_id": 5, "x": [0, 1]}).jobs["neighbours near"].progress[0] == 3
    assert kept(stored) == {"1": [2, 5], "2": [1, 5], "5": [2, 1], "3": [], "4": []}


IDS = [ObjectId(), "text", 7, 2**40, 1.5, b"bytes", Decimal128("1.1"), {"a": 1, "b": [1]}, False]


def test_w15_similar_join_reads_documents_for_ids_of_any_type_and_drops_what_is_gone(docs: Docs, stored: Any) -> None:
    docs.insert_many([{"_id": id, "x": [n, 0], "name": f"n{n}", "price": n} for n, id in enumerate(IDS)])
    docs.create_neighbourhood("near", "where", n=3)
    for document in docs.find(similar_join="near").batch_size(4):
        near = stored.find_one({"_id": document["_id"]})["_like"]["near"]
        assert [other["_id"] for other in document["_like"]["near"]] == near
        assert all(
            other.keys() == {"_id", "x", "name", "price", "_fold", "_outputs"} for other in document["_like"]["near"]
        )
        assert all(isinstance(other["_outputs"]["x"]["place"], np.ndarray) for other in document["_like"]["near"])
    first = {"_id": IDS[2]}
    names = [f"n{IDS.index(id)}" for id in kept(stored)[str(IDS[2])]]
    for projection, keys in (
        ({"name": 1}, {"_id", "name"}),
        ({"name": 1, "_id": 0}, {"name"}),
        (["name"], {"_id", "name"}),
        ({"_outputs": 0, "x": 0, "_fold": 0, "_id": 0}, {"name", "price"}),
    ):
        found = docs.find_one(first, projection, similar_join="near")
        assert found is not None
        assert found.keys() == keys | {"_like"}
        assert [other["name"] for other in found["_like"]["near"]] == names
        assert all(other.keys() == keys for other in found["_like"]["near"])
    (found,) = docs.find(like={"_id": IDS[2]}, n=1, similar_join="near")
    assert found["_score"] == 1
    assert [other["name"] for other in found["_like"]["near"]] == names
    found = docs.find_one(first, {"x": 1}, similar_join="near", features={"x": "place"})
    assert found is not None
    assert all(isinstance(other["x"], np.ndarray) for other in found["_like"]["near"])
    stored.delete_one({"name": names[0]})  # by another program, behind which nobody tidies up
    found = docs.find_one(first, similar_join="near")
    assert found is not None
    assert [other["name"] for other in found["_like"]["near"]] == names[1:]
    cursor = docs.find(first, similar_join="near")
    assert [d["_id"] for d in cursor] == [d["_id"] for d in cursor.clone()] == [IDS[2]]
    with pytest.raises(NotFoundError, match=r"nearer.*Did you mean 'near'"):
        docs.find(similar_join="nearer")


def test_a_join_asks_once_for_each_batch(docs: Docs, mongo_uri: str) -> None:
    from pymongo import monitoring

    commands: list[str] = []

    class Listener(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            commands.append(event.command_name)

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    docs.insert_many([{"x": x} for x in spots(30, random.Random(4))])
    docs.create_neighbourhood("near", "where")
    with sd.Client[Any](mongo_uri, event_listeners=[Listener()]) as client:
        found = list(client[docs.database.name]["docs"].find(similar_join="near").batch_size(10))
    assert len(found) == 30
    assert all(len(document["_like"]["near"]) == 10 for document in found)
    assert (commands.count("find"), commands.count("getMore")) == (1 + 3, 3)


@pytest.mark.parametrize("n", [0, -1, 1001, 1.5, True, "3"])
def test_a_bad_neighbourhood_is_refused(docs: Docs, n: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^n=.*whole number from 1 to 1000"):
        docs.create_neighbourhood("near", "where", n=n)
    with pytest.raises(InvalidInputError, match=r"named 'a\.b'"):
        docs.create_neighbourhood("a.b", "where")
    with pytest.raises(NotFoundError, match="Did you mean 'where'"):
        docs.create_neighbourhood("near", "were")
    assert list(docs.neighbourhoods) == []
