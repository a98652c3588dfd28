"""Validation sets: frozen copies beside the documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from client_models import outputs

import superduper_nb as sd
from superduper_nb.components.validation import COPIES
from superduper_nb.errors import ConflictError, InvalidInputError, NotFoundError

Docs = sd.Collection[Any]


@pytest.fixture
def docs(docs: Docs) -> Docs:
    """Return the collection with 20 documents, every fourth of them for validation."""
    rows = [{"_id": n, "text": "x" * n, "v": np.full(3, n, np.float32)} for n in range(20)]
    docs.insert_many([{**row, "_fold": "train" if n % 4 else "valid"} for n, row in enumerate(rows)])
    docs.create_splitter(
        "halves", lambda d: ({"query": d["text"][:1], "v": d["v"]}, {"_id": d["_id"], "text": d["text"]})
    )
    return docs


def test_a_set_is_a_frozen_copy_of_what_nothing_is_trained_on(docs: Docs, stored: Any, database: Any) -> None:
    before = stored.find_one(4)
    assert not docs.create_validation_set("all")
    held = docs.validation_sets["all"]
    assert [document["_id"] for document in held] == [0, 4, 8, 12, 16]
    assert len(held) == 5
    assert isinstance(held[1]["v"], np.ndarray)
    assert [document["_id"] for document in held[1:4:2]] == [4, 12]
    assert [document["_id"] for document in held[::-2]] == [16, 8, 0]
    assert held[-1]["_id"] == 16
    assert held[7:] == []
    with pytest.raises(IndexError):
        held[5]
    assert repr(held) == "<validation set 'all': 5 documents>"
    docs.update_one({"_id": 4}, {"$set": {"text": "changed"}})
    docs.delete_one({"_id": 8})
    docs.insert_one({"_id": 100, "text": "new", "_fold": "valid"})
    copied = database[COPIES].find_one({"document._id": 4})["document"]
    assert copied == {key: value for key, value in before.items() if key != "_sddb"}
    assert len(list(docs.validation_sets["all"])) == 5
    assert outputs(database[COPIES]) == {}, "no watcher sees the copies"


def test_a_document_may_be_in_several_sets_and_what_is_there_stays(docs: Docs, database: Any) -> None:
    docs.create_validation_set("few", {"text": {"$gt": "x"}}, sample_size=3)
    docs.create_validation_set("training", {"_fold": "train"})
    docs.create_validation_set("both", {"_fold": {"$exists": True}, "_id": {"$in": [0, 1]}})
    drawn = [document["_id"] for document in docs.validation_sets["few"]]
    assert len(drawn) == len(set(drawn)) == 3
    assert set(drawn) <= {4, 8, 12, 16}
    assert len(docs.validation_sets["training"]) == 15
    docs.create_validation_set("few", {"text": {"$gt": "x"}}, sample_size=3)
    assert [document["_id"] for document in docs.validation_sets["few"]] == drawn, "the same again is nothing"
    assert docs.validation_sets.versions("few") == [1]
    docs.create_validation_set("few", {"text": {"$gt": "x"}}, sample_size=100)
    assert docs.validation_sets.versions("few") == [1, 2]
    assert len(docs.validation_sets["few"]) == 4
    assert docs.validation_sets.describe("few")["count"] == 4
    docs.validation_sets.delete("few")
    assert sorted(docs.validation_sets) == ["both", "training"]
    assert database[COPIES].count_documents({}) == 17
    with pytest.raises(NotFoundError, match="'few'"):
        docs.validation_sets["few"]


def test_making_a_set_triggers_no_watcher_and_what_it_copied_stays_watched(docs: Docs, database: Any) -> None:
    """PEER 2.4: documents of a set were inserted anew, and all watchers computed on them."""
    jobs = {job.id for job in docs.jobs}
    assert not docs.create_validation_set("all")
    assert {job.id for job in docs.jobs} == jobs
    assert outputs(database[COPIES]) == {}
    # A document of the validation fold itself is watched as any other.
    assert docs.insert_one({"_id": 100, "text": "four", "_fold": "valid"}).jobs
    assert docs.update_one({"_id": 4}, {"$set": {"text": "seven"}}).jobs
    assert [docs.find_one(id)["_outputs"]["text"]["length"] for id in (100, 4)] == [4, 5]


def test_a_splitter_makes_pairs(docs: Docs, database: Any, other_client: sd.Client[Any]) -> None:
    docs.create_validation_set("pairs", {"text": {"$gt": ""}}, splitter="halves")
    pairs = list(other_client[database.name]["docs"].validation_sets["pairs"].pairs())
    assert [rest["_id"] for _, rest in pairs] == [4, 8, 12, 16]
    assert all(query["query"] == "x" and query["v"].tolist() == [rest["_id"]] * 3 for query, rest in pairs)
    with pytest.raises(ConflictError, match="validation_set pairs"):
        docs.splitters.delete("halves")
    docs.create_validation_set("plain")
    with pytest.raises(InvalidInputError, match=r"without splitter="):
        docs.validation_sets["plain"].pairs().__next__()


def test_what_can_not_be_set_apart_is_said_and_nothing_is_written(docs: Docs, database: Any) -> None:
    docs.create_splitter("broken", lambda d: d["nothing"])
    docs.create_splitter("three", lambda d: (1, 2, 3))
    for arguments, problem in (
        ({"id": "a.b"}, r"can't be named 'a\.b'"),
        ({"id": "x", "sample_size": 0}, "sample_size=0: it must be a whole number"),
        ({"id": "x", "filter": {"$nonsense": 1}}, "MongoDB refuses"),
        ({"id": "x", "filter": {"text": "nowhere"}}, "No document of docs matches"),
        ({"id": "x", "splitter": "broken"}, r"The splitter 'broken' failed on document 0: KeyError"),
        ({"id": "x", "splitter": "three"}, r"must return \(query part, rest\)"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            docs.create_validation_set(**arguments)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="Did you mean 'halves'"):
        docs.create_validation_set("x", splitter="halfs")
    assert database[COPIES].count_documents({}) == 0
    assert list(docs.validation_sets) == []
