from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import Binary, ObjectId
from job_world import GOOD, Oracle, ThreadPool, World
from pymongo import MongoClient

import superduper_nb.jobs.follower as follower_module
from superduper_nb.jobs.changes import Change, Noted, untouched
from superduper_nb.jobs.dispatcher import Dispatcher
from superduper_nb.jobs.follower import Follower
from superduper_nb.jobs.values import NewJob
from superduper_nb.jobs.watchers import Watcher
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("worker_here")

Start = Callable[..., Dispatcher]


def double(x: Any) -> Any:
    return x * 2


@pytest.fixture
def follow(mongo_uri: str, dispatch: Start) -> Iterator[Callable[[], Follower]]:
    """Start a dispatcher, and followers that tell it of their jobs."""
    dispatcher = dispatch(ThreadPool())
    clients, followers = [], []

    def start() -> Follower:
        client: MongoClient[dict[str, Any]] = MongoClient(mongo_uri, w="majority")
        follower = Follower(client, dispatcher.notify)
        clients.append(client)
        followers.append(follower)
        follower.start()
        return follower

    yield start
    for follower in followers:
        follower.close()
    for client in clients:
        client.close()


def jobs_but(world: World, own: list[str]) -> list[dict[str, Any]]:
    return [job for job in world.store.list() if job["_id"] not in own]


def named(world: World, jobs: list[dict[str, Any]]) -> list[Any]:
    """Return the documents that jobs name."""
    found: list[Any] = []
    for job in jobs:
        chunk = world.store.chunks.after(job, None)
        while chunk is not None:
            found += chunk[1]
            chunk = world.store.chunks.after(job, chunk[0])
    return found


