"""A training in a real worker process, which is killed on the way."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import pytest
import torch
from pymongo import MongoClient
from test_training_durable import queued, work

import superduper_nb as sd
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.jobs.dispatcher import Dispatcher
from superduper_nb.jobs.outputs import Control
from superduper_nb.widgets.jobs import jobs_text, snapshot

HOW = sd.Training(epochs=4, batch_size=32, lr=1e-2, checkpoint_every_s=0)


@pytest.mark.drill
def test_a_killed_worker_costs_time_only(
    digits: sd.Collection[dict[str, Any]], mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = queued(digits, monkeypatch, HOW)
    work(digits, record).run(["run"], Control())
    unbroken = digits.models["net"].state_dict()
    digits.imputations.delete("digit")
    digits.models.rollback("net", 1)

    record = queued(digits, monkeypatch, HOW)
    digits._workspace.jobs.let_go("me")
    pool = DaskPool(workers=1, environment={"SUPERDUPER_MONGODB__URI": mongo_uri})
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_uri, w="majority")
    dispatcher = Dispatcher(client, pool)
    try:
        pool.start()
        dispatcher.start()
        runs, job = digits.database["_sddb.runs"], digits.jobs[record["_id"]]
        reached(lambda: (runs.find_one({"_id": job.id}) or {}).get("step", 0) >= 10)
        assert pool._process is not None
        below = psutil.Process(pool._process.pid).children(recursive=True)
        (worker,) = [each for each in below if "multiprocessing.spawn" in " ".join(each.cmdline())]
        assert job.status == "running"
        reached(lambda: " left" in jobs_text(snapshot([job.record])))  # how long it will take
        os.kill(worker.pid, signal.SIGKILL)
        reached(lambda: job.status == "succeeded")
    finally:
        dispatcher.close()
        pool.close()
        client.close()
    found = digits.models["net"].state_dict()
    # As good as equal: another process may add numbers up in another order.
    assert all(torch.allclose(found[name], unbroken[name], atol=1e-4) for name in unbroken)
    assert job.progress[0] == 92


def reached(condition: Any) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
