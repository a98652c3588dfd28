"""Jobs in real worker processes, and what happens when those, their scheduler or MongoDB are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bson import ObjectId
from job_world import GOOD, Effects, Oracle, World, descendants
from pymongo import MongoClient

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.cluster.ending import wait_for_end
from superduper_nb.cluster.mongod import Mongod, connect_options
from superduper_nb.jobs.dispatcher import Dispatcher
from tests.drills.drill_rig import Server, workers_below
from tests.waiting import until

Start = Callable[..., Dispatcher]


def double(x: Any) -> Any:
    return x * 2


def slow_double(x: Any) -> Any:
    time.sleep(0.002)
    return x * 2


def deadly(x: Any) -> Any:
    if x == 33:
        os._exit(1)
    return x * 2


class Unloadable:
    """A model whose loading goes wrong."""

    def __call__(self, x: Any) -> Any:
        return x

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("the weights are not on this machine")

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"_id": i, "x": i} for i in range(start, start + n)]


def seeded() -> random.Random:
    seed = random.randrange(10**6)
    print("seed", seed)
    return random.Random(seed)


def worker_pids(pool: DaskPool) -> list[int]:
    assert pool._process is not None
    return workers_below(pool._process.pid)


def test_workers_compute_and_say_what_was_printed(world: World, pool: DaskPool, dispatch: Start) -> None:
    def talk(x: Any) -> Any:
        if x % 1000 == 0:
            print("at", x)
        return x * 2

    heard: list[dict[str, Any]] = []
    world.model("m", talk)
    watcher = world.watcher("m", "x")
    dispatcher = dispatch(pool, on_event=heard.append)
    jobs = world.insert(rows(3000))
    dispatcher.notify(world.database.name)
    assert world.ended(jobs["m/x"])["state"] == "succeeded"
    assert Oracle(world, watcher, double).check(range(3000)) == GOOD
    assert sorted(line["text"] for line in world.store.logs(jobs["m/x"])) == ["at 0", "at 1000", "at 2000"]
    assert {event["job"] for event in heard if event["database"] == world.database.name} == set(jobs.values())


def test_progress_moves_inside_a_chunk(world: World, pool: DaskPool, dispatch: Start) -> None:
    world.model("m", slow_double)
    world.watcher("m", "x", batch_size=8)
    told: list[tuple[float, int]] = []
    dispatcher = dispatch(pool, on_event=lambda event: told.append((time.monotonic(), event.get("done", 0))))
    jobs = world.insert(rows(1000))
    dispatcher.notify(world.database.name)
    world.ended(jobs["m/x"])
    on_the_way = [at for at, done in told if 0 < done < 1000]
    assert len([done for _, done in told if 0 < done < 500]) >= 1
    assert len(on_the_way) <= 10 * (on_the_way[-1] - on_the_way[0]) + 3  # at most ten a second


def test_an_insert_overtakes_a_backfill(world: World, pool: DaskPool, dispatch: Start) -> None:
    world.model("m", slow_double)
    watcher = world.watcher("m", "x", batch_size=8)
    dispatcher = dispatch(pool)
    world.docs.insert_many(rows(20_000))
    backfill = world.backfill(watcher)
    dispatcher.notify(world.database.name)
    until(lambda: world.store.get(backfill)["progress"]["done"], what="the backfill is under way")
    late = world.insert([{"_id": "late", "x": 7}])
    dispatcher.notify(world.database.name)
    assert world.ended(late["m/x"])["state"] == "succeeded"
    record = world.store.get(backfill)
    assert (record["state"], record["progress"]["done"] < 20_000) == ("running", True)
    assert world.docs.find_one({"_id": "late"})["_outputs"]["x"]["m"] == 14  # type: ignore[index]
    world.store.cancel(backfill)


def test_a_model_that_does_not_load_in_a_worker_fails_the_job(world: World, pool: DaskPool, dispatch: Start) -> None:
    world.model("m", Unloadable())
    world.watcher("m", "x")
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(5))
    dispatcher.notify(world.database.name)
    record = world.ended(jobs["m/x"])
    assert (record["state"], record["error"]["type"]) == ("failed", "ModelError")
    assert "the weights are not on this machine" in record["error"]["message"]


def test_cancel_stops_in_the_middle_of_a_chunk(world: World, pool: DaskPool, dispatch: Start) -> None:
    def crawl(x: Any) -> Any:
        time.sleep(0.02)
        return x

    world.model("m", crawl)
    world.watcher("m", "x", batch_size=4)
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(1000))
    dispatcher.notify(world.database.name)
    computed = {"_outputs.x.m": {"$exists": True}}
    until(lambda: world.docs.count_documents(computed))
    world.store.cancel(jobs["m/x"])
    until(lambda: not dispatcher._out, "the end of the cancelled work", timeout=10)
    count = world.docs.count_documents(computed)
    assert 0 < count < 1000
    assert world.store.get(jobs["m/x"])["state"] == "cancelled"
    world.model("n", double)
    world.watcher("n", "x")
    after = world.insert(rows(10, 5000))
    dispatcher.notify(world.database.name)
    assert world.ended(after["n/x"])["state"] == "succeeded"
    world.store.cancel(after["m/x"])


def test_workers_draw_random_numbers_of_their_own(pool: DaskPool) -> None:
    def draw() -> tuple[int, float]:
        time.sleep(0.01)
        return os.getpid(), np.random.random()

    drawn = [future.result(20) for future in [pool.submit(f"draw-{n}", draw) for n in range(40)]]
    assert len({pid for pid, _ in drawn}) == 2
    assert len({number for _, number in drawn}) == 40


def test_one_document_that_ends_its_worker_fails_alone(world: World, pool: DaskPool, dispatch: Start) -> None:
    world.model("m", deadly)
    watcher = world.watcher("m", "x")
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(8, 30))
    dispatcher.notify(world.database.name)
    record = world.ended(jobs["m/x"], 150)
    assert record["state"] == "succeeded"
    assert [failure["_id"] for failure in record["failures"]["first"]] == [33]
    assert Oracle(world, watcher, double).check(range(30, 38), failed=[33]) == GOOD
    until(lambda: pool.describe()["workers"] == 2, "a full pool", timeout=30)


def kill_worker(pool: DaskPool) -> None:
    os.kill(random.choice(worker_pids(pool)), signal.SIGKILL)


def kill_host(pool: DaskPool) -> None:
    assert pool._process is not None
    pool._process.kill()


def kill_what_workers_are_forked_from(pool: DaskPool) -> None:
    os.kill(psutil.Process(worker_pids(pool)[0]).ppid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "kill",
    [
        kill_worker,
        pytest.param(kill_what_workers_are_forked_from, marks=pytest.mark.slow),
        pytest.param(kill_host, marks=pytest.mark.slow),
    ],
)
def test_kill_nine_of_a_part_of_the_pool_loses_nothing(
    world: World, pool: DaskPool, dispatch: Start, kill: Callable[[DaskPool], None]
) -> None:
    rng = seeded()
    world.model("m", slow_double)
    watcher = world.watcher("m", "x")
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(1500))
    dispatcher.notify(world.database.name)
    until(lambda: world.store.get(jobs["m/x"])["state"] == "running")
    time.sleep(rng.random())
    kill(pool)
    assert world.ended(jobs["m/x"], 90)["state"] == "succeeded"
    assert Oracle(world, watcher, double).check(range(1500)) == GOOD
    until(lambda: pool.describe()["workers"] == 2, "a full pool", timeout=30)


@pytest.mark.slow
def test_kill_nine_of_mongod_loses_nothing(tmp_path: Path, dispatch: Start) -> None:
    rng = seeded()
    with Mongod.attach(tmp_path / "db", cache_gb=0.25) as mongod:
        pool = DaskPool(workers=2, environment={"SUPERDUPER_MONGODB__URI": mongod.uri})
        client: MongoClient[dict[str, Any]] = MongoClient(mongod.uri, **connect_options())
        try:
            world = World(client["drill"])
            world.model("m", slow_double)
            watcher = world.watcher("m", "x")
            pool.start()
            dispatcher = dispatch(pool, uri=mongod.uri)
            jobs = world.insert(rows(1500))
            dispatcher.notify("drill")
            until(lambda: world.store.get(jobs["m/x"])["state"] == "running")
            time.sleep(rng.random())
            os.kill(mongod.status()["pid"], signal.SIGKILL)
            until(lambda: mongod.status()["restarts"], "a new mongod", timeout=30)
            assert world.ended(jobs["m/x"], 90)["state"] == "succeeded"
            assert Oracle(world, watcher, double).check(range(1500)) == GOOD
            dispatcher.close()
        finally:
            pool.close()
            client.close()


@pytest.mark.slow
def test_kill_nine_of_the_notebook_server_loses_nothing_and_doubles_nothing(
    world: World, pool: DaskPool, dispatch: Start, mongo_uri: str, tmp_path: Path
) -> None:
    """What it had is taken over when its lease has lapsed; that is half a minute, so the test sets the lease back."""
    rng = seeded()
    world.model("m", slow_double)
    watcher = world.watcher("m", "x", batch_size=8)
    effects = Effects(world.database, watcher)
    server = Server(tmp_path, SUPERDUPER_MONGODB__URI=mongo_uri, SUPERDUPER_JOBS__WORKERS="1")
    try:
        job = world.insert(rows(1500))["m/x"]
        until(lambda: world.store.get(job)["progress"]["done"], what="the server is at work")
        time.sleep(rng.random())
        server.kill()
    finally:
        server.close()
    ours = {"_id": job, "owner": {"$regex": f":{server.process.pid}:"}}
    past = {"$set": {"lease": datetime.now(UTC) - timedelta(seconds=1)}}
    assert world.database["_sddb.jobs"].update_one(ours, past).matched_count == 1
    dispatch(pool).notify(world.database.name)
    record = world.ended(job)
    assert (record["state"], record["attempts"]) == ("succeeded", 2)
    assert Oracle(world, watcher, double).check(range(1500)) == GOOD
    assert effects.count() == {"unseen": 0, "doubled": 0}


def test_close_leaves_no_process_and_no_semaphore(mongo_uri: str) -> None:
    pool = DaskPool(workers=2, environment={"SUPERDUPER_MONGODB__URI": mongo_uri})
    pool.start()
    assert pool._process is not None
    host = psutil.Process(pool._process.pid)
    processes = [host, *descendants(host.pid)]
    assert len(processes) > 2
    scratch = set(Path(tempfile.gettempdir()).glob("superduper-workers-*"))
    assert scratch
    mapped = host.memory_maps() if sys.platform == "linux" else ()  # elsewhere they are no files
    semaphores = [Path(each.path) for each in mapped if "/sem." in each.path]
    assert semaphores or sys.platform != "linux"
    pool.close()
    pool.close()
    assert [path for path in semaphores if path.exists()] == []
    assert scratch - set(Path(tempfile.gettempdir()).glob("superduper-workers-*"))
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


PARENT = """
import sys, time, json
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.cluster.ending import wait_for_end
pool = DaskPool(workers=2)
pool.start()
print(json.dumps(pool._process.pid), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_killing_the_parent_leaves_no_process() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        host = psutil.Process(json.loads(parent.stdout.readline()))
        processes = [host, *descendants(host.pid)]
        parent.kill()
        assert len(processes) > 2
        assert wait_for_end(processes, timeout=30) == []
    finally:
        parent.kill()
        parent.communicate()


def test_the_settings_under_which_worker_deaths_are_survived_are_in_force(pool: DaskPool) -> None:
    def read(dask_scheduler: Any) -> dict[str, Any]:
        import dask

        names = ("worker-ttl", "allowed-failures")
        found = {name: dask.config.get(f"distributed.scheduler.{name}") for name in names}
        return {**found, "address": dask_scheduler.address, "allowed": dask_scheduler.allowed_failures}

    assert pool._client is not None
    found = pool._client.run_on_scheduler(read)
    assert (found["worker-ttl"], found["allowed"]) == ("30s", 0)
    assert found["address"].startswith("tls://127.0.0.1:")


def test_the_scheduler_keeps_nothing_of_work_that_is_done(pool: DaskPool) -> None:
    """What a part of a job is about is a thousand identifiers: of each it kept ten kilobytes for the record."""
    assert pool._process is not None
    host = psutil.Process(pool._process.pid)

    def run(name: str, parts: int) -> int:
        for n in range(parts):
            ids = [ObjectId() for _ in range(2000)]
            assert pool.submit(f"{name}-{n}", len, ids).result(20) == 2000
        return host.memory_info().rss

    before = run("some", 55)  # its notes are full now
    assert run("more", 60) - before < 5 * 2**20


def test_a_hundred_printed_megabytes_are_kept_within_bounds(world: World, pool: DaskPool, dispatch: Start) -> None:
    def shout(x: Any) -> Any:
        for _ in range(1000):
            print("x" * 10_000)
        return x * 2

    world.model("m", shout)
    watcher = world.watcher("m", "x")
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(10))
    dispatcher.notify(world.database.name)
    assert world.ended(jobs["m/x"])["state"] == "succeeded"
    assert Oracle(world, watcher, double).check(range(10)) == GOOD
    assert 0 < world.database.command("collStats", "_sddb.logs")["size"] < 20 * 2**20
    assert any("left out" in line["text"] for n in range(0, 9000, 500) for line in world.store.logs(jobs["m/x"], n))


def test_a_worker_that_prints_from_c_without_end_does_not_stall(world: World, pool: DaskPool, dispatch: Start) -> None:
    def shout(x: Any) -> Any:
        os.write(1, b"x" * 100_000)
        return x * 2

    world.model("m", shout)
    watcher = world.watcher("m", "x")
    dispatcher = dispatch(pool)
    jobs = world.insert(rows(10))
    dispatcher.notify(world.database.name)
    world.ended(jobs["m/x"])
    assert Oracle(world, watcher, double).check(range(10)) == GOOD
