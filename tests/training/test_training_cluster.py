"""Trainings on the workers of a Dask cluster that somebody else started."""

from __future__ import annotations

import sys
from contextlib import closing

import pytest
import torch
from distributed import Nanny, Scheduler, SpecCluster
from training_workers import PLAIN, Docs, ended, trained, working

import superduper_nb as sd
from superduper_nb.cluster.dask import DaskPool


@pytest.mark.drill
def test_three_workers_of_another_cluster_that_have_the_resources_take_the_steps_of_one(
    digits: Docs, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the fourth, which has none, takes part in nothing."""
    monkeypatch.setattr(digits._workspace.services, "notify", lambda database, jobs: None)
    options = {"nthreads": 1, "env": {"SUPERDUPER_MONGODB__URI": mongo_uri}, "host": "127.0.0.1"}
    workers = {n: {"cls": Nanny, "options": {**options, "resources": {"GPU": 1} if n else {}}} for n in range(4)}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}}
    found = []
    with (
        SpecCluster(workers, scheduler) as cluster,
        closing(DaskPool(address=cluster.scheduler_address)) as pool,
        working(pool, mongo_uri),
    ):
        for processes in (1, 3):
            job = trained(digits, sd.Training(processes=processes, **PLAIN), resources={"GPU": 1}, dropout=0.0)
            assert ended(job) == "succeeded", job.error
            found.append(digits.models["net"].state_dict())
        trains = pool.client().run(lambda: "superduper_nb.training.parallel" in sys.modules)
        offers = {address: bool(offered) for address, offered in pool.workers().items()}
    one, three = found
    assert all(torch.allclose(one[name], three[name], atol=1e-5) for name in one)
    assert sorted(offers.values()) == [False, True, True, True]
    assert trains == offers
