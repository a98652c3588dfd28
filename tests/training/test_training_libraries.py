"""Trainers of other libraries, the real ones: what they leave is what they leave alone, over the same data."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from test_training_durable import After, Killed, kill, work
from training_models import DIGITS, Net

import superduper_nb as sd
from superduper_nb.jobs.outputs import Control
from superduper_nb.training import Fitter, Fitting
from superduper_nb.training.data import Samples, Skipped
from superduper_nb.training.documents import Documents

Docs = sd.Collection[dict[str, Any]]
CLASSES = sorted(DIGITS)
# Lightning 2.6 under torch 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")


def library(name: str, **options: Any) -> Any:
    """Return a model of `library_models`, imported here only: each process of tests imports this module."""
    return getattr(import_module("library_models"), name)(**options)


def batches(docs: Docs, rows: list[dict[str, Any]], epoch: int | None, seed: int = 0, size: int = 32) -> list[Any]:
    """Return the batches of an epoch, in the order of the seed; None: the validation's."""
    plain = docs._workspace.store.database["docs"]
    fold = "valid" if epoch is None else "train"
    documents = Documents(plain, {"_fold": fold, "label": {"$exists": True}}, {"_id": 1})
    samples = Samples(documents, lambda each: each["_id"], Skipped(), seed=seed)
    ids = list(samples.epoch(epoch))
    x = torch.stack([torch.as_tensor(rows[id]["img"]) for id in ids])
    y = torch.tensor([CLASSES.index(rows[id]["label"]) for id in ids])
    return list(zip(x.split(size), y.split(size), strict=True))


def task(docs: Docs, trainer: str, how: sd.Training, **options: Any) -> Any:
    options = {"filter": {"label": {"$exists": True}}, "target": "label", "classes": CLASSES, **options}
    from superduper_nb.training.lightning import LightningTrainer
    from superduper_nb.training.skorch import SkorchTrainer

    docs.create_trainer("lightning", LightningTrainer)
    docs.create_trainer("skorch", SkorchTrainer)
    return docs.create_learning_task("digit", trainer, ["lib"], ["img"], training=how, **options)


def queued(docs: Docs, monkeypatch: pytest.MonkeyPatch, trainer: str) -> dict[str, Any]:
    """Record a training that nobody begins; return its job's record, claimed."""
    with monkeypatch.context() as patch:
        patch.setattr(docs._workspace.services, "notify", lambda database, jobs: None)
        jobs = task(docs, trainer, sd.Training(epochs=3, batch_size=64, checkpoint_every_s=0))
    record = docs._workspace.jobs.claim(jobs["train digit"].id, "me")
    assert record is not None
    return record


def weights(docs: Docs) -> Any:
    made = docs.models["lib"]
    return getattr(made, "module_", made).state_dict()


