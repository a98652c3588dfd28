"""What jobs are measured against: the bare encode loop in processes, and pymongo reading and writing the same bytes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from typing import Any

from bson.binary import Binary
from pymongo import MongoClient, UpdateOne

from superduper_nb.cluster.dask_host import worker_environment

__all__ = ["EncodeLoop", "read_and_write"]

BATCH = 32


class EncodeLoop:
    """Processes with one thread each, and the allocator's settings of a worker, that do nothing but encode texts."""

    def __init__(self, processes: int) -> None:
        self._processes, before = processes, dict(os.environ)
        os.environ |= worker_environment(1)
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_load)
        list(self._pool.map(_encode, [[["warm up"]]] * 4 * processes))
        os.environ.clear()
        os.environ.update(before)

    def seconds(self, texts: list[str]) -> float:
        """Return how long all texts take: in batches of 32 of like length, which are given out one after the other."""
        ordered = sorted(texts, key=len)
        batches = [ordered[at : at + BATCH] for at in range(0, len(ordered), BATCH)]
        shares = [batches[n :: self._processes] for n in range(self._processes)]
        begun = time.perf_counter()
        done = sum(self._pool.map(_encode, shares))
        assert done == len(texts)
        return time.perf_counter() - begun

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


_model: Any = None


def _load() -> None:
    global _model
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    from serving_models import Encoder

    _model = Encoder().eval()


def _encode(batches: list[list[str]]) -> int:
    import torch

    rows: list[Any] = []
    with torch.inference_mode():
        for batch in batches:
            rows.extend(_model(_model.collate([_model.preprocess(text) for text in batch])).numpy())
    return len(rows)


def read_and_write(collection: Any, output: Binary) -> None:
    """Read the vector ``v`` of each document and write an output as jobs do, by `bulk_write` of a thousand."""
    token = {"v": 1, "h": b"0" * 12}
    change = {"$set": {"_outputs.v.linear": output, "_sddb.outputs.linear/v": token}}
    batch: list[Any] = []
    for document in chain(collection.find({}, {"v": 1}, batch_size=2000), [None]):
        if document is not None:
            batch.append(UpdateOne({"_id": document["_id"]}, change))
        if batch and (document is None or len(batch) == 1000):
            collection.bulk_write(batch, ordered=False)
            batch = []


def plain_client(uri: str) -> MongoClient[dict[str, Any]]:
    """Return a client of pymongo's that waits for the majority, as ours does."""
    from superduper_nb.cluster.mongod import connect_options

    return MongoClient(uri, **connect_options())
