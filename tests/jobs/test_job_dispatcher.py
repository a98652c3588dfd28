from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from job_world import GOOD, Oracle, ThreadPool, World, lost_worker
from pymongo.errors import AutoReconnect

from superduper_nb.cluster.dask import PoolLostError, WorkerLostError
from superduper_nb.errors import InvalidInputError
from superduper_nb.jobs import NewJob
from superduper_nb.jobs.dispatcher import Dispatcher
from superduper_nb.jobs.kinds import KINDS
from superduper_nb.jobs.outputs import Outcome
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("worker_here")

Start = Callable[..., Dispatcher]


def double(x: Any) -> Any:
    return x * 2


@pytest.fixture
def watcher(world: World) -> Any:
    world.model("m", double)
    return world.watcher("m", "x")


def rows(n: int) -> list[dict[str, Any]]:
    return [{"_id": i, "x": i} for i in range(n)]


def test_an_insert_is_computed_and_its_chunks_are_cleaned_up(world: World, watcher: Any, dispatch: Start) -> None:
    dispatcher = dispatch(ThreadPool())
    jobs = world.insert(rows(2500))
    dispatcher.notify(world.database.name)
    record = world.ended(jobs["m/x"])
    assert (record["state"], record["progress"]["done"], record["progress"]["total"]) == ("succeeded", 2500, 2500)
    assert record["worker"]
    assert record["finished"] >= record["started"] >= record["created"]
    assert Oracle(world, watcher, double).check(range(2500)) == GOOD
    until(lambda: world.database["_sddb.jobs"].count_documents({"kind": "chunk"}) == 0, timeout=5)


def test_jobs_are_found_without_being_told(world: World, watcher: Any, dispatch: Start) -> None:
    dispatch(ThreadPool())
    for n in range(3):
        jobs = world.insert([{"_id": n, "x": n}])
        assert world.ended(jobs["m/x"], 9)["state"] == "succeeded"  # sooner than by scanning


def test_a_job_never_runs_before_the_data_that_it_was_recorded_for(world: World, watcher: Any, dispatch: Start) -> None:
    dispatcher = dispatch(pool := ThreadPool())
    jobs = world.jobs_for(range(10), held=True)
    dispatcher.notify(world.database.name)
    other = world.insert([{"_id": 99, "x": 99}])
    dispatcher.notify(world.database.name)
    world.ended(other["m/x"])
    assert [job for job, _ in pool.submitted] == list(other.values())
    world.docs.insert_many(rows(10))
    world.store.release(list(jobs.values()))
    dispatcher.notify(world.database.name)
    world.ended(jobs["m/x"])
    assert Oracle(world, watcher, double).check([*range(10), 99]) == GOOD


def test_a_chain_runs_in_order(world: World, watcher: Any, dispatch: Start) -> None:
    world.model("n", double)
    second = world.watcher("n", "x", features={"x": "m"})
    dispatcher = dispatch(ThreadPool())
    jobs = world.insert(rows(300))
    dispatcher.notify(world.database.name)
    first, then = (world.ended(jobs[name]) for name in ("m/x", "n/x"))
    assert then["started"] >= first["finished"]
    assert Oracle(world, second, lambda x: 4 * x).check(range(300)) == GOOD


def test_a_small_job_is_shared_among_all_threads(world: World, watcher: Any, dispatch: Start) -> None:
    dispatcher = dispatch(pool := ThreadPool(), in_flight=4)
    jobs = world.insert(rows(400))
    dispatcher.notify(world.database.name)
    world.ended(jobs["m/x"])
    assert [size for _, size in pool.submitted] == [200, 200]


