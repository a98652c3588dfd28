"""What the client costs beside pymongo: ``python benchmarks/client.py [ROUNDS]``.

Each operation is timed with pymongo and with ours right after each other, in turns first, on the same MongoDB and the
same documents; the figure is the median over all such pairs of ours divided by pymongo's. 1.00 is pymongo's own speed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from pymongo import MongoClient

import superduper_nb as sd
from superduper_nb.cluster.mongod import Mongod, connect_options

ROWS = 2000
Collection = Any
Operation = Callable[[Collection], None]
Took = tuple[float, float]
"""Seconds by the clock, and of this thread's CPU."""


def row(i: int) -> dict[str, Any]:
    """Return a document of ten fields, one of them nested."""
    words = {f"field_{n}": f"value {i * n}" for n in range(6)}
    return {"number": i, "price": i / 7, **words, "tags": ["a", "b"], "nested": {"x": i, "y": None}}


def find_one(documents: Collection) -> None:
    """Read one document, twenty times."""
    for _ in range(20):
        documents.find_one({"number": 7})


def find(documents: Collection) -> None:
    """Read all documents."""
    for _ in documents.find():
        pass


def insert_one(documents: Collection) -> None:
    """Write a document, twenty times."""
    for i in range(20):
        documents.database["written"].insert_one(row(i))


def insert_many(documents: Collection) -> None:
    """Write many documents."""
    documents.database["written"].insert_many([row(i) for i in range(ROWS)])


def update_one(documents: Collection) -> None:
    """Change a document, twenty times."""
    for i in range(20):
        documents.update_one({"number": 7}, {"$set": {"price": i}})


def ratio(operation: Operation, plain: Collection, ours: Collection, rounds: int) -> tuple[float, float, float]:
    """Return pymongo's median time in ms, and ours as a multiple of it: by the clock, and of this thread's CPU."""
    pairs = [pair(operation, plain, ours, ours_first=bool(turn % 2)) for turn in range(rounds)]
    clock, cpu = (median(mine[at] / theirs[at] for theirs, mine in pairs) for at in (0, 1))
    return median(theirs[0] for theirs, _ in pairs) * 1000, clock, cpu


def pair(operation: Operation, plain: Collection, ours: Collection, *, ours_first: bool) -> tuple[Took, Took]:
    """Time an operation with pymongo and with ours."""
    if ours_first:
        mine = timed(operation, ours)
        return timed(operation, plain), mine
    return timed(operation, plain), timed(operation, ours)


def timed(operation: Operation, documents: Collection) -> Took:
    """Return the seconds that an operation takes, and those of them that this thread computes."""
    clock, cpu = time.perf_counter(), time.thread_time()
    operation(documents)
    took = time.perf_counter() - clock, time.thread_time() - cpu
    documents.database["written"].drop()
    return took


def main(rounds: int = 60) -> None:
    """Print a line for each operation, with nothing registered and with a model that watches another collection."""
    with tempfile.TemporaryDirectory() as folder, Mongod.attach(Path(folder), cache_gb=0.5) as mongod:
        plain = MongoClient(mongod.uri, **connect_options())["bench"]["rows"]
        ours = sd.Client(mongod.uri, **connect_options())["bench"]["rows"]
        plain.create_index("number")
        plain.insert_many([row(i) for i in range(ROWS)])
        for state in ("nothing registered", "a model registered"):
            print(f"{state}: pymongo in ms; ours as a multiple of it by the clock, and of this thread's CPU")
            for operation in (find_one, find, insert_one, insert_many, update_one):
                took, clock, cpu = ratio(operation, plain, ours, rounds)
                print(f"  {operation.__name__:<12} {took:8.2f} ms  {clock:5.3f}  {cpu:5.3f}", flush=True)
            ours.create_model("length", len)
        plain.database.client.close()
        ours.database.client.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
