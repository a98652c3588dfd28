"""Batches are read as pymongo's cursor of raw batches reads them."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from pymongo import CursorType
from pymongo.database import Database
from pymongo.errors import OperationFailure

from superduper_nb.search import batches
from superduper_nb.search.batches import Batches


@pytest.mark.parametrize("kind", [CursorType.NON_TAILABLE, CursorType.EXHAUST])
def test_the_batches_are_pymongos(database: Database[dict[str, Any]], kind: int, monkeypatch: Any) -> None:
    docs = database["docs"]
    docs.insert_many([{"_id": i, "x": "x" * (i % 13)} for i in range(120)])
    read: list[Any] = []
    monkeypatch.setattr(batches, "_read", lambda reply, read_it=batches._read: read.append(read_it(reply)) or read[-1])
    for query in ({}, {"_id": {"$lt": 40}}, {"_id": 1000}):
        options: dict[str, Any] = {"batch_size": 40, "sort": [("_id", 1)], "cursor_type": kind}
        assert list(Batches(docs, query, **options)) == list(docs.find_raw_batches(query, **options))
    assert read
    assert None not in read  # each was found where mongod has it


def test_an_error_is_pymongos(database: Database[dict[str, Any]]) -> None:
    with pytest.raises(OperationFailure, match="nope"):
        list(Batches(database["docs"], {"$nope": 1}))


def test_a_reply_of_another_order_is_left_to_pymongo() -> None:
    said = {"cursor": {"id": 0, "ns": "a.b", "firstBatch": []}, "ok": 1}
    assert batches._read(memoryview(bson.encode(said))) is None
    assert batches._read(memoryview(bson.encode({"ok": 1, "cursor": {"firstBatch": []}}))) is None
