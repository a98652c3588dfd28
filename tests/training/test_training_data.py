"""Documents as samples: each once an epoch, in an order that depends on the seed alone, whatever their identifiers."""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Any, ClassVar

import bson
import pytest
import torch
from bson import CodecOptions, ObjectId
from pymongo.database import Database

from superduper_nb.training.data import Samples, Skipped
from superduper_nb.training.documents import Documents


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
    assert list(streamed.epoch(None)) == list(kept.epoch(None))
    # Far apart by _id, near in the epoch: the shuffle reaches beyond a block.
    assert max(abs(a - b) for a, b in itertools.pairwise(first)) > 300


class Counted(dict[str, Any]):
    """A document that is counted as long as it lives."""

    alive: ClassVar[weakref.WeakSet[Counted]]
    __hash__ = object.__hash__


@pytest.fixture
def numbers(database: Database[dict[str, Any]]) -> Documents:
    """Return 6 000 documents, of which only one field is wanted."""
    database["docs"].insert_many([{"_id": i, "x": float(i), "more": "x" * 100} for i in range(6000)])
    return Documents(database["docs"], {}, {"x": 1})


def test_never_more_than_a_few_buffers_are_in_memory(database: Database[dict[str, Any]], numbers: Documents) -> None:
    Counted.alive = weakref.WeakSet()

    class Seen(Counted):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            Counted.alive.add(self)

    options: CodecOptions[Any] = CodecOptions(document_class=Seen)
    documents = Documents(database["docs"].with_options(codec_options=options), {}, {"x": 1}, blocks=numbers.blocks)

    def prepare(document: dict[str, Any]) -> float:
        assert set(document) == {"_id", "x"}  # nothing else was read
        return float(document["x"])

    samples = Samples(documents, prepare, skipped := Skipped(), buffer=256)
    found, most = set(), 0
    for batch in samples.batches(32, 0):
        found |= set(batch.data)
        most = max(most, len(Counted.alive))
    assert found == set(range(6000))
    assert not len(skipped)
    assert 256 <= most <= 4 * 256


def test_so_many_threads_prepare(numbers: Documents) -> None:
    together, here = threading.Barrier(3, timeout=20), threading.local()

    def prepare(document: dict[str, Any]) -> float:
        if not hasattr(here, "met"):
            here.met = together.wait()
        return float(document["x"])

    samples = Samples(numbers, prepare, skipped := Skipped(), cache_bytes=10**7, workers=3)
    assert sorted(itertools.chain.from_iterable(batch.data for batch in samples.batches(50, 0))) == list(range(6000))
    assert not len(skipped)


def test_batches_picked_from_memory_are_those_that_were_read(numbers: Documents) -> None:
    """Once everything is kept, whole batches come from one tensor; and each share of a batch is its own part of it."""

    def prepare(document: dict[str, Any]) -> Any:
        if document["_id"] % 100 == 7:
            raise ValueError("not this one")
        return torch.tensor(document["x"]), document["_id"]

    def samples(cache: int, share: tuple[int, int] = (0, 1)) -> Samples:
        collate = torch.utils.data.default_collate
        how: dict[str, Any] = {"collate": collate, "by_rows": True, "buffer": 512, "share": share}
        return Samples(numbers, prepare, Skipped(), seed=3, cache_bytes=cache, **how)

    kept, read, halves = samples(10**8), samples(0), [samples(0, (part, 2)) for part in (0, 1)]
    list(kept.batches(64, 0))
    for epoch in (1, 2, None):
        ours = list(kept.batches(64, epoch))
        for one, other, *parts in zip(
            ours, read.batches(64, epoch), *(h.batches(64, epoch) for h in halves), strict=True
        ):
            assert one.size == other.size == sum(part.size for part in parts)
            for at in (0, 1):
                assert torch.equal(one.data[at], other.data[at])
                assert torch.equal(one.data[at], torch.cat([part.data[at] for part in parts]))
        assert sum(batch.size for batch in ours) == 5940
    assert [batch.size for batch in kept.batches(64, 1, start=90)] == [b.size for b in kept.batches(64, 1)][90:]
    assert kept._stack is not None
    assert read._stack is None
