"""A training that is killed goes on, and ends as if nothing had happened; one that is stopped keeps its best."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pymongo.database import Database
from training_models import DIGITS, net

import superduper_nb as sd
from superduper_nb.errors import JobFailedError
from superduper_nb.jobs.outputs import Control
from superduper_nb.jobs.training import TrainingWork
from superduper_nb.models import Loader
from superduper_nb.training import RunStore
from superduper_nb.training.data import Samples, Skipped
from superduper_nb.training.documents import Documents
from superduper_nb.training.runs import RunRecorder

Docs = sd.Collection[dict[str, Any]]
HOW = sd.Training(epochs=2, batch_size=32, lr=1e-2, scheduler="linear", cache_mb=0, grad_accumulation=2)
KEPT = replace(HOW, checkpoint_every_s=0)
"""From each step another attempt can go on."""


class Killed(BaseException):
    """What ends a worker."""


class After(Control):
    """Ends the training, one way or the other, when so many steps are done."""

    def __init__(self, steps: int, end: Callable[[], bool]) -> None:
        self.done, self._steps, self._end = 0, steps, end

    def tell(self, done: int) -> None:
        self.done = done

    def stopped(self) -> bool:
        return self.done >= self._steps and self._end()


def kill() -> bool:
    raise Killed


def queued(docs: Docs, monkeypatch: pytest.MonkeyPatch, training: sd.Training = HOW) -> dict[str, Any]:
    """Record a training that nobody begins; return its job's record, claimed."""
    services = docs._workspace.services
    with monkeypatch.context() as patch:
        patch.setattr(services, "notify", lambda database, jobs: None)
        jobs = docs.create_imputation("digit", "net", "img", None, "label", loss="cross_entropy", training=training)
    record = docs._workspace.jobs.claim(jobs["train digit"].id, "me")
    assert record is not None
    return record


def work(docs: Docs, record: dict[str, Any]) -> TrainingWork:
    database: Database[Any] = docs._workspace.store.database
    return TrainingWork(database, Loader(database), record)


def test_a_killed_training_ends_as_an_unbroken_one(digits: Docs, monkeypatch: pytest.MonkeyPatch) -> None:
    record = queued(digits, monkeypatch, KEPT)
    whole = work(digits, record).run(["run"], Control())
    unbroken = digits.models["net"].state_dict()
    expected = digits.imputations["digit"].history.drop(columns="time")
    digits.imputations.delete("digit")
    digits.models.rollback("net", 1)

    record = queued(digits, monkeypatch, KEPT)
    for steps in (7, 12, 19):  # inside an epoch, at its end, and inside a later one
        with pytest.raises(Killed):
            work(digits, record).run(["run"], After(steps, kill))
        torch.rand(5)
    heard = After(10**6, kill)
    outcome = work(digits, record).run(["run"], heard)
    assert outcome.done == whole.done == 24
    found = digits.models["net"].state_dict()
    assert not torch.equal(found["layers.0.weight"], net().layers[0].weight)
    assert all(torch.equal(found[name], unbroken[name]) for name in unbroken)
    assert digits.imputations["digit"].history.drop(columns="time").equals(expected)
    # The checkpoints are gone; a worker that dies after the end finds everything done.
    files = digits.database["_sddb.fs.files"].count_documents({})
    versions = digits.models.versions("net")
    work(digits, record).run(["run"], Control())
    assert digits.models.versions("net") == versions
    assert digits.database["_sddb.fs.files"].count_documents({}) == files


