"""Documents as samples: each once an epoch, in an order that depends on the seed alone, whatever their identifiers."""

from __future__ import annotations

import itertools
from typing import Any

import bson
from bson import ObjectId
from pymongo.database import Database

from superduper_nb.training.data import Documents, Samples, Skipped


def test_each_document_comes_once_an_epoch(database: Database[dict[str, Any]]) -> None:
    ids: list[Any] = [*range(300), *map(str, range(300)), *(ObjectId() for _ in range(300)), 1.5, True, {"a": 1}]
    database["docs"].insert_many([{"_id": id, "x": i, "keep": i % 3 != 0} for i, id in enumerate(ids)])
    expected = {i for i in range(len(ids)) if i % 3}

    def prepare(document: dict[str, Any]) -> int:
        if document["x"] == 7:
            raise ValueError("not this one")
        return int(document["x"])

    def samples(seed: int, cache: int) -> tuple[Samples, Skipped]:
        skipped = Skipped()
        documents = Documents(database["docs"], {"keep": True}, {"x": 1})
        assert len(documents) == len(expected)
        return Samples(documents, prepare, skipped, seed=seed, buffer=256, cache_bytes=cache), skipped

    kept, skipped = samples(0, 10**6)
    first, second = list(kept.epoch(0)), list(kept.epoch(1))
    assert set(first) == set(second) == expected - {7}
    assert len(first) == len(second) == len(expected) - 1
    assert first != second
    assert len(skipped) == 1  # though two epochs met it
    assert [bson.encode({"": each["_id"]}) for each in skipped.first] == [bson.encode({"": 7})]
    streamed, _ = samples(0, 0)
    assert list(streamed.epoch(0)) == first
    assert list(streamed.epoch(1)) == second
    assert list(samples(1, 0)[0].epoch(0)) != first
    assert list(streamed.in_order()) == list(kept.in_order())
    # Far apart by _id, near in the epoch: the shuffle reaches beyond a block.
    assert max(abs(a - b) for a, b in itertools.pairwise(first)) > 300
