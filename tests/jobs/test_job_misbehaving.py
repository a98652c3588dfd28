"""Models that do what a model should not: hang, eat memory, answer with too many rows.

Those that end their process or print without end are among the tests of workers; what takes minutes is a drill.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from job_world import GOOD, Oracle, ThreadPool, World, lost_worker

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.jobs.dispatcher import Dispatcher

Start = Callable[..., Dispatcher]
Run = Callable[..., dict[str, Any]]


def double(x: Any) -> Any:
    return x * 2


def hang(x: Any) -> Any:
    if x == 33:
        threading.Event().wait()
    return x * 2


def hang_with_the_gil(x: Any) -> Any:
    if x == 3:
        re.match(r"(a+)+$", "a" * 60 + "!")
    return x * 2


def devour(x: Any) -> Any:
    hoard = []
    while x == 33:
        hoard.append(bytearray(50 * 2**20))
        time.sleep(0.02)
    return x * 2


def leak(x: Any, _kept: list[bytearray] = []) -> Any:  # noqa: B006  (it is meant to stay)
    _kept.append(bytearray(20 * 2**20))
    return x * 2


def rows(n: int) -> list[dict[str, Any]]:
    return [{"_id": i, "x": i} for i in range(n)]


@pytest.fixture
def run(world: World, dispatch: Start) -> Run:
    """Insert documents under a watcher of a model, have a pool compute them, and return the job's record."""

    def run(model: Any, n: int, pool: Any, *, timeout: float = 60, **options: Any) -> dict[str, Any]:
        world.model("m", model)
        world.watcher("m", "x", batch_size=8)
        dispatcher = dispatch(pool, **options)
        jobs = world.insert(rows(n))
        dispatcher.notify(world.database.name)
        return world.ended(jobs["m/x"], timeout)

    return run


def assert_all_but(world: World, failed: list[int], n: int) -> None:
    (watcher,) = world.watchers()
    assert Oracle(world, watcher, double).check(range(n), failed=failed) == GOOD


class HangingPool(ThreadPool):
    """Threads in which some documents never come to an end: what workers tell then, and how they end, is made here."""

    def __init__(self, hangs: Callable[[list[Any]], bool]) -> None:
        super().__init__()
        self._hangs = hangs
        self.lose = self._tell_and_die

    def subscribe(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> None:
        self._handler = handler

    def submit(self, key: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self._hangs(args[2]):
            self._handler({"key": key, "stuck": True})
        return super().submit(key, function, *args, **options)

    def _tell_and_die(self, ids: list[Any]) -> BaseException | None:
        return lost_worker() if self._hangs(ids) else None


@pytest.mark.usefixtures("worker_here")
def test_a_document_that_a_model_hangs_on_is_found_while_others_go_on(world: World, run: Run) -> None:
    pool = HangingPool(lambda ids: 33 in ids)
    record = run(double, 500, pool, batch_timeout=5)
    assert (record["state"], record["progress"]["done"]) == ("succeeded", 500)
    why = "the model took longer than 5 s for it, 3 times"
    assert record["failures"] == {"count": 1, "first": [{"_id": 33, "error": why}]}
    assert_all_but(world, [33], 500)
    assert len([size for _, size in pool.submitted if size > 1]) <= 30  # cut up by eight, not tried in vain


@pytest.mark.usefixtures("worker_here")
def test_a_model_that_hangs_on_everything_fails_the_job(run: Run) -> None:
    record = run(double, 500, HangingPool(lambda ids: True), batch_timeout=5)
    assert record["state"] == "failed"
    assert "a batch took longer than 5 s" in record["error"]["message"]


class TwoRowsForOne(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cat([x, x])


def test_an_answer_with_the_wrong_number_of_rows_is_each_documents_failure(world: World) -> None:
    world.model("m", TwoRowsForOne())
    world.watcher("m", "x")
    jobs = world.insert(rows(20))
    world.here(jobs.values())
    record = world.store.get(jobs["m/x"])
    assert (record["state"], record["failures"]["count"]) == ("succeeded", 20)
    assert "2 rows to a batch of 1" in record["failures"]["first"][0]["error"]
    assert world.docs.count_documents({"_outputs": {"$exists": True}}) == 0


# --- with real workers that are ended: minutes ------------------------------------------------------------------------


@pytest.fixture
def small_pool(mongo_uri: str) -> Iterator[DaskPool]:
    """Return workers that may have some hundred megabytes each."""
    pool = DaskPool(workers=2, memory=800 * 2**20, environment={"SUPERDUPER_MONGODB__URI": mongo_uri})
    pool.start()
    yield pool
    pool.close()


@pytest.mark.drill
@pytest.mark.parametrize(("model", "document", "n"), [(hang, 33, 500), (hang_with_the_gil, 3, 5), (devour, 33, 100)])
@pytest.mark.timeout(600)
def test_a_document_that_makes_a_model_hang_or_eat_all_memory_fails_alone(
    world: World, run: Run, small_pool: DaskPool, model: Any, document: int, n: int
) -> None:
    record = run(model, n, small_pool, timeout=500, batch_timeout=3)
    print(model.__name__, record["failures"], record["finished"] - record["started"])
    assert record["state"] == "succeeded"
    assert [failure["_id"] for failure in record["failures"]["first"]] == [document]
    assert_all_but(world, [document], n)
    other = world.insert([{"_id": n, "x": n}])
    assert world.ended(other["m/x"])["state"] == "succeeded"  # the pool is as good as new


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_model_that_leaks_is_ended_in_time_and_goes_on(world: World, run: Run, small_pool: DaskPool) -> None:
    record = run(leak, 300, small_pool, timeout=500)
    print("leak", record["state"], record["error"], record["finished"] - record["started"])
    assert (record["state"], record["failures"]["count"]) == ("succeeded", 0)
    assert_all_but(world, [], 300)