@pytest.fixture
def west_of_greenwich() -> Iterator[None]:
    """Have a local time that is hours behind UTC: a time of MongoDB's that is taken for it lies in the future."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def oracle(world: World) -> Oracle:
    world.model("m", double)
    return Oracle(world, world.watcher("m", "x"), double)


@pytest.mark.usefixtures("west_of_greenwich")
def test_writes_of_any_program_are_followed(world: World, oracle: Oracle, follow: Callable[[], Follower]) -> None:
    follow()
    world.docs.insert_many([{"_id": i, "x": i} for i in range(300)])
    until(lambda: oracle.check(range(300)) == GOOD, "outputs of the inserts", timeout=30)
    world.docs.update_many({"_id": {"$lt": 100}}, {"$inc": {"x": 1}})
    world.docs.replace_one({"_id": 200}, {"x": 7})
    world.docs.delete_one({"_id": 201})
    until(lambda: oracle.check(set(range(300)) - {201}) == GOOD, "outputs of the updates", timeout=30)
    world.docs.update_one({"_id": 5}, {"$unset": {"x": ""}})
    until(lambda: world.docs.count_documents({"_id": 5, "_outputs.x.m": {"$exists": False}}))


def test_our_own_writes_are_not_planned_twice(world: World, oracle: Oracle, follow: Callable[[], Follower]) -> None:
    follow()
    jobs = [world.insert([{"_id": i, "x": i}])["m/x"] for i in range(20)]
    for job in jobs:
        world.ended(job)
    world.docs.insert_one({"_id": 99, "x": 99})  # behind them in the stream
    until(lambda: oracle.check([*range(20), 99]) == GOOD, timeout=30)
    assert world.database["_sddb.jobs"].count_documents({"kind": "outputs"}) == 21


@pytest.fixture
def impatient(world: World, mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Follow the database with no patience and little room, and run no jobs: whatever is recorded stays under way."""
    monkeypatch.setattr(follower_module, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(follower_module, "_TOO_MANY", 500)
    stop = threading.Event()
    with MongoClient[dict[str, Any]](mongo_uri, w="majority") as client:
        follow = follower_module._Database(client, world.database.name, lambda name: None, stop)
        thread = threading.Thread(target=follow.run)
        thread.start()
        yield follow
        stop.set()
        thread.join()


def test_documents_that_a_long_job_is_still_to_come_to_get_no_second_one(
    world: World, oracle: Oracle, impatient: Any
) -> None:
    own = [world.insert([{"_id": f"{n}-{i}", "x": i} for i in range(2500)])["m/x"] for n in range(2)]
    world.docs.insert_many([{"_id": i, "x": i} for i in range(150)])
    until(lambda: 149 in named(world, jobs_but(world, own)), "a job of the last foreign document")
    assert sorted(named(world, jobs_but(world, own))) == list(range(150))
    world.docs.delete_one({"_id": "1-7"})
    world.docs.insert_one({"_id": "1-7", "x": 5})  # the job may have passed it
    until(lambda: "1-7" in named(world, jobs_but(world, own)), "a job of what was inserted again")
    world.here([*own, *(job["_id"] for job in jobs_but(world, own))])
    assert oracle.check([f"{n}-{i}" for n in range(2) for i in range(2500)] + list(range(150))) == GOOD


def test_a_write_under_way_is_waited_for_and_kept_in_bounds(world: World, oracle: Oracle, impatient: Any) -> None:
    own = world.jobs_for(range(3000), held=True)["m/x"]
    world.docs.insert_many([{"_id": i, "x": i} for i in range(3000)])
    until(impatient._full, "it keeps all back that it may")
    assert impatient._count() == 500
    world.store.release([own])
    world.docs.insert_one({"_id": "last", "x": 1})
    until(lambda: jobs_but(world, [own]), "a job of the last document")
    assert named(world, jobs_but(world, [own])) == ["last"]


def test_a_writer_that_does_not_come_to_its_end_keeps_no_write_of_others_back(
    world: World, oracle: Oracle, follow: Callable[[], Follower]
) -> None:
    """What our clients write is not read while they write; a job that is held for ever looks as if one did."""
    world.store.create([NewJob("outputs", "m/x", "elsewhere", "m/x", {"ids": [1]}, 1)], held=True)
    follow()
    world.docs.insert_many([{"_id": i, "x": i} for i in range(300)])
    until(lambda: oracle.check(range(300)) == GOOD | {"unfinished": 1}, "outputs of the inserts", timeout=20)


def test_a_copy_that_brings_bookkeeping_along_is_no_document_of_ours(
    world: World, oracle: Oracle, follow: Callable[[], Follower]
) -> None:
    follow()
    world.ended(world.insert([{"_id": 1, "x": 1}])["m/x"])
    copy = world.docs.find_one({"_id": 1})
    world.docs.insert_one({**copy, "_id": 2, "x": 5})  # type: ignore[dict-item]
    until(lambda: oracle.check([1, 2]) == GOOD, "the output of the copy's own input", timeout=30)


def test_a_document_that_changes_after_its_insert_is_looked_at_again() -> None:
    inserted = {"operationType": "insert", "documentKey": {"_id": 1}, "paths": [], "new": True}
    other = {**inserted, "documentKey": {"_id": 2}}
    updated = {"operationType": "update", "documentKey": {"_id": 1}, "paths": ["x"], "new": False}
    assert untouched([Change.of(event) for event in (inserted, other, updated)]) == [2]


def test_what_is_kept_back_comes_again_as_it_was_and_takes_little() -> None:
    kept = Noted()
    updated = Change(Binary(b"1", 4), {"a", "b.0"}, False)
    given = [Change(ObjectId(), None, True), updated, Change({"k": 1}, set(), False)]
    for change in given:
        kept.note(change)
    assert len(kept) == 3
    assert list(kept.parts(2)) == [tuple(given[:2]), tuple(given[2:])]
    tracemalloc.start()
    many = Noted()
    for _ in range(10_000):
        many.note(Change(ObjectId(), None, True))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 50 * len(many)


def test_what_happened_while_nobody_followed_is_caught_up(
    world: World, oracle: Oracle, follow: Callable[[], Follower]
) -> None:
    first = follow()
    world.docs.insert_one({"_id": 1, "x": 1})
    until(lambda: oracle.check([1]) == GOOD, timeout=30)
    until(lambda: world.database["_sddb.follow"].find_one())
    first.close()
    world.docs.insert_many([{"_id": i, "x": i} for i in range(2, 50)])
    world.docs.update_one({"_id": 1}, {"$set": {"x": 9}})
    follow()
    until(lambda: oracle.check(range(1, 50)) == GOOD, timeout=30)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda token: f"82{'00' * 21}", id="unreadable"),
        pytest.param(lambda token: f"825F5E1000{token[10:]}", id="of 2020, long gone from the oplog"),
    ],
)
def test_where_the_place_is_lost_everything_is_looked_at(
    world: World, oracle: Oracle, follow: Callable[[], Follower], spoil: Callable[[str], str]
) -> None:
    with world.docs.watch() as stream:
        world.docs.insert_many([{"_id": i, "x": i} for i in range(50)])
        token = next(stream)["_id"]["_data"]
    world.database["_sddb.follow"].insert_one({"_id": "outputs", "token": {"_data": spoil(token)}})
    follow()
    until(lambda: oracle.check(range(50)) == GOOD, timeout=30)
    world.docs.insert_one({"_id": 50, "x": 50})  # and it follows again
    until(lambda: oracle.check(range(51)) == GOOD, timeout=30)


