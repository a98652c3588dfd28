"""Clients that do everything in this process, over the test's own database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from client_models import length, words
from pymongo.database import Database

import superduper_nb as sd

Document = dict[str, Any]


@pytest.fixture
def client(mongo_uri: str) -> Iterator[sd.Client[Document]]:
    with sd.Client[Document](mongo_uri) as made:
        yield made


@pytest.fixture
def other_client(mongo_uri: str) -> Iterator[sd.Client[Document]]:
    """Return a second client: what another notebook sees."""
    with sd.Client[Document](mongo_uri) as made:
        yield made


@pytest.fixture
def docs(client: sd.Client[Document], database: Database[Document]) -> sd.Collection[Document]:
    """Return a collection with a model of lengths and a watcher of it on ``text``."""
    collection = client[database.name]["docs"]
    collection.create_model("length", length)
    collection.create_watcher("length", "text")
    return collection


@pytest.fixture
def stored(database: Database[Document]) -> Any:
    """Return the same collection as plain pymongo sees it."""
    return database["docs"]


@pytest.fixture
def findable(docs: sd.Collection[Document]) -> sd.Collection[Document]:
    """Return that collection with an index over the words of ``text``."""
    docs.create_model("words", words, type="vector")
    docs.create_semantic_index("meaning", ["words"], ["text"])
    return docs
