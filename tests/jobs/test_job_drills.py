"""The long fault drills (``make drills``): random kills while two writers insert and update; then the oracle counts."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_world import GOOD, Oracle, World, until
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from test_job_workers import slow_double, worker_pids

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.cluster.mongod import Mongod, connect_options
from superduper_nb.jobs.dispatcher import Dispatcher

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("DRILL_KILLS", "4"))
BATCH = 200


class Rig:
    """A MongoDB, a pool and a dispatcher that may be killed."""

    def __init__(self, folder: Path) -> None:
        self.mongod = Mongod.attach(folder, cache_gb=0.25)
        self.pool = DaskPool(workers=2, environment={"SUPERDUPER_MONGODB__URI": self.mongod.uri})
        self.client: MongoClient[dict[str, Any]] = MongoClient(self.mongod.uri, **connect_options())
        self.world = World(self.client["drill"])
        self.start()

    def start(self) -> None:
        self.dispatcher = Dispatcher(self.client, self.pool)
        self.dispatcher.start()

    def kill_worker(self) -> None:
        if self.pool._process is not None and (pids := worker_pids(self.pool)):
            os.kill(random.choice(pids), signal.SIGKILL)

    def kill_host(self) -> None:
        if self.pool._process is not None:
            self.pool._process.kill()

    def kill_mongod(self) -> None:
        pid = until(lambda: self.mongod.status()["pid"], 30, "a mongod to kill")
        os.kill(pid, signal.SIGKILL)

    def lose_dispatcher(self) -> None:
        """Let it vanish without a word, as when its server is killed: its leases have to lapse."""
        self.dispatcher._stop.set()
        self.start()

    def close(self) -> None:
        self.dispatcher.close()
        self.pool.close()
        self.client.close()
        self.mongod.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "db")
    yield rig
    rig.close()


class Writer(threading.Thread):
    """Inserts batches and updates some of what it inserted; what was acknowledged is written down here, outside."""

    def __init__(self, rig: Rig, start: int, rng: random.Random, go_on: Callable[[], bool]) -> None:
        super().__init__()
        self._world, self._next, self._rng, self._go_on = rig.world, start, rng, go_on
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()

    def run(self) -> None:
        while self._go_on():
            ids = list(range(self._next, self._next + BATCH))
            self._next += BATCH
            self.unknown |= set(ids)
            try:
                self._world.insert([{"_id": id, "x": id} for id in ids])
                self.acknowledged |= set(ids)
                self._update(self._rng.sample(ids, 20))
            except PyMongoError:
                time.sleep(0.2)

    def _update(self, ids: list[int]) -> None:
        jobs = self._world.jobs_for(ids, held=True)
        self._world.docs.update_many({"_id": {"$in": ids}}, {"$inc": {"x": 1}})
        self._world.store.release(list(jobs.values()))


@pytest.mark.parametrize("fault", ["kill_worker", "kill_host", "kill_mongod", "lose_dispatcher"])
def test_drill(rig: Rig, fault: str) -> None:
    seed = int(os.environ.get("DRILL_SEED", random.randrange(10**6)))
    rng = random.Random(seed)
    rig.world.model("m", slow_double)
    watcher = rig.world.watcher("m", "x")
    rig.pool.start()
    over = threading.Event()
    writers = [Writer(rig, n * 10**6, random.Random(seed + n), lambda: not over.is_set()) for n in range(2)]
    for writer in writers:
        writer.start()
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.5, 4))
        getattr(rig, fault)()
    over.set()
    for writer in writers:
        writer.join()
    ended = time.monotonic()
    active = {"state": {"$in": ["pending", "running"]}}
    jobs = rig.world.database["_sddb.jobs"]
    until(lambda: jobs.count_documents(active) == 0, 300, "the end of all jobs")
    acknowledged = set.union(*(writer.acknowledged for writer in writers))
    attempted = set.union(*(writer.unknown for writer in writers))
    present = {found["_id"] for found in rig.world.docs.find({}, {"_id": 1})}
    found = Oracle(rig.world, watcher, slow_double_here).check(present)
    states = {state: jobs.count_documents({"state": state}) for state in jobs.distinct("state")}
    print(
        f"{fault}: {KILLS} kills, {len(acknowledged)} acknowledged, {len(present)} present, {found}, jobs {states};"
        f" seed {seed}; recovered in {time.monotonic() - ended:.0f} s"
    )
    print([found["error"] for found in jobs.find({"state": "failed"})])
    assert acknowledged <= present <= attempted
    assert found == GOOD
    assert set(states) <= {"succeeded"}


def slow_double_here(x: int) -> int:
    return x * 2
