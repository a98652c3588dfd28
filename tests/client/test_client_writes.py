"""Each write of pymongo plans the jobs that follow from it, and the outputs are the model's."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from bson import Decimal128, ObjectId
from bson.errors import InvalidDocument
from bson.raw_bson import RawBSONDocument
from bson.son import SON
from client_models import double, length, outputs
from pymongo import DeleteOne, InsertOne, ReplaceOne, ReturnDocument, UpdateMany, UpdateOne, results
from pymongo.errors import BulkWriteError, DuplicateKeyError

import superduper_nb as sd
from superduper_nb.client.workspace import Workspace

TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"_id": i, "text": text} for i, text in enumerate(texts or TEXTS)]


def expected(stored: Any) -> dict[Any, int]:
    return {document["_id"]: length(document["text"]) for document in stored.find({"text": {"$type": "string"}})}


def names(jobs: Any) -> list[str]:
    assert [job.status for job in jobs.values()] == ["succeeded"] * len(jobs)
    return list(jobs)


def test_insert_many(docs: sd.Collection[Any], stored: Any) -> None:
    result = docs.insert_many(rows())
    assert isinstance(result, results.InsertManyResult)
    assert result.inserted_ids == [0, 1, 2, 3, 4]
    assert names(result.jobs) == ["length/text"]
    assert result.jobs["length/text"].progress == (5, 5, 0)
    assert outputs(stored) == expected(stored) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}


def test_insert_one(docs: sd.Collection[Any], stored: Any) -> None:
    result = docs.insert_one({"text": "four"})
    assert isinstance(result, results.InsertOneResult)
    assert isinstance(result.inserted_id, ObjectId)
    assert names(result.jobs) == ["length/text"]
    assert outputs(stored) == {result.inserted_id: 4}


def test_w1_outputs_belong_to_their_documents_whatever_the_order_of_ids(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many([{"_id": i, "text": "x" * i} for i in (3, 1, 2)])
    assert outputs(stored) == {3: 3, 1: 1, 2: 2}


def test_w8_inputs_are_changed_by_their_id_only(docs: sd.Collection[Any], stored: Any) -> None:
    import numpy as np

    vector = np.arange(3, dtype=np.float32)
    document: dict[str, Any] = {"text": "a", "v": vector, "list": [vector]}
    docs.insert_one(document)
    assert set(document) == {"text", "v", "list", "_id"}
    assert document["v"] is vector
    assert document["list"][0] is vector
    change = {"$set": {"v": vector}}
    docs.update_one({"_id": document["_id"]}, change)
    assert change == {"$set": {"v": vector}}
    generated = docs.insert_many({"text": text} for text in TEXTS)
    assert len(generated.inserted_ids) == 5
    assert outputs(stored) == expected(stored)


def test_w9_arrays_in_lists_come_back(docs: sd.Collection[Any]) -> None:
    import numpy as np

    docs.insert_one({"_id": 1, "text": "a", "deep": {"list": [np.eye(2), "b"]}})
    found = docs.find_one(1)
    assert found is not None
    assert found["deep"]["list"][0].tolist() == [[1, 0], [0, 1]]
    assert "_sddb" not in found


def test_update_recomputes_what_reads_the_changed_keys(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many(rows())
    result = docs.update_many({"_id": {"$lt": 2}}, {"$set": {"text": "changed"}})
    assert isinstance(result, results.UpdateResult)
    assert result.modified_count == 2
    assert names(result.jobs) == ["length/text"]
    assert outputs(stored) == expected(stored)
    assert not docs.update_one({"_id": 1}, {"$set": {"other": 1}}).jobs
    assert not docs.update_many({"_id": 99}, {"$set": {"text": "nobody"}}).jobs
    assert names(docs.update_one({"_id": 4}, {"$set": {"text": "x"}}).jobs) == ["length/text"]
    assert outputs(stored) == expected(stored)


def test_an_update_inside_a_nested_key_recomputes_what_lies_around_it_and_nothing_beside_it(
    docs: sd.Collection[Any], stored: Any
) -> None:
    calls: list[str] = []
    docs.create_model("keys", lambda d: sorted(d))
    for key, model in (("meta", "keys"), ("meta.title", "length"), ("meta.author", "length")):
        docs.create_watcher(model, key)
    docs.insert_one({"_id": 1, "meta": {"title": "abc", "author": "ab"}})
    calls += docs.update_one({"_id": 1}, {"$set": {"meta.title": "abcd"}}).jobs
    assert sorted(calls) == ["keys/meta", "length/meta.title"]
    calls = list(docs.update_one({"_id": 1}, {"$set": {"meta.year": 1}, "$unset": {"meta.author": ""}}).jobs)
    assert sorted(calls) == ["keys/meta", "length/meta.author"]
    assert outputs(stored, "meta.keys") == {1: ["title", "year"]}
    assert outputs(stored, "meta.title.length") == {1: 4}
    assert outputs(stored, "meta.author.length") == {}


def test_update_by_position_and_pipeline(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many(rows())
    result = docs.update_one({"_id": 99}, {"$set": {"text": "upserted"}}, True)
    assert result.upserted_id == 99
    docs.update_one({"_id": 98}, [{"$set": {"text": "by pipeline"}}], upsert=True)
    docs.update_many({}, [{"$set": {"text": {"$concat": ["$text", "!"]}}}])
    assert outputs(stored) == expected(stored)
    assert stored.count_documents({"_fold": {"$in": ["train", "valid"]}}) == 7


def test_the_document_that_a_sort_chooses_is_the_one_computed(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many(rows())
    docs.find_one_and_update({}, {"$set": {"text": "last one"}}, sort=[("_id", -1)])
    docs.find_one_and_update({}, {"$set": {"text": "last one again"}}, None, [("_id", -1)])
    docs.find_one_and_replace({}, {"text": "replaced"}, sort=[("_id", -1)])
    assert stored.find_one(4)["text"] == "replaced"
    assert outputs(stored) == expected(stored)


def test_the_document_that_a_collation_finds_is_the_one_computed(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_one({"_id": 1, "text": "a", "name": "Émile"})
    result = docs.update_one({"name": "emile"}, {"$set": {"text": "longer"}}, collation={"locale": "fr", "strength": 1})
    assert result.modified_count == 1
    assert outputs(stored) == {1: 6}
    docs.update_one({"$expr": {"$eq": ["$name", "$$who"]}}, {"$set": {"text": "let"}}, let={"who": "Émile"})
    assert outputs(stored) == {1: 3}


def test_w4_a_replacement_keeps_the_fold_and_moves_the_outputs(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many(rows())
    before = {document["_id"]: document["_fold"] for document in stored.find()}
    result = docs.replace_one({"_id": 1}, {"text": "replaced"})
    assert isinstance(result, results.UpdateResult)
    assert names(result.jobs) == ["length/text"]
    docs.replace_one({"_id": 7}, {"text": "upserted"}, upsert=True)
    after = {document["_id"]: document["_fold"] for document in stored.find()}
    assert {id: after[id] for id in before} == before
    assert after[7] in ("train", "valid")
    assert outputs(stored) == expected(stored)
    docs.replace_one({"_id": 1}, {"no": "text"})
    assert outputs(stored) == expected(stored)
    assert "_outputs" not in stored.find_one(1) or not stored.find_one(1)["_outputs"]["text"]


def test_a_document_that_was_read_may_replace_itself(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many(rows())
    document = docs.find_one(2)
    assert document is not None
    document["text"] = "new text"
    docs.replace_one({"_id": 2}, document)
    assert outputs(stored) == expected(stored)


@pytest.mark.parametrize("after", [ReturnDocument.BEFORE, ReturnDocument.AFTER])
@pytest.mark.parametrize("filter", [{"name": "new"}, {"_id": 7}, {"_id": {"$eq": 7}}])
def test_find_one_and_upsert(docs: sd.Collection[Any], stored: Any, filter: dict[str, Any], after: bool) -> None:
    docs.find_one_and_update(filter, {"$set": {"text": "upserted"}}, upsert=True, return_document=after)
    docs.find_one_and_update(filter, [{"$set": {"text": "again"}}], upsert=True, return_document=after)
    assert stored.count_documents({}) == 1
    assert outputs(stored) == expected(stored)
    stored.delete_many({})
    docs.find_one_and_update(filter, [{"$set": {"text": "by pipeline"}}], upsert=True, return_document=after)
    assert outputs(stored) == expected(stored)
    stored.delete_many({})
    docs.find_one_and_replace(filter, {"text": "replacement"}, upsert=True, return_document=after)
    assert list(outputs(stored).values()) == [11]
    assert stored.count_documents({"_fold": {"$exists": True}}) == 1


def test_find_one_and_delete_returns_the_document(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many(rows())
    deleted = docs.find_one_and_delete({"_id": 1})
    assert deleted is not None
    assert deleted["_outputs"] == {"text": {"length": 2}}
    assert "_sddb" not in deleted
    assert stored.count_documents({}) == 4
    assert docs.find_one_and_delete({"_id": 1}) is None


def test_bulk_write(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many(rows())
    replaced = stored.find_one(2)["_fold"]
    result = docs.bulk_write(
        [
            InsertOne({"_id": 10, "text": "inserted"}),
            UpdateOne({"_id": 10}, {"$set": {"text": "inserted, then updated"}}),
            ReplaceOne({"_id": 2}, {"text": "replaced"}),
            UpdateMany({"_id": {"$lt": 2}}, {"$set": {"text": "both"}}),
            UpdateOne({"_id": 20}, {"$set": {"text": "upserted"}}, upsert=True),
            ReplaceOne({"_id": 21}, {"text": "upserted, too"}, upsert=True),
            DeleteOne({"_id": 4}),
        ]
    )
    assert isinstance(result, results.BulkWriteResult)
    assert result.upserted_ids == {4: 20, 5: 21}
    assert stored.find_one(2)["_fold"] == replaced
    assert set(outputs(stored)) == {0, 1, 2, 3, 10, 20, 21}
    assert outputs(stored) == expected(stored)
    assert {job.status for job in result.jobs.values()} == {"succeeded"}


def test_what_was_written_before_an_error_is_computed(docs: sd.Collection[Any], stored: Any) -> None:
    with pytest.raises(BulkWriteError):
        docs.insert_many([*rows(), {"_id": 0, "text": "again"}, {"_id": 9, "text": "never"}])
    with pytest.raises(DuplicateKeyError):
        docs.insert_one({"_id": 0, "text": "again"})
    assert outputs(stored) == expected(stored) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}
    assert {job.status for job in docs.jobs} == {"succeeded"}


def test_garbage_is_collected_while_models_run_and_after_an_insert_that_fails(client: Any, database: Any) -> None:
    """While thousands of documents are inserted it is not."""
    docs = client[database.name]["many"]
    docs.create_model("collected", lambda x: gc.isenabled())
    docs.create_watcher("collected", "x")
    with pytest.raises(BulkWriteError):
        docs.insert_many([{"_id": i, "x": i} for i in (*range(1000), 0)])
    assert gc.isenabled()
    assert docs.count_documents({"_outputs.x.collected": True}) == 1000


@pytest.mark.parametrize("cls", [dict, SON, lambda d: RawBSONDocument(__import__("bson").encode(d))])
def test_documents_of_other_classes(docs: sd.Collection[Any], stored: Any, cls: Any) -> None:
    docs.insert_one(cls({"text": "one"}))
    docs.insert_many([cls({"text": "many"}), cls({"_id": 0, "text": "with id"})])
    assert len(outputs(stored)) == 3
    assert outputs(stored) == expected(stored)


def test_one_bad_document_fails_alone(docs: sd.Collection[Any], stored: Any) -> None:
    result = docs.insert_many([{"_id": 1, "text": "good"}, {"_id": 2, "text": 5}, {"_id": 3}])
    job = result.jobs["length/text"].wait()
    assert job.status == "succeeded"
    assert job.progress == (3, 3, 1)
    assert job.failures["first"][0]["_id"] == 2
    assert "TypeError" in job.failures["first"][0]["error"]
    assert outputs(stored) == {1: 4}


IDS = [ObjectId(), "text", 7, 2**40, 1.5, True, b"bytes", None, Decimal128("1.1"), {"a": 1, "b": [1]}]


def test_s6_ids_of_any_type(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many([{"_id": id, "text": "x" * n} for n, id in enumerate(IDS, 1)])
    found = [stored.find_one({"_id": id})["_outputs"]["text"]["length"] for id in IDS]
    assert found == list(range(1, len(IDS) + 1))


def test_w2_documents_outside_a_filter_are_left_alone(docs: sd.Collection[Any], stored: Any) -> None:
    docs.create_model("double", double)
    docs.create_watcher("double", "n", filter={"kind": "number"})
    docs.insert_many([{"_id": i, "kind": kind, "n": i} for i, kind in enumerate(["number", "other", "number"])])
    assert outputs(stored, "n.double") == {0: 0, 2: 4}
    docs.update_one({"_id": 0}, {"$set": {"kind": "other"}})
    assert outputs(stored, "n.double") == {2: 4}
    assert "double/n" not in stored.find_one(0)["_sddb"]["outputs"]
    docs.update_one({"_id": 1}, {"$set": {"kind": "number"}})
    assert outputs(stored, "n.double") == {1: 2, 2: 4}
    docs.update_one({"_id": 1}, {"$unset": {"n": ""}})
    assert outputs(stored, "n.double") == {2: 4}


def test_other_collections_are_left_alone(docs: sd.Collection[Any]) -> None:
    result = docs.database["elsewhere"].insert_one({"text": "a"})
    assert not result.jobs
    assert "_outputs" not in (docs.database["elsewhere"].find_one() or {})


def test_w5_chained_watchers_run_after_their_parents(docs: sd.Collection[Any], stored: Any) -> None:
    docs.create_model("double", double)
    docs.create_watcher("double", "text", features={"text": "length"})
    result = docs.insert_many(rows())
    assert names(result.jobs) == ["length/text", "double/text"]
    assert outputs(stored, "text.double") == {i: 2 * (i + 1) for i in range(5)}
    result = docs.update_one({"_id": 0}, {"$set": {"text": "twelve chars"}})
    assert names(result.jobs) == ["length/text", "double/text"]
    assert outputs(stored, "text.double")[0] == 24


def test_w7_a_diamond_runs_each_watcher_once_after_all_parents(docs: sd.Collection[Any], stored: Any) -> None:
    docs.create_model("double", double)
    docs.create_model("again", double)
    docs.create_model("sum", lambda d: d["a"] + d["b"])
    docs.create_watcher("length", "a")
    docs.create_watcher("length", "b")
    docs.create_watcher("double", "a", features={"a": "length"})
    docs.create_watcher("double", "b", features={"b": "length"})
    docs.create_watcher("sum", "_base", features={"a": "double", "b": "double"})
    result = docs.insert_one({"_id": 1, "a": "xx", "b": "yyy"})
    order = names(result.jobs)
    assert sorted(order) == sorted(set(order))
    assert order[-1] == "sum/_base"
    assert outputs(stored, "_base.sum") == {1: 10}
    docs.update_one({"_id": 1}, {"$set": {"a": "xxxx"}})
    assert outputs(stored, "_base.sum") == {1: 14}


def test_folds(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_many([{"text": "a"} for _ in range(40)])
    assert stored.count_documents({"_fold": "valid"}) == 2
    assert stored.count_documents({"_fold": "train"}) == 38
    docs.insert_one({"_id": 1, "_fold": "mine"})
    assert stored.find_one(1)["_fold"] == "mine"


@pytest.mark.parametrize(
    "write",
    [
        lambda docs, x: docs.insert_one({"_id": 1, "x": x}),
        lambda docs, x: docs.insert_many([{"_id": 1, "x": x}]),
        lambda docs, x: docs.update_one({"_id": 1}, {"$set": {"x": x}}, upsert=True),
        lambda docs, x: docs.replace_one({"_id": 1}, {"x": x}, upsert=True),
        lambda docs, x: docs.find_one_and_update({"_id": 1}, {"$set": {"x": x}}, upsert=True),
    ],
    ids=["insert_one", "insert_many", "update_one", "replace_one", "find_one_and_update"],
)
def test_the_first_write_that_pymongo_would_refuse_makes_a_database_ours(
    client: sd.Client[Any], other_client: sd.Client[Any], database: Any, write: Any
) -> None:
    docs = client[database.name]["fresh"]
    for nobody_stores in (object(), {1, 2}):
        with pytest.raises(InvalidDocument, match="cannot encode object"):
            write(docs, nobody_stores)
    assert database.list_collection_names() == []
    write(docs, [np.eye(2), np.float32(0.5)])
    for seen in (docs, other_client[database.name]["fresh"]):
        (array, number) = seen.find_one(1)["x"]
        assert (array.tolist(), number) == ([[1, 0], [0, 1]], 0.5)


def test_a_transaction_that_is_aborted_leaves_nothing(
    client: sd.Client[Any], docs: sd.Collection[Any], stored: Any
) -> None:
    docs.insert_many(rows())
    records = stored.database["_sddb.jobs"]
    before = list(stored.find()), records.count_documents({})
    with client.start_session() as session, session.start_transaction():
        docs.insert_one({"text": "never"}, session=session)
        docs.insert_many([{"text": "never"}], session=session)
        docs.update_many({}, {"$set": {"text": "never"}}, session=session)
        docs.replace_one({"_id": 1}, {"text": "never"}, session=session)
        docs.find_one_and_update({"_id": 2}, {"$set": {"text": "never"}}, session=session)
        docs.bulk_write([UpdateOne({"_id": 3}, {"$set": {"text": "never"}})], session=session)
        docs.delete_one({"_id": 4}, session=session)
        session.abort_transaction()
    assert (list(stored.find()), records.count_documents({})) == before


def test_a_transaction_that_is_committed_has_its_jobs(
    client: sd.Client[Any], docs: sd.Collection[Any], stored: Any
) -> None:
    docs.insert_one({"_id": 0, "text": "before"})
    with client.start_session() as session, session.start_transaction():
        inserted = docs.insert_one({"_id": 1, "text": "inserted"}, None, session)
        updated = docs.update_one({"_id": 1}, {"$set": {"text": "updated later"}}, session=session)
        assert inserted.jobs["length/text"].id not in [job.id for job in docs.jobs]
    inserted.jobs.wait()
    updated.jobs.wait()
    assert outputs(stored) == expected(stored) == {0: 6, 1: 13}


def test_jobs_are_recorded_before_the_write_and_held_until_it_is_done(
    docs: sd.Collection[Any], stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = Workspace.release

    def release(self: Workspace, jobs: Any, session: Any = None) -> None:
        seen.append((len(jobs), self.jobs.ready(), stored.count_documents({})))
        original(self, jobs, session)

    monkeypatch.setattr(Workspace, "release", release)
    docs.insert_many(rows())
    assert seen == [(1, [], 5)]