def test_the_document_that_kills_workers_is_found_and_the_others_are_done(
    world: World, watcher: Any, dispatch: Start
) -> None:
    pool = ThreadPool()
    pool.lose = lambda ids: lost_worker() if 77 in ids else None
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(1000))
    dispatcher.notify(world.database.name)
    record = world.ended(jobs["m/x"])
    assert (record["state"], record["progress"]["done"]) == ("succeeded", 1000)
    why = "it killed its worker 3 times (a crash, or memory ran out)"
    assert record["failures"] == {"count": 1, "first": [{"_id": 77, "error": why}]}
    assert Oracle(world, watcher, double).check(range(1000), failed=[77]) == GOOD
    assert "killed its worker" in world.docs.find_one({"_id": 77})["_sddb"]["outputs"]["m/x"]["error"]  # type: ignore[index]


def test_a_document_that_two_workers_died_with_that_were_worn_out_before_is_done(
    world: World, watcher: Any, dispatch: Start
) -> None:
    """A model that leaks: whoever comes last dies of what the others left, and once more with the other worker."""
    pool, losses = ThreadPool(), [2]

    def lose(ids: list[Any]) -> BaseException | None:
        if 77 in ids and (len(ids) > 1 or losses[0]):
            losses[0] -= len(ids) == 1
            return lost_worker()
        return None

    pool.lose = lose
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(1000))
    dispatcher.notify(world.database.name)
    assert world.ended(jobs["m/x"])["failures"]["count"] == 0
    assert losses == [0]
    assert Oracle(world, watcher, double).check(range(1000)) == GOOD


def test_a_model_that_always_kills_its_worker_ends_the_job_with_the_reason(
    world: World, watcher: Any, dispatch: Start
) -> None:
    pool = ThreadPool()
    pool.lose = lambda ids: lost_worker()
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(1000))
    dispatcher.notify(world.database.name)
    record = world.ended(jobs["m/x"])
    assert record["state"] == "failed"
    assert "workers in a row died" in record["error"]["message"]
    assert len(pool.submitted) < 20


def test_many_jobs_that_one_worker_takes_along_have_lost_one_worker(
    world: World, watcher: Any, dispatch: Start
) -> None:
    pool, left = ThreadPool(), set(range(15))
    pool.lose = lambda ids: WorkerLostError("killed", "one") if ids[0] in left and not left.remove(ids[0]) else None
    dispatcher = dispatch(pool)
    jobs = [world.insert([{"_id": n, "x": n}])["m/x"] for n in range(15)]
    dispatcher.notify(world.database.name)
    assert {world.ended(job)["state"] for job in jobs} == {"succeeded"}
    assert Oracle(world, watcher, double).check(range(15)) == GOOD


def test_a_model_that_asks_for_what_no_worker_has_fails_its_job_with_the_reason(world: World, dispatch: Start) -> None:
    class Poor(ThreadPool):
        def submit(self, key: str, function: Any, *args: Any, **options: Any) -> Any:
            if options["resources"]:
                raise InvalidInputError(f"nobody has {options['resources']}")
            return super().submit(key, function, *args)

    world.model("m", double, resources={"GPU": 1.0})
    world.watcher("m", "x")
    dispatcher = dispatch(Poor())
    jobs = world.insert(rows(10))
    dispatcher.notify(world.database.name)
    record = world.ended(jobs["m/x"])
    assert (record["state"], record["error"]["message"]) == ("failed", "nobody has {'GPU': 1.0}")
    world.model("m", double)
    world.store.retry(jobs["m/x"])
    dispatcher.notify(world.database.name)
    assert world.ended(jobs["m/x"])["state"] == "succeeded"


def test_a_lost_pool_is_nobodys_fault(world: World, watcher: Any, dispatch: Start) -> None:
    pool, left = ThreadPool(), list(range(15))
    pool.lose = lambda ids: PoolLostError("gone") if left and left.pop() is not None else None
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(10))
    dispatcher.notify(world.database.name)
    assert world.ended(jobs["m/x"])["failures"]["count"] == 0
    assert Oracle(world, watcher, double).check(range(10)) == GOOD


