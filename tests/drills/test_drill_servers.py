"""Two notebook servers on one MongoDB: one sleeps past its leases, the other takes over, and both go on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.drills.drill_oracle import CLEAN, Count, Writer, slow_embed
from tests.drills.drill_rig import DATABASE, Rig, rig_in
from tests.waiting import until

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

DOCUMENTS = 10_000
SECONDS = 80.0
LEASE_S = 30.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path / "home") as rig:
        yield rig


def test_a_server_that_sleeps_past_its_leases_does_nothing_twice(rig: Rig) -> None:
    seed = int(os.environ.get("DRILL_SEED", random.randrange(10**6)))
    sleeper, other = (rig.server(SUPERDUPER_JOBS__WORKERS="1") for _ in range(2))
    sleeper.ready()
    other.ready()
    docs = rig.docs(other)
    docs.create_model("m", slow_embed, type="vector")
    docs.create_semantic_index("near", models=["m"], keys=["x"])
    count, ends = Count(rig), Ends(rig.mongo)
    writers = [
        Writer(rig.docs(server), n * 10**6, DOCUMENTS // 2, SECONDS, random.Random(seed + n))
        for n, server in enumerate((sleeper, other))
    ]
    for writer in writers:
        writer.start()
    running = rig.mongo[DATABASE]["_sddb.jobs"]
    claimed = {"state": "running", "owner": {"$regex": f":{sleeper.process.pid}:"}}
    until(lambda: running.find_one(claimed), "the sleeper has a job to lose")
    sleeper.process.send_signal(signal.SIGSTOP)
    lost = [job["_id"] for job in running.find(claimed)]
    time.sleep(LEASE_S * 1.5)
    sleeper.process.send_signal(signal.SIGCONT)
    for writer in writers:
        writer.join()
    count.settle()
    found = count.wrong(writers) | {"searches": count.wrong_searches(docs), "ended twice": ends.twice()}
    taken_over = running.count_documents({"_id": {"$in": lost}, "attempts": {"$gt": 1}})
    print(
        f"sleeping dispatcher: {DOCUMENTS} documents, {taken_over} of {len(lost)} jobs taken over, {found}; seed {seed}"
    )
    assert found == {**CLEAN, "searches": 0, "ended twice": 0}
    assert taken_over == len(lost) > 0


def test_a_thousand_quick_updates_of_the_same_documents_end_with_outputs_that_match(rig: Rig) -> None:
    first, second = (rig.server(SUPERDUPER_JOBS__WORKERS="1") for _ in range(2))
    first.ready()
    second.ready()
    ours, theirs, foreign = rig.docs(first), rig.docs(second), rig.mongo[DATABASE]["docs"]
    ours.create_model("m", slow_embed, type="vector")
    ours.create_watcher("m", "x")
    count = Count(rig)
    ours.insert_many([{"_id": n, "x": n} for n in range(20)])
    rng = random.Random(seed := int(os.environ.get("DRILL_SEED", random.randrange(10**6))))
    for _ in range(1000):  # by one server's client, by the other's, and by a program that knows nothing of us
        docs: Any = rng.choice([ours, theirs, foreign])
        docs.update_one({"_id": rng.randrange(20)}, {"$inc": {"x": 1}})
    count.settle()
    found = count.wrong([], known=range(20))
    print(f"racing updates: 1000 of 20 documents through two servers, {found}; seed {seed}")
    assert found == CLEAN


class Ends:
    """Counts how often jobs came to an end, as the change stream tells it."""

    def __init__(self, mongo: MongoClient[dict[str, Any]]) -> None:
        self._mongo = mongo
        self._begun = mongo.admin.command("hello")["operationTime"]

    def twice(self) -> int:
        until = self._mongo.admin.command("hello")["operationTime"]
        ended = {"updateDescription.updatedFields.state": {"$in": ["succeeded", "failed"]}}
        jobs, times = self._mongo[DATABASE]["_sddb.jobs"], Counter[str]()
        with jobs.watch([{"$match": ended}], start_at_operation_time=self._begun) as stream:
            while (event := stream.try_next()) and event["clusterTime"] <= until:
                times[event["documentKey"]["_id"]] += 1
        assert times
        return sum(n > 1 for n in times.values())
