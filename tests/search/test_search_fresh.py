"""The index follows its collection: writes, deletions, model versions, drops, restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from superduper_nb.cluster.mongod import Mongod, connect_options
from superduper_nb.search.live import LiveIndex
from tests.search.conftest import Corpus, packed
from tests.waiting import until


def test_a_search_sees_every_write_before_it(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0]])
    for i in range(1, 40):
        made.insert([[1000.0 + i]], ids=[i])
        assert made.ask([1.0], n=1).ids == [i]
        made.compute({0: [2000.0 + i]})
        assert made.ask([1.0], n=1).scores == [2000.0 + i]
        made.compute({0: [1.0]})
        made.docs.delete_one({"_id": i})
        assert made.ask([1.0]).ids == [0]


def test_a_write_elsewhere_does_not_keep_a_search_waiting(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0]])
    made.ask([1.0])
    begin = time.monotonic()
    for i in range(10):
        made.database["elsewhere"].insert_one({"_id": i})
        made.ask([1.0])
    assert time.monotonic() - begin < 10  # a quiet MongoDB writes its own no-op every ten seconds


def test_changes_that_do_not_touch_the_vector_leave_it(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    made.ask([1.0])
    made.docs.update_many({}, {"$set": {"price": 3, "x2": 1}})
    assert made.ask([1.0], filter={"price": 3}).ids == [1, 0]


def test_a_filter_that_is_asked_again_does_without_mongodb_until_a_document_changes(corpus: Any) -> None:
    made = corpus()
    made.insert(np.random.default_rng(0).standard_normal((200, 4)), p=[i % 10 for i in range(200)])
    query, only = [1.0, 0, 0, 0], {"p": 3}

    def asks_mongodb() -> bool:
        return "filter" in made.check(query, n=300, filter=only, after=None).stages_ms

    for i in range(3):
        until(lambda: not asks_mongodb(), "all that match are known")
        made.docs.update_one({"_id": i}, {"$set": {"p": 3}})
        assert asks_mongodb()
        made.docs.delete_one({"_id": 13 + 10 * i})
        made.check(query, n=300, filter=only)


def test_a_filter_that_the_clock_decides_is_asked_each_time(corpus: Any) -> None:
    made = corpus()
    made.insert(np.eye(4), p=[datetime.now(UTC) + timedelta(days=i - 1.5) for i in range(4)])
    past = {"$expr": {"$lt": ["$p", "$$NOW"]}}
    assert all("filter" in made.check([1.0, 0, 0, 0], filter=past).stages_ms for _ in range(10))


def test_documents_enter_and_leave_the_filter_of_the_index(corpus: Any) -> None:
    made = corpus("dot", filter={"public": True})
    made.insert([[1.0], [2.0], [3.0]], public=[True, False, True])
    assert made.ask([1.0]).ids == [2, 0]
    made.docs.update_one({"_id": 1}, {"$set": {"public": True}})
    assert made.ask([1.0]).ids == [2, 1, 0]
    made.docs.update_one({"_id": 2}, {"$unset": {"public": ""}})
    assert made.ask([1.0]).ids == [1, 0]


def test_an_output_that_goes_or_fails_takes_the_document_out(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    made.ask([1.0])
    failed = {"$set": {"_sddb.outputs.m/x.error": "ValueError"}, "$unset": {"_outputs.x.m": ""}}
    made.docs.update_one({"_id": 1}, failed)
    assert made.ask([1.0]).ids == [0]
    made.docs.update_one({"_id": 0}, {"$unset": {"_outputs.x.m": "", "_sddb.outputs.m/x": ""}})
    assert made.ask([1.0]).ids == []


def test_a_dropped_collection_is_empty_at_once_and_can_come_back(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    assert made.ask([1.0]).ids == [1, 0]
    made.docs.drop()
    assert made.ask([1.0]).ids == []
    made.insert([[1.0, 2.0]], ids=["new"])  # of another dimension, too
    assert made.ask([1.0, 1.0]).ids == ["new"]


def test_another_dimension_after_everything_was_deleted(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    made.ask([1.0])
    made.docs.delete_many({})
    assert made.ask([1.0]).ids == []
    made.insert([[1.0, 2.0]])
    assert made.ask([1.0, 1.0]).ids == [0]


# --- model versions ------------------------------------------------------------------------------------------------


def test_outputs_of_two_versions_are_never_mixed(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0], [3.0]])
    assert made.ask(like={"x": [1.0]}).ids == [2, 1, 0]
    made.retrain()
    made.pending = 3
    for i in range(2):  # the second version turns everything round
        made.compute({i: [-1.0 - i]})
        reply = made.ask(like={"x": [1.0]})
        assert (reply.ids, reply.scores) == ([2, 1, 0], [3.0, 2.0, 1.0])
        assert made.queries[-1] == ("m", 1)
    made.compute({2: [-3.0]})
    made.pending = 0
    reply = made.ask(like={"x": [1.0]})
    assert (reply.ids, reply.scores) == ([0, 1, 2], [-1.0, -2.0, -3.0])
    assert made.queries[-1] == ("m", 2)


def test_the_old_version_forgets_what_was_deleted_or_changed_meanwhile(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0], [3.0], [4.0]])
    made.ask([1.0])
    made.retrain()
    made.pending = 4
    made.compute({i: [9.0] for i in range(4)})
    made.docs.delete_one({"_id": 0})
    made.docs.update_one({"_id": 1}, {"$set": {"x": "another content"}})
    made.docs.update_one({"_id": 2}, {"$set": {"price": 1}})
    assert made.ask([1.0]).ids == [3, 2]


def test_a_version_that_fails_on_some_documents_takes_over_all_the_same(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    made.ask([1.0])
    made.retrain()
    made.compute({0: [5.0]})
    until(lambda: made.ask([1.0]).ids == [0])


def test_a_new_definition_answers_at_once(corpus: Any) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    assert made.ask([1.0]).scores == [2.0, 1.0]
    definition = {"models": ["m"], "keys": ["x"], "measure": "l2", "filter": {}}
    made.store.put("semantic_index", "near", definition, collection="docs")
    assert made.ask([1.0]).scores == [1.0, 0.5]


# --- faults --------------------------------------------------------------------------------------------------------


def test_a_stream_that_can_not_be_resumed_is_begun_anew(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    made.ask([1.0])
    watch, broken = LiveIndex._watch, threading.Event()

    def fail_once(self: LiveIndex, resume: Any) -> Any:
        if resume is not None and not broken.is_set():
            broken.set()
            raise PyMongoError("the history is gone")
        return watch(self, resume)

    monkeypatch.setattr(LiveIndex, "_watch", fail_once)
    monkeypatch.setattr(LiveIndex, "_advance", _fail_once(LiveIndex._advance))
    until(broken.is_set)
    made.insert([[3.0]], ids=[2])
    assert made.ask([1.0]).ids == [2, 1, 0]


def _fail_once(method: Any) -> Any:
    failed = threading.Event()

    def failing(self: Any, *arguments: Any) -> Any:
        if not failed.is_set():
            failed.set()
            from pymongo.errors import AutoReconnect

            raise AutoReconnect("cut")
        return method(self, *arguments)

    return failing


@pytest.mark.slow
def test_the_index_comes_back_after_mongod_was_killed(tmp_path: Path, home: Path) -> None:
    with Mongod.attach(tmp_path / "data", cache_gb=0.25) as mongod:
        client: MongoClient[dict[str, Any]] = MongoClient(mongod.uri, **connect_options())
        made = Corpus(client["shop"], "dot")
        try:
            made.insert([[float(i)] for i in range(50)])
            made.check([1.0])
            psutil.Process(mongod.status()["pid"]).kill()
            until(lambda: _works(lambda: made.insert([[99.0]], ids=["after"])))
            made.docs.delete_one({"_id": 7})
            until(lambda: _works(lambda: made.check([1.0])))
            assert made.ask([1.0], n=1).ids == ["after"]
        finally:
            made.engine.close()
            client.close()


def _works(step: Callable[[], Any]) -> bool:
    try:
        step()
    except PyMongoError:
        return False
    return True


def test_packed_is_what_the_codec_writes() -> None:
    assert bytes(packed([1.0]))[:2] == b"\x27\x00"