def test_a_model_that_does_not_load_fails_the_job_and_blocks_its_children(
    world: World, watcher: Any, dispatch: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model("n", double)
    world.watcher("n", "x", features={"x": "m"})
    world.database["_sddb.components"].update_many({"kind": "model"}, {"$set": {"artifact.signature": "forged"}})
    dispatcher = dispatch(ThreadPool())
    jobs = world.insert(rows(5))
    dispatcher.notify(world.database.name)
    record = world.ended(jobs["m/x"])
    assert (record["state"], record["error"]["type"]) == ("failed", "TrustError")
    assert world.ended(jobs["n/x"])["blocked_by"] == jobs["m/x"]


def test_a_filter_that_mongodb_refuses_fails_the_job(world: World, watcher: Any, dispatch: Start) -> None:
    job = NewJob("outputs", "m/x", "docs", "m/x", {"filter": '{"$nonsense": 1}'}, 5)
    world.docs.insert_many(rows(5))
    world.store.create([job])
    dispatch(ThreadPool()).notify(world.database.name)
    record = world.ended(job.id)
    assert (record["state"], record["error"]["type"]) == ("failed", "OperationFailure")


def test_mongodb_going_away_while_chunks_are_read_loses_none(
    world: World, watcher: Any, dispatch: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from superduper_nb.jobs.chunks import ChunkStore

    whole, gone = ChunkStore.after, [AutoReconnect("gone")] * 2

    def flaky(self: ChunkStore, record: dict[str, Any], cursor: Any) -> Any:
        if cursor is not None and gone:
            raise gone.pop()
        return whole(self, record, cursor)

    monkeypatch.setattr(ChunkStore, "after", flaky)
    dispatcher = dispatch(ThreadPool())
    jobs = world.insert(rows(3500))
    dispatcher.notify(world.database.name)
    world.ended(jobs["m/x"])
    assert not gone
    assert Oracle(world, watcher, double).check(range(3500)) == GOOD


def test_two_dispatchers_share_the_jobs_and_each_job_runs_once(world: World, watcher: Any, dispatch: Start) -> None:
    pools = [ThreadPool(), ThreadPool()]
    dispatchers = [dispatch(pool) for pool in pools]
    jobs = [world.insert([{"_id": n, "x": n}])["m/x"] for n in range(60)]
    for dispatcher in dispatchers:
        dispatcher.notify(world.database.name)
    records = [world.ended(job) for job in jobs]
    assert {(record["state"], record["attempts"]) for record in records} == {("succeeded", 1)}
    assert sorted(job for pool in pools for job, _ in pool.submitted) == sorted(jobs)
    until(lambda: not any(dispatcher._names or dispatcher._jobs for dispatcher in dispatchers), what="all forgotten")
    assert Oracle(world, watcher, double).check(range(60)) == GOOD


def test_a_dispatcher_that_fell_silent_is_replaced_and_its_late_results_change_nothing(
    world: World, watcher: Any, dispatch: Start
) -> None:
    jobs = world.insert(rows(100))
    silent = world.store.claim(jobs["m/x"], "silent")
    assert silent is not None
    world.database["_sddb.jobs"].update_one(
        {"_id": jobs["m/x"]}, {"$set": {"lease": datetime.now(UTC) - timedelta(seconds=1)}}
    )
    dispatch(ThreadPool()).notify(world.database.name)
    record = world.ended(jobs["m/x"])
    assert (record["state"], record["attempts"]) == ("succeeded", 2)
    assert not world.store.finish(jobs["m/x"], "silent", "failed")
    assert world.store.get(jobs["m/x"])["state"] == "succeeded"
    assert Oracle(world, watcher, double).check(range(100)) == GOOD


def test_a_dispatcher_that_is_closed_leaves_its_jobs_to_the_next(world: World, dispatch: Start) -> None:
    def slow(x: Any) -> Any:
        import time

        time.sleep(0.01)
        return x

    world.model("m", slow)
    watcher = world.watcher("m", "x")
    first = dispatch(ThreadPool())
    jobs = world.insert(rows(300))
    first.notify(world.database.name)
    until(lambda: world.store.get(jobs["m/x"])["state"] == "running")
    first.close()
    dispatch(ThreadPool()).notify(world.database.name)
    assert world.ended(jobs["m/x"], 25)["state"] == "succeeded"  # sooner than its lease lapses
    assert Oracle(world, watcher, lambda x: x).check(range(300)) == GOOD


def test_listeners_hear_how_jobs_go(world: World, watcher: Any, dispatch: Start) -> None:
    told: list[dict[str, Any]] = []
    dispatcher = dispatch(ThreadPool(), on_event=told.append)
    jobs = world.insert(rows(50))
    dispatcher.notify(world.database.name)
    world.ended(jobs["m/x"])
    until(lambda: any(event.get("state") == "succeeded" for event in told))
    heard = [event for event in told if event["type"] == "job"]
    assert heard[0]["state"] == "running"
    assert heard[-1] == {
        "type": "job",
        "database": world.database.name,
        "job": jobs["m/x"],
        "state": "succeeded",
        "done": 50,
        "total": 50,
        "failed": 0,
    }


def test_listeners_hear_of_jobs_that_others_record(world: World, watcher: Any, dispatch: Start) -> None:
    told: list[dict[str, Any]] = []
    dispatch(ThreadPool(), on_event=told.append)
    new = itertools.count()
    jobs: list[str] = []

    def heard() -> bool:  # a stream tells nothing of what was before it was opened
        jobs.extend(world.insert([{"_id": next(new), "x": 1}]).values())
        return any(event["type"] == "changed" and event["job"] in jobs for event in told)

    until(heard)
    assert {event["database"] for event in told if event.get("job") in jobs} == {world.database.name}


def test_the_foreground_keeps_the_same_records(world: World, watcher: Any) -> None:
    jobs = world.insert(rows(250))
    world.here(jobs.values())
    record = world.store.get(jobs["m/x"])
    assert (record["state"], record["progress"]["done"]) == ("succeeded", 250)
    assert Oracle(world, watcher, double).check(range(250)) == GOOD


def test_what_a_model_prints_is_kept_and_shown(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def talk(x: Any) -> Any:
        import logging
        import sys

        print("saw", x)
        print("50%\r100%", file=sys.stderr)
        logging.getLogger("mine").warning("careful")
        return x

    world.model("m", talk)
    world.watcher("m", "x")
    jobs = world.insert([{"_id": 1, "x": 5}])
    world.here(jobs.values())
    lines = world.store.logs(jobs["m/x"])
    assert {(line["stream"], line["text"]) for line in lines} == {
        ("stdout", "saw 5"),
        ("stderr", "100%"),
        ("log", "WARNING mine: careful"),
    }
    assert "saw 5" in capsys.readouterr().out


def test_work_that_is_one_piece_is_tried_again_beside_the_others(
    world: World, watcher: Any, dispatch: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Training:
        def __init__(self, *of: Any) -> None:
            pass

        def run(self, ids: Any, control: Any) -> Outcome:
            return Outcome(7)

    monkeypatch.setitem(KINDS, "training", Training)
    pool = ThreadPool(4)
    losses = iter([lost_worker()] * 3)
    pool.lose = lambda ids: next(losses, None) if ids == ["run"] else None
    dispatcher = dispatch(pool)

    def train() -> str:
        job = NewJob("training", "train x", "docs", "x", {"ids": ["run"]}, 9)
        world.store.create([job])
        dispatcher.notify(world.database.name)
        return job.id

    record = world.ended(train())
    assert (record["state"], record["progress"]["done"], record["failures"]["count"]) == ("succeeded", 7, 0)
    losses = iter([lost_worker()] * 5)
    record = world.ended(train())
    assert record["state"] == "failed"
    assert "5 workers died" in record["error"]["message"]
    jobs = world.insert(rows(20))
    assert world.ended(jobs["m/x"])["state"] == "succeeded"