def test_one_follower_at_a_time(world: World, oracle: Oracle, follow: Callable[[], Follower]) -> None:
    follow()
    follow()
    world.docs.insert_many([{"_id": i, "x": i} for i in range(30)])
    until(lambda: oracle.check(range(30)) == GOOD, timeout=30)
    assert world.database["_sddb.leases"].count_documents({}) == 1
    assert world.database["_sddb.jobs"].count_documents({"kind": "outputs"}) <= 2


def test_a_collection_that_gets_its_first_watcher_is_followed_too(
    world: World, oracle: Oracle, follow: Callable[[], Follower]
) -> None:
    follow()
    world.docs.insert_one({"_id": 1, "x": 1})
    until(lambda: oracle.check([1]) == GOOD, timeout=30)
    other = Watcher("other", "m", "y")
    world.loader.store.put("watcher", other.id, other.definition(), collection="other")
    world.database["other"].insert_one({"_id": 1, "y": 3})
    until(lambda: world.database["other"].find_one({"_outputs.y.m": 6}), timeout=30)


def test_content_and_neighbourhoods_follow_writes_of_any_program(
    world: World, follow: Callable[[], Follower], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_DOWNLOADS", f'{{"roots": ["{tmp_path}"]}}')
    for n in range(10):
        (tmp_path / str(n)).write_bytes(bytes([n + 1, 1]))
    world.model("pair", lambda data: np.frombuffer(data, dtype=np.uint8).astype(np.float32), type="vector")
    world.watcher("pair", "file")
    index = {"models": ["pair"], "keys": ["file"], "measure": "l2", "filter": {}}
    world.loader.store.put("semantic_index", "where", index, collection="docs")
    world.loader.store.put("neighbourhood", "near", {"semantic_index": "where", "n": 2}, collection="docs")
    follow()

    def near() -> dict[int, list[int]]:
        return {found["_id"]: found["_like"]["near"] for found in world.docs.find({"_like.near": {"$exists": True}})}

    def content(n: int) -> dict[str, Any]:
        return {"_content": {"url": (tmp_path / str(n)).as_uri()}}

    world.docs.insert_many([{"_id": n, "file": content(n)} for n in (0, 1, 2, 4)])
    until(lambda: near() == {0: [1, 2], 1: [0, 2], 2: [1, 0], 4: [2, 1]}, "neighbours of what was fetched", timeout=30)
    download, outputs, neighbours = world.database["_sddb.jobs"].find({"kind": {"$ne": "chunk"}}).sort("_id", 1)
    assert (outputs["parents"], neighbours["parents"]) == ([download["_id"]], [outputs["_id"]])
    world.docs.update_one({"_id": 4}, {"$set": {"file._content.url": (tmp_path / "9").as_uri()}})
    until(
        lambda: world.docs.find_one({"_id": 4, "file._content.bytes": bytes([10, 1])}),
        "bytes of the new URL",
        timeout=30,
    )
    world.docs.delete_one({"_id": 1})
    until(lambda: near() == {0: [2, 4], 2: [0, 4], 4: [2, 0]}, "neighbours without the deleted", timeout=30)
