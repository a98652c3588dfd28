"""A real client over the test's own database, and ``%sddb`` without IPython."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pymongo.database import Database

from superduper_nb.client import Client
from superduper_nb.cluster.mongod import connect_options
from superduper_nb.magics.session import Connections
from superduper_nb.magics.table import Outcome, run

ROWS = [
    {"text": "warm red wool scarf", "price": 29.0, "color": "red"},
    {"text": "thick winter coat", "price": 120.0, "color": "blue"},
    {"text": "wool hat with ear flaps", "price": 19.5, "color": "red"},
    {"text": "insulated gloves", "price": 35.0, "color": "black"},
    {"text": "summer hat of straw", "price": 15.0, "color": "yellow"},
    {"text": "swimming trunks", "price": 22.0, "color": "blue"},
]


def encode(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Encode a text as a bag of words."""
    vector = np.zeros(64, dtype=np.float32)
    for word in text.split():
        vector[zlib.crc32(word.encode()) % 64] += 1
    return vector


@pytest.fixture
def client(mongo_uri: str) -> Iterator[Client[dict[str, Any]]]:
    """Return a client that does everything in this process."""
    with Client[dict[str, Any]](mongo_uri, **connect_options()) as made:
        yield made


@pytest.fixture
def connections(client: Client[dict[str, Any]]) -> Connections:
    """Return connections whose default is that client."""
    made = Connections()
    made.open("default", {}, connect=lambda **_: client)
    return made


@pytest.fixture
def sddb(connections: Connections, database: Database[Any]) -> Callable[..., Outcome]:
    """Return ``%sddb`` as a function of line and cell; the test's collection ``products`` is in use, as ``docs``."""
    run(f"use {database.name}.products --as docs", connections=connections)

    def call(line: str, cell: str | None = None, /, **names: Any) -> Outcome:
        return run(line, cell, names=names, connections=connections)

    return call


@pytest.fixture
def docs(client: Client[dict[str, Any]], database: Database[Any]) -> Any:
    """Return ``products`` with six documents, findable by the meaning of ``text``."""
    collection = client[database.name]["products"]
    collection.create_model("words", encode, type="vector")
    collection.create_watcher("words", "text")
    collection.create_semantic_index("meaning", ["words"], ["text"])
    collection.insert_many([dict(row) for row in ROWS])
    return collection