def assert_equal(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_lightning_leaves_what_it_leaves_alone(digits: Docs, digit_rows: list[dict[str, Any]]) -> None:
    import lightning.pytorch as lightning

    digits.create_model("lib", library("LitDigits"))
    digits.create_watcher("lib", "img")
    digits.create_validation_set("few", {"label": {"$exists": True}}, sample_size=40)
    how = sd.Training(epochs=3, batch_size=32, clip_norm=1.0, grad_accumulation=2)
    jobs = task(digits, "lightning", how, validation_sets=["few"])
    assert {job.status for job in jobs.values()} == {"succeeded"}, jobs["train digit"].error

    class Epochs:
        def __iter__(self) -> Any:
            return iter(batches(digits, digit_rows, alone.current_epoch))

    class Validation:
        def __iter__(self) -> Any:
            return iter(batches(digits, digit_rows, None))

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    how_alone = {"max_epochs": 3, "gradient_clip_val": 1.0, "accumulate_grad_batches": 2, "num_sanity_val_steps": 0}
    alone = lightning.Trainer(accelerator="cpu", **how_alone, **quiet)
    module = library("LitDigits")
    alone.fit(module, Epochs(), Validation())
    assert_equal(digits.models["lib"].state_dict(), module.state_dict())
    history = digits.learning_tasks["digit"].history
    assert history["valid.loss"].dropna().iloc[-1] == pytest.approx(float(alone.callback_metrics["val_loss"]))
    assert history["valid.acc"].dropna().iloc[-1] == pytest.approx(float(alone.callback_metrics["val_acc"]))
    assert not any(name.endswith("train_loss") for name in history)
    assert len(history["few.acc"].dropna()) == len(history["valid.acc"].dropna()) == 4  # the start, too
    assert history["loss"].dropna().iloc[-1] < history["loss"].dropna().iloc[0] / 2
    found = digits.find_one({"_id": 899})
    assert found is not None
    assert found["_outputs"]["img"]["lib"] == CLASSES[int(module(torch.as_tensor(found["img"])).argmax())]
    run = digits.learning_tasks["digit"].runs.iloc[0]
    assert (run["step"], run["best"]) == (36, history["valid.loss"].min())


def test_skorch_leaves_what_it_leaves_alone(digits: Docs, digit_rows: list[dict[str, Any]]) -> None:
    from skorch.helper import predefined_split

    digits.create_model("lib", library("skorch_net"))
    jobs = task(digits, "skorch", sd.Training(epochs=3, batch_size=32, monitor="valid.acc"))
    assert jobs["train digit"].status == "succeeded", jobs["train digit"].error
    alone, validation = library("skorch_net"), batches(digits, digit_rows, None, size=10**6)[0]
    alone.set_params(train_split=predefined_split(torch.utils.data.TensorDataset(*validation)))
    alone.initialize()
    for epoch in range(3):
        for x, y in batches(digits, digit_rows, epoch):
            alone.train_step((x, y))
    loaded = digits.models["lib"]
    assert_equal(loaded.module_.state_dict(), alone.module_.state_dict())
    history = digits.learning_tasks["digit"].history
    right = np.mean(alone.predict(validation[0].numpy()) == validation[1].numpy())
    assert history["valid.acc"].iloc[-1] == pytest.approx(right)
    assert digits.learning_tasks["digit"].runs["best"].iloc[0] == history["valid.acc"].max()
    assert history["loss"].dropna().iloc[-1] < history["loss"].dropna().iloc[0] / 2
    assert (loaded.max_epochs, type(loaded.iterator_train)) == (10, type)  # its own settings are as they were
    label = CLASSES[int(alone.predict(digit_rows[899]["img"][None])[0])]
    assert digits.predict("lib", digit_rows[899]["img"]) == label


@pytest.mark.parametrize(("trainer", "model"), [("lightning", "LitDigits"), ("skorch", "skorch_net")])
def test_one_that_is_killed_goes_on_and_one_that_is_cancelled_keeps_its_best(
    digits: Docs, monkeypatch: pytest.MonkeyPatch, trainer: str, model: str
) -> None:
    """With dropout: an attempt that goes on draws what the unbroken one drew."""

    digits.create_model("lib", library(model, dropout=0.3))
    assert work(digits, queued(digits, monkeypatch, trainer)).run(["run"], Control()).done == 36
    unbroken, expected = weights(digits), digits.learning_tasks["digit"].history.drop(columns="time")
    digits.learning_tasks.delete("digit")
    digits.models.rollback("lib", 1)
    record = queued(digits, monkeypatch, trainer)
    for steps in (15, 30):
        with pytest.raises(Killed):
            work(digits, record).run(["run"], After(steps, kill))
    heard: list[int] = []
    control = Control()
    monkeypatch.setattr(control, "tell", heard.append)
    work(digits, record).run(["run"], control)
    assert heard[0] == 24  # from its last checkpoint, at the end of an epoch
    assert_equal(weights(digits), unbroken)
    assert digits.learning_tasks["digit"].history.drop(columns="time").equals(expected)

    digits.learning_tasks.delete("digit")
    record = queued(digits, monkeypatch, trainer)

    def cancel() -> bool:
        digits._workspace.jobs.cancel(record["_id"])
        return True

    work(digits, record).run(["run"], After(15, cancel))
    run = digits.learning_tasks["digit"].runs.iloc[0]
    assert (run["state"], run["stopped"], run["step"]) == ("cancelled", "cancelled", 15)
    assert 0 < run["best_step"] <= 15


@pytest.mark.parametrize(("trainer", "model"), [("lightning", "LitDigits"), ("skorch", "skorch_net")])
def test_without_a_fold_to_judge_by_the_last_weights_are_kept(
    digits: Docs, monkeypatch: pytest.MonkeyPatch, trainer: str, model: str
) -> None:
    """And one that is killed goes on there, too: Lightning begins an epoch anew in another way then."""
    digits.delete_many({"_fold": "valid"})
    digits.create_model("lib", library(model, dropout=0.3))
    made = []
    for kills in ((), (15, 30)):
        record = queued(digits, monkeypatch, trainer)
        for steps in kills:
            with pytest.raises(Killed):
                work(digits, record).run(["run"], After(steps, kill))
        assert work(digits, record).run(["run"], Control()).done == 36
        assert digits.learning_tasks["digit"].runs["best_step"].tolist() == [36]
        made.append(weights(digits))
        digits.learning_tasks.delete("digit")
        digits.models.rollback("lib", 1)
    assert_equal(*made)


class Mean(Fitter):
    """The mean of the inputs, by a loop of its own."""

    def fit(self, fitting: Fitting) -> None:
        mean: torch.Tensor = self.sides[0].module.mean
        while not fitting.over:
            for samples in fitting.batches(fitting.epoch):
                fitting.begin()
                batch = self.collate(samples)[0]
                error = float((batch - mean).pow(2).mean())
                mean += 0.1 * (batch.mean(0) - mean)
                if fitting.tell(loss=error):
                    break
            fitting.begin()
            held = self.collate([sample for batch in fitting.held_out("valid") for sample in batch])[0]
            fitting.judge({"valid.loss": float((held - mean).pow(2).mean())})
            fitting.epoch += 1


class Constant(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: torch.Tensor) -> Any:
        return x - self.mean


def test_a_loop_of_ones_own(digits: Docs, digit_rows: list[dict[str, Any]]) -> None:
    digits.create_model("constant", Constant(), preprocess=lambda image: torch.as_tensor(np.array(image)))
    digits.create_trainer("mean", Mean)
    how = sd.Training(epochs=5, early_stopping=2)
    jobs = digits.create_learning_task("mean", "mean", ["constant"], ["img"], training=how)
    assert jobs["train mean"].status == "succeeded", jobs["train mean"].error
    pixels = np.mean([row["img"] for row in digit_rows if row["_fold"] == "train"], axis=0)
    assert np.allclose(digits.models["constant"].mean, pixels, atol=0.03)
    history = digits.learning_tasks["mean"].history
    assert history["loss"].iloc[0] > history["loss"].iloc[-1]
    assert digits.learning_tasks["mean"].runs["best"].iloc[0] == history["valid.loss"].min()


def test_a_library_is_imported_by_who_names_it_and_missed_in_one_line() -> None:
    code = """
import sys
import superduper_nb.training.task
assert not {"lightning", "skorch", "sklearn"} & set(sys.modules)
sys.modules["lightning"] = sys.modules["skorch"] = None
for name in ("lightning", "skorch"):
    try:
        __import__(f"superduper_nb.training.{name}")
    except superduper_nb.errors.InvalidInputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "LightningTrainer needs Lightning: pip install 'superduper-nb[training]'.",
        "SkorchTrainer needs skorch: pip install 'superduper-nb[training]'.",
    ]


def test_what_would_have_no_effect_is_refused(digits: Docs) -> None:
    digits.create_model("lib", library("LitDigits"))
    for trainer, options, said in [
        ("lightning", {"training": sd.Training(lr=0.1)}, "lr=0.1: LightningTrainer has a loop of its own"),
        ("lightning", {"loss": "mse"}, "leave out loss="),
        ("lightning", {"targets": "label"}, "targets=: LightningTrainer takes target= and classes="),
        ("skorch", {}, "not a LitDigits"),
    ]:
        how = options.pop("training", sd.Training(max_steps=2))
        jobs = task(digits, trainer, how, **options)
        assert said in (jobs["train digit"].error or "")
    digits.create_model("plain", Net())
    jobs = digits.create_learning_task("other", "lightning", ["plain"], ["img"])
    assert "trains a LightningModule, not a Net" in (jobs["train other"].error or "")


def test_a_loss_that_becomes_nan_stops_lightning_too(digits: Docs) -> None:
    for steps in (0, 30):
        broken = library("Breaks")
        broken.steps = steps
        digits.create_model("lib", broken)
        jobs = task(digits, "lightning", sd.Training(epochs=3, batch_size=64))
        if not steps:
            assert "the loss was nan at step 1 (epoch 0), and nothing better" in (jobs["train digit"].error or "")
    (stopped,) = jobs["train digit"].failures["first"]
    assert stopped["error"] == "Stopped: the loss was nan at step 31 (epoch 2); step 24 is kept."
    assert all(torch.isfinite(value).all() for value in weights(digits).values())
