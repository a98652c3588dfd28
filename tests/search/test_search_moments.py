"""Every answer is that of one moment: what the collection held then, and nothing of another."""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from bson import Timestamp
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from superduper_nb.documents.arrays import Vector
from superduper_nb.search import SearchReply, SearchRequest
from superduper_nb.search.live import LiveIndex
from superduper_nb.search.source import Source
from superduper_nb.search.stream import News
from tests.search.conftest import Corpus


def scores(made: Corpus, after: Timestamp | None = None) -> dict[Any, float]:
    """Return what an index of one number a document holds."""
    reply = ask(made, after)
    return dict(zip(reply.ids, reply.scores, strict=True))


def ask(made: Corpus, after: Timestamp | None = None) -> SearchReply:
    where = {"database": made.database.name, "collection": made.docs.name}
    return made.engine.search(SearchRequest(**where, vector=[1.0], n=1000, after=after))


# --- a stream that is behind -----------------------------------------------------------------------------------------


class Held:
    """Holds back what an index has heard of, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard, self.go, self.done = (threading.Semaphore(0) for _ in range(3))
        apply = LiveIndex._apply

        def held(live: LiveIndex, news: News) -> None:
            if len(news):
                self.heard.release()
                assert self.go.acquire(timeout=60)
            apply(live, news)
            if len(news):
                self.done.release()

        monkeypatch.setattr(LiveIndex, "_apply", held)

    def after(self, *writes: Callable[[], Any]) -> None:
        """Have the index hear of the first write before the others are made, then let it act on that one."""
        first, *later = writes
        first()
        assert self.heard.acquire(timeout=60)
        for write in later:
            write()
        self.go.release()
        assert self.done.acquire(timeout=60)


@pytest.fixture
def lagging(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Corpus, Held]]:
    """Return a corpus of two documents, and what holds its index back."""
    made: Corpus = corpus("dot")
    made.insert([[1.0], [10.0]])
    assert scores(made, made.now()) == {0: 1.0, 1: 10.0}
    held = Held(monkeypatch)
    yield made, held
    held.go.release(1000)


def test_an_index_that_is_behind_shows_what_was_not_what_will_be(lagging: tuple[Corpus, Held]) -> None:
    made, held = lagging
    held.after(lambda: made.compute({0: [2.0]}), lambda: made.compute({1: [20.0]}), lambda: made.compute({0: [3.0]}))
    assert scores(made) == {0: 2.0, 1: 10.0}
    held.go.release(1000)
    assert scores(made, made.now()) == {0: 3.0, 1: 20.0}


def test_a_document_that_is_gone_by_now_is_there_as_long_as_it_was(lagging: tuple[Corpus, Held]) -> None:
    made, held = lagging
    held.after(lambda: made.insert([[5.0]], ids=["new"]), lambda: made.docs.delete_many({}))
    assert scores(made) == {0: 1.0, 1: 10.0, "new": 5.0}
    held.go.release(1000)
    assert scores(made, made.now()) == {}


@pytest.mark.parametrize("code", [72, 239, 246])
def test_where_the_history_is_forgotten_documents_are_read_as_they_are(
    lagging: tuple[Corpus, Held], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    made, held = lagging

    def forgotten(*_: Any, **__: Any) -> Any:
        raise OperationFailure("the snapshot is too old", code)

    monkeypatch.setattr(type(made.docs.database), "cursor_command", forgotten)
    held.after(lambda: made.compute({0: [2.0]}), lambda: made.compute({0: [3.0]}))
    assert scores(made)[0] == 3.0
    held.go.release(1000)
    assert scores(made, made.now()) == {0: 3.0, 1: 10.0}


def test_what_changed_while_an_index_was_loaded_is_in_it_when_it_answers(
    corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Corpus = corpus("dot")
    made.insert([[1.0], [10.0]])
    batches = Source.batches

    def read_then_changed(source: Source) -> Iterator[bytes]:
        yield from batches(source)
        made.compute({0: [2.0]})

    monkeypatch.setattr(Source, "batches", read_then_changed)
    assert scores(made) == {0: 2.0, 1: 10.0}


def test_vectors_of_another_dimension_are_taken_in_when_the_others_have_gone(corpus: Any) -> None:
    made: Corpus = corpus("dot")
    made.insert([[1.0, 1.0]])
    assert made.ask([1.0, 1.0]).ids == [0]
    made.insert([[3.0]], ids=["odd"])
    assert made.ask([1.0, 1.0]).ids == [0]
    made.docs.delete_one({"_id": 0})
    assert made.ask([1.0]).ids == ["odd"]


# --- writers and searchers -------------------------------------------------------------------------------------------


class History:
    """What a collection of one number a document held at each moment, by its change stream."""

    def __init__(self, docs: Collection[dict[str, Any]], start: dict[Any, float], since: Timestamp) -> None:
        self.docs, self.since = docs, since
        self.times: list[Timestamp] = []
        self.places: dict[Any, list[int]] = defaultdict(list)
        self.values: dict[Any, list[float | None]] = {id: [value] for id, value in start.items()}

    def read(self) -> None:
        """Note each change."""
        self.docs.insert_one({"_id": "end"})
        with self.docs.watch(start_at_operation_time=Timestamp(self.since.time, self.since.inc + 1)) as stream:
            for event in stream:
                if (id := event["documentKey"]["_id"]) == "end":
                    break
                self.times.append(event["clusterTime"])
                self.places[id].append(len(self.times))
                self.values[id].append(_value(event))

    def had(self, found: dict[Any, float], first: int, last: int) -> bool:
        """Say whether the collection was so after some number of changes, from the first to the last."""
        for id, value in found.items():
            i = self.values[id].index(value)
            first = max(first, self.places[id][i - 1] if i else 0)
            last = min(last, self.places[id][i] - 1 if i < len(self.places[id]) else last)
        gone = self.values.keys() - found.keys()
        return any(all(self.at(id, moment) is None for id in gone) for moment in range(first, last + 1))

    def at(self, id: Any, moment: int) -> float | None:
        """Return what a document held after so many changes."""
        return self.values[id][bisect_right(self.places[id], moment)]


def _value(event: Any) -> float | None:
    if event["operationType"] == "delete":
        return None
    update = event["operationType"] == "update"
    stored = event["updateDescription"]["updatedFields"]["_outputs.x.m"] if update else _output(event["fullDocument"])
    return float(Vector().decode(stored)[0])


def _output(document: Any) -> Any:
    return document["_outputs"]["x"]["m"]


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.drill)])
def test_each_answer_beside_writers_is_that_of_one_moment_between_request_and_reply(corpus: Any, seconds: int) -> None:
    made: Corpus = corpus("dot")
    count, ticket, stop = 100, itertools.count(1000), threading.Event()
    made.insert([[float(i)] for i in range(count)])
    scores(made, made.now())
    replies, failed = [], []
    history = History(made.docs, {i: float(i) for i in range(count)}, made.now())

    def write(seed: int) -> None:
        random, gone = np.random.default_rng(seed), set()
        while not stop.is_set():
            id = 2 * int(random.integers(count // 2)) + seed
            if id in gone:
                made.insert([[float(next(ticket))]], ids=[id])
                gone.remove(id)
            elif random.random() < 0.2:
                made.docs.delete_one({"_id": id})
                gone.add(id)
            else:
                made.compute({id: [float(next(ticket))]})

    def search(fresh: bool) -> None:
        while not stop.is_set():
            after = made.now() if fresh else None
            replies.append((after, scores(made, after), made.now()))

    def guarded(step: Callable[[Any], None], argument: Any) -> None:
        try:
            step(argument)
        except BaseException as error:
            failed.append(error)
            raise

    steps = [*((write, i) for i in range(2)), *((search, i % 2 == 0) for i in range(4))]
    threads = [threading.Thread(target=guarded, args=step) for step in steps]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    history.read()
    assert len(history.times) > 50
    assert len(replies) > 50
    for after, found, reached in replies:
        first = 0 if after is None else bisect_right(history.times, after)
        assert history.had(found, first, bisect_right(history.times, reached)), found
