"""Trainings in real worker processes: together they take the steps of one; one that is killed costs time only."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import psutil
import pytest
import torch
from training_models import net
from training_workers import PLAIN, Docs, ended, trained, working

import superduper_nb as sd
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.training.groups import TorchGroup
from superduper_nb.training.parallel import _opened_store
from superduper_nb.widgets.jobs import jobs_text, snapshot
from tests.waiting import until

LONG: dict[str, Any] = {"epochs": 12, "batch_size": 32, "lr": 1e-2, "checkpoint_every_s": 0}


@pytest.fixture(scope="module")
def pool(mongo_uri: str) -> Iterator[DaskPool]:
    """Two workers, and who gives them jobs."""
    made = DaskPool(workers=2, environment={"SUPERDUPER_MONGODB__URI": mongo_uri})
    with working(made, mongo_uri):
        yield made


@pytest.fixture
def queue(digits: Docs, pool: DaskPool, monkeypatch: pytest.MonkeyPatch) -> Docs:
    """Have jobs left to the workers."""
    monkeypatch.setattr(digits._workspace.services, "notify", lambda database, jobs: None)
    return digits


@pytest.mark.parametrize("own_trainer", [False, True])
def test_two_workers_take_the_steps_of_one(queue: Docs, own_trainer: bool) -> None:
    """With a weighted loss over the whole batch, and with a trainer that knows of no other process."""
    found = []
    for processes in (1, 2):
        more: dict[str, Any] = {} if own_trainer else {"class_weights": {"one": 5.0}, "grad_accumulation": 2}
        job = trained(queue, sd.Training(processes=processes, **PLAIN, **more), own_trainer, dropout=0.0)
        assert ended(job) == "succeeded", job.error
        kind = queue.learning_tasks if own_trainer else queue.imputations
        found.append((queue.models["net"].state_dict(), kind["digit"].history["loss"].dropna().tolist()))
    (one, losses), (two, also) = found
    assert not torch.allclose(one["layers.0.weight"], net().layers[0].weight, atol=1e-3)
    # Sums over two halves are rounded in another way than those over the whole.
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert losses == pytest.approx(also, rel=1e-4)


def test_what_another_process_skips_is_counted(queue: Docs) -> None:
    """And one that is cancelled ends on both workers: the next finds them free."""
    queue.update_many({"_id": {"$in": [1, 2, 3, 4, 6, 7]}}, {"$set": {"img": "no image"}})
    job = trained(queue, sd.Training(processes=2, **{**LONG, "epochs": 500}))
    until(lambda: job.progress[0] >= 10)
    job.cancel()
    assert ended(job) == "cancelled"
    runs = queue.imputations["digit"].runs
    until(lambda: queue.imputations["digit"].runs["stopped"].iloc[-1] == "cancelled")
    assert len(runs) == 1
    job = trained(queue, sd.Training(processes=2, epochs=2))
    assert ended(job) == "succeeded"
    assert job.failures["count"] == 6


@pytest.mark.parametrize("leader", [False, True])
@pytest.mark.drill
def test_a_killed_worker_costs_time_only(queue: Docs, pool: DaskPool, leader: bool) -> None:
    """Whichever of the two it was that was killed, the run ends as one that nobody disturbed."""
    how = sd.Training(processes=2, **LONG)
    assert ended(trained(queue, how)) == "succeeded"
    unbroken = queue.models["net"].state_dict()
    history = queue.imputations["digit"].history.drop(columns="time")

    job = trained(queue, how)
    until(lambda: job.progress[0] >= 40)
    until(lambda: " left" in jobs_text(snapshot([job.record])))  # how long it will take
    ranks = {worker for worker, keys in pool.client().processing().items() if any("-rank-" in key for key in keys)}
    processes = pool.client().run(os.getpid)
    (killed,) = (set(processes) - ranks) if leader else ranks
    os.kill(processes[killed], signal.SIGKILL)
    assert ended(job) == "succeeded", job.error
    assert job.progress[0] == 276
    found = queue.models["net"].state_dict()
    assert all(torch.equal(found[name], unbroken[name]) for name in unbroken)
    assert queue.imputations["digit"].history.drop(columns="time").equals(history)


def test_a_training_that_asks_for_what_no_worker_has_fails_with_the_reason(queue: Docs) -> None:
    job = trained(queue, sd.Training(epochs=1), resources={"GPU": 1})
    assert ended(job) == "failed"
    assert "It asks for workers with GPU=1; those of our own pool have none." in str(job.error)


def test_processes_on_one_machine_cannot_be_reached_from_others() -> None:
    """What they say to each other is neither encrypted nor authenticated."""
    before = listening()
    store, _ = _opened_store("127.0.0.1")
    how: dict[str, Any] = {"width": 1, "look": lambda **_: None, "aside": nullcontext}
    group = TorchGroup(store, 0, 1, torch.device("cpu"), "127.0.0.1", **how)
    opened = listening() - before
    assert len(opened) == 2  # the store's and Gloo's
    assert {address for address, _ in opened} == {"127.0.0.1"}
    group.leave()


def listening() -> set[Any]:
    found = psutil.Process().net_connections(kind="inet")
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}


@pytest.mark.drill
def test_fewer_workers_than_asked_for_is_said(queue: Docs) -> None:
    """After a minute: one that was lost is started again, and a cluster may grow."""
    job = trained(queue, sd.Training(processes=3, epochs=1))
    assert ended(job) == "failed"
    assert "processes=3: each takes a Dask worker, and there are 2 of them." in str(job.error)
