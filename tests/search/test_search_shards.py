"""An index in parts, in real Dask workers: complete like one in one piece, also when workers are killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.cluster.ending import wait_for_end
from superduper_nb.search import IndexOptions
from superduper_nb.search.hits import Hits
from superduper_nb.search.shards import ShardedIndex, merged
from tests.search.conftest import Corpus
from tests.waiting import until

ROWS, DIMENSION = 600, 8


@pytest.fixture(scope="module")
def pool(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskPool]:
    environment = {
        "SUPERDUPER_MONGODB__URI": mongo_uri,
        "JUPYTER_DATA_DIR": str(tmp_path_factory.mktemp("workers")),
    }
    pool = DaskPool(workers=2, environment=environment)
    pool.start()
    yield pool
    pool.close()


@pytest.fixture
def sharded(corpus: Callable[..., Corpus], pool: DaskPool) -> Callable[..., Corpus]:
    def make(measure: str = "cosine", **options: Any) -> Corpus:
        until(lambda: len(pool.workers()) == 2)
        made = corpus(measure, index=IndexOptions(**options), pool=pool)
        random = np.random.default_rng(0)
        vectors = random.standard_normal((ROWS, DIMENSION))
        vectors[100:150] = vectors[:50]  # ties, in different parts
        made.insert(vectors, p=random.permutation(ROWS).tolist())
        return made

    return make


def live_of(made: Corpus) -> ShardedIndex:
    (place,) = made.engine._shelf._places.values()
    assert isinstance(place.live, ShardedIndex)
    return place.live


def kill(pool: DaskPool, made: Corpus, part: int) -> None:
    """Kill the worker that holds a part, and wait until it is gone."""
    pid = pool.client().run(os.getpid)[made.describe()["shards"][part][0]["worker"]]
    process = psutil.Process(pid)
    process.kill()
    assert not wait_for_end([process], timeout=60)


def check(made: Corpus, seed: int = 1) -> None:
    """Search in every way, and compare with brute force."""
    query = np.random.default_rng(seed).standard_normal(DIMENSION)
    made.check(query, 10)
    made.check(query, 700, exact=True)
    for matching in (0, 3, 30, 400):
        made.check(query, 10, {"p": {"$lt": matching}})
    many = made.ask([query.tolist(), (-query).tolist()], n=3)
    assert many.ids[0] == made.ask(query, n=3).ids
    assert not many.partial


@pytest.mark.parametrize("measure", ["cosine", "l2"])
def test_shards_find_what_one_piece_finds(sharded: Any, measure: str) -> None:
    made = sharded(measure, shards=3)
    check(made)
    assert made.ask(id=7, n=1).ids == made.ask(like={"_id": 7}, n=1).ids == [7]
    spread = made.ask([1.0] * DIMENSION, n=20, diversity=0.5)
    assert len(set(spread.ids)) == 20
    described = made.describe()
    assert (described["state"], described["size"], described["dimension"]) == ("ready", ROWS, DIMENSION)
    sizes = [part[0]["size"] for part in described["shards"]]
    assert sum(sizes) == ROWS
    assert min(sizes) > ROWS / 6
    assert len({part[0]["worker"] for part in described["shards"]}) == 2


def test_writes_reach_the_shards_before_the_next_search(sharded: Any) -> None:
    made = sharded("dot", shards=2)
    for i in range(10):
        made.insert([[1000.0 + i] * DIMENSION], ids=[f"new {i}"])
        assert made.ask([1.0] * DIMENSION, n=1).ids == [f"new {i}"]
    made.docs.delete_many({"_id": {"$regex": "new"}})
    made.compute({5: [50.0] * DIMENSION})
    check(made)
    made.retrain()
    made.compute({i: np.random.default_rng(i).standard_normal(DIMENSION) for i in range(ROWS)})
    check(made)


def test_a_lost_shard_is_waited_for(sharded: Any, pool: DaskPool) -> None:
    made = sharded(shards=2)
    check(made)
    kill(pool, made, 0)
    made.insert([[9.0] * DIMENSION], ids=["meanwhile"])
    check(made, seed=2)
    assert live_of(made)._parts[0].was_lost


@pytest.mark.drill
def test_or_answers_say_that_they_are_partial(sharded: Any, pool: DaskPool) -> None:
    made = sharded(shards=2, lost="partial")
    query = np.random.default_rng(3).standard_normal(DIMENSION)
    made.check(query)
    kill(pool, made, 1)
    replies = []

    def whole() -> bool:
        replies.append(made.ask(query, n=ROWS))
        return not replies[-1].partial

    until(whole)
    made.check(query)
    truth = dict(made.truth(query))
    for reply in replies:
        assert reply.partial == (len(reply.ids) < ROWS)
        assert reply.scores == pytest.approx([truth[id] for id in reply.ids])


@pytest.mark.drill
def test_a_lost_replica_is_missed_by_nobody(sharded: Any, pool: DaskPool) -> None:
    made = sharded(shards=1, replicas=2, lost="partial")
    check(made)
    kill(pool, made, 0)
    for seed in range(6):
        check(made, seed)  # asserts that nothing is partial


def test_equal_scores_of_different_parts_come_in_the_order_of_their_id() -> None:
    parts = [Hits(ids, np.ones(len(ids)), None) for ids in ([2, "a", 7], [1, 3], [])]
    assert merged(parts, 4).ids == [1, 2, 3, 7]
    nearest = [Hits([1], np.array([0.5]), np.array([1.0])), Hits([2], np.array([0.8]), np.array([0.25]))]
    assert merged(nearest, 2).distances.tolist() == [0.25, 1.0]  # type: ignore[union-attr]
