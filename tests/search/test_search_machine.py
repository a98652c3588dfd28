"""Whatever is written, in whatever order: search equals brute force over MongoDB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pymongo import MongoClient

from superduper_nb.search import IndexOptions, coding, keeper
from tests.search.conftest import Corpus

ids = st.one_of(st.integers(0, 12), st.sampled_from(["a", "b", 1.5, None, True]))
vectors = st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=3)
prices = st.integers(0, 3)
KINDS = {
    "cosine": IndexOptions(kind="scan", depth=10_000),  # so deep that nothing is missed
    "dot": IndexOptions(kind="exact"),
    "l2": IndexOptions(compact=True, depth=10_000),
}
measures = st.sampled_from(list(KINDS))


class Writes(RuleBasedStateMachine):
    """Writes of every kind; after each, searches of every kind."""

    connect: Callable[[], MongoClient[dict[str, Any]]]
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.name = f"test_{uuid4().hex[:12]}"
        self.corpora = {
            measure: Corpus(self.connect()[self.name], measure, name=measure, snapshots=self.folder, index=index)
            for measure, index in KINDS.items()
        }

    def teardown(self) -> None:
        for corpus in self.corpora.values():
            corpus.engine.close()
        self.connect().drop_database(self.name)

    @rule(measure=measures, id=ids, vector=vectors, price=prices)
    def replace_or_insert(self, measure: str, id: Any, vector: list[float], price: int) -> None:
        corpus = self.corpora[measure]
        corpus.docs.replace_one({"_id": id}, corpus.document(id, np.array(vector), price=price), upsert=True)

    @rule(measure=measures, vector=vectors, price=prices)
    def compute_many(self, measure: str, vector: list[float], price: int) -> None:
        corpus = self.corpora[measure]
        matching = [document["_id"] for document in corpus.docs.find({"price": price}, {"_id": 1})]
        if matching:
            corpus.compute([(id, np.array(vector) + i) for i, id in enumerate(matching)])

    @rule(measure=measures, price=prices, other=prices)
    def change_what_filters_ask(self, measure: str, price: int, other: int) -> None:
        self.corpora[measure].docs.update_many({"price": price}, {"$set": {"price": other}})

    @rule(measure=measures, price=prices)
    def delete(self, measure: str, price: int) -> None:
        self.corpora[measure].docs.delete_many({"price": price})

    @rule(measure=measures)
    def drop(self, measure: str) -> None:
        self.corpora[measure].docs.drop()

    @rule()
    def retrain(self) -> None:
        version = self.corpora["l2"].retrain()
        for corpus in self.corpora.values():
            corpus.version = version
            found = list(corpus.docs.find({}, {"_id": 1}))
            if found:
                corpus.compute([(d["_id"], np.full(3, float(i + 1))) for i, d in enumerate(found)])

    @rule(measure=measures)
    def restart(self, measure: str) -> None:
        self.corpora[measure].restart()

    @rule(measure=measures, query=vectors.filter(any), n=st.integers(1, 20), price=prices, exact=st.booleans())
    def search(self, measure: str, query: list[float], n: int, price: int, exact: bool) -> None:
        corpus = self.corpora[measure]
        corpus.check(query, n, exact=exact)
        corpus.check(query, n, {"price": price}, exact=exact)
        corpus.check(query, n, {"price": {"$ne": price}}, exact=exact)

    @invariant()
    def every_index_is_complete(self) -> None:
        for corpus in self.corpora.values():
            corpus.check([1.0, 2.0, -1.0], 30)


@pytest.mark.slow
def test_any_sequence_of_writes(mongo_uri: str, home: Any, database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_WORTH": 1, "_CHANGED_AT_CLOSE": 1}.items():
        monkeypatch.setattr(keeper, name, value)  # a snapshot of anything, at almost every restart
    monkeypatch.setattr(coding, "_TAIL", 4)
    Writes.folder = home / "indexes"
    Writes.connect = staticmethod(lambda: database.client)
    run_state_machine_as_test(
        Writes,
        settings=settings(max_examples=6, stateful_step_count=12, suppress_health_check=list(HealthCheck)),
    )