def test_it_takes_the_steps_of_a_loop_written_by_hand(digits: Docs, digit_rows: list[dict[str, Any]]) -> None:
    """Given the same order, what it leaves is what anybody's loop over the same data in memory does."""
    how = sd.Training(epochs=3, batch_size=32, lr=1e-2, seed=3)
    digits.create_model("net", net(dropout=0.0))
    digits.create_imputation("digit", "net", "img", None, "label", loss="cross_entropy", training=how)
    rows = {row["_id"]: row for row in digit_rows}
    plain: Database[Any] = digits._workspace.store.database
    query = {"_fold": "train", "label": {"$exists": True}}
    order = Samples(Documents(plain["docs"], query, {"_id": 1}), lambda each: each["_id"], Skipped(), seed=3)

    model, names = net(dropout=0.0), sorted(DIGITS)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for epoch in range(3):
        for ids in torch.tensor(list(order.epoch(epoch))).split(32):
            x = torch.stack([model.preprocess(rows[id]["img"]) for id in ids.tolist()])
            y = torch.tensor([names.index(rows[id]["label"]) for id in ids.tolist()])
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
    history = digits.imputations["digit"].history["loss"].dropna()
    assert history.tolist() == pytest.approx(losses, rel=1e-4)
    assert digits.imputations["digit"].runs["best_step"].tolist() == [len(losses)]
    trained = digits.models["net"].parameters()
    assert all(
        torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(trained, model.parameters(), strict=True)
    )


def test_what_it_forgets_without_a_checkpoint_is_only_time(digits: Docs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle of the test above: with its checkpoint taken away, the run begins anew."""
    record = queued(digits, monkeypatch, KEPT)
    with pytest.raises(Killed):
        work(digits, record).run(["run"], After(8, kill))
    store = RunStore(digits._workspace.store.database)
    state = store.load_checkpoint(record["_id"])
    assert state is not None
    assert state["place"]["step"] == 8
    assert (
        len(digits.database["_sddb.fs.files"].distinct("filename")) == 4
    )  # the model's two parts, and those of one checkpoint
    store.update(record["_id"], checkpoint=None)
    told: list[int] = []
    control = Control()
    monkeypatch.setattr(control, "tell", told.append)
    work(digits, record).run(["run"], control)
    assert told[0] == 1


def test_one_that_is_cancelled_keeps_its_best(digits: Docs, monkeypatch: pytest.MonkeyPatch) -> None:
    record = queued(digits, monkeypatch)

    def cancel() -> bool:
        digits._workspace.jobs.cancel(record["_id"])
        return True

    work(digits, record).run(["run"], After(15, cancel))
    run = digits.imputations["digit"].runs.iloc[0]
    assert (run["state"], run["stopped"], run["best_step"]) == ("cancelled", "cancelled", 12)
    assert digits.models.versions("net") == [1, 2]
    # Its own children are blocked; what depends on the new version is computed all the same.
    (job,) = [job for job in digits.jobs if job.name == "net/img" and job.status == "pending"]
    digits._workspace.services.notify(digits.database.name, [job.id])
    assert digits.find_one({"_id": 899})["_outputs"]["img"]["net"] in DIGITS  # type: ignore[index]


def test_one_that_was_overtaken_stores_nothing(digits: Docs, monkeypatch: pytest.MonkeyPatch) -> None:
    record = queued(digits, monkeypatch)
    work(digits, record).run(["run"], After(15, lambda: True))
    assert digits.models.versions("net") == [1]


def test_ctrl_c_keeps_the_best_too(digits: Docs, monkeypatch: pytest.MonkeyPatch) -> None:
    point = RunRecorder.point

    def press(self: RunRecorder, step: int, epoch: int, values: Any) -> None:
        point(self, step, epoch, values)
        if step == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunRecorder, "point", press)
    with pytest.raises(KeyboardInterrupt):
        digits.create_imputation("digit", "net", "img", None, "label", loss="cross_entropy", training=HOW)
    assert digits.imputations["digit"].runs["stopped"].tolist() == ["interrupted"]
    assert digits.models.versions("net") == [1, 2]
    assert not any(thread.name.startswith("superduper-training") for thread in threading.enumerate())


def test_several_processes_are_refused_where_there_are_no_workers(digits: Docs) -> None:
    how = sd.Training(epochs=1, processes=2)
    jobs = digits.create_imputation("digit", "net", "img", None, "label", loss="cross_entropy", training=how)
    with pytest.raises(JobFailedError, match="processes=2: they are tasks on Dask workers"):
        jobs.wait()
