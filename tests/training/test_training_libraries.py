"""Trainers of other libraries, the real ones: what they leave is what they leave alone, over the same data."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.helper import predefined_split
from test_training_durable import After, Killed, kill
from training_models import DIGITS, Net

import superduper_nb as sd
from superduper_nb.jobs.outputs import Control
from superduper_nb.jobs.training import TrainingWork
from superduper_nb.models import Loader
from superduper_nb.training.data import Documents, Samples, Skipped
from superduper_nb.training.lightning import LightningTrainer
from superduper_nb.training.skorch import SkorchTrainer

Docs = sd.Collection[dict[str, Any]]
CLASSES = sorted(DIGITS)
# Lightning 2.6 under torch 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")


class LitDigits(lightning.LightningModule):
    """As Lightning's users write one."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(dropout=dropout)

    def preprocess(self, image: Any) -> torch.Tensor:
        return self.net.preprocess(image)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, number: int) -> Any:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, number: int, dataloader_idx: int = 0) -> None:
        logits = self(batch[0])
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, batch[1]), batch_size=len(batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def skorch_net(**options: Any) -> NeuralNetClassifier:
    torch.manual_seed(0)
    module = Net(dropout=options.pop("dropout", 0.0))
    how = {"optimizer": torch.optim.AdamW, "lr": 1e-2, "verbose": 0, **options}
    return NeuralNetClassifier(module, criterion=torch.nn.CrossEntropyLoss, **how)


def batches(docs: Docs, rows: list[dict[str, Any]], epoch: int | None, seed: int = 0, size: int = 32) -> list[Any]:
    """Return the batches of an epoch, in the order of the seed; None: the validation's."""
    plain = docs._workspace.store.database["docs"]
    fold = "valid" if epoch is None else "train"
    documents = Documents(plain, {"_fold": fold, "label": {"$exists": True}}, {"_id": 1})
    samples = Samples(documents, lambda each: each["_id"], Skipped(), seed=seed)
    ids = list(samples.in_order() if epoch is None else samples.epoch(epoch))
    x = torch.stack([torch.as_tensor(rows[id]["img"]) for id in ids])
    y = torch.tensor([CLASSES.index(rows[id]["label"]) for id in ids])
    return list(zip(x.split(size), y.split(size), strict=True))


def task(docs: Docs, trainer: str, how: sd.Training, **options: Any) -> Any:
    options = {"filter": {"label": {"$exists": True}}, "target": "label", "classes": CLASSES, **options}
    docs.create_trainer("lightning", LightningTrainer)
    docs.create_trainer("skorch", SkorchTrainer)
    return docs.create_learning_task("digit", trainer, ["lib"], ["img"], training=how, **options)


def assert_equal(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_lightning_leaves_what_it_leaves_alone(digits: Docs, digit_rows: list[dict[str, Any]]) -> None:
    digits.create_model("lib", LitDigits())
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
    module = LitDigits()
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
    digits.create_model("lib", skorch_net())
    jobs = task(digits, "skorch", sd.Training(epochs=3, batch_size=32, monitor="valid.acc"))
    assert jobs["train digit"].status == "succeeded", jobs["train digit"].error
    alone, validation = skorch_net(), batches(digits, digit_rows, None, size=10**6)[0]
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


@pytest.mark.parametrize(("trainer", "model"), [("lightning", LitDigits), ("skorch", skorch_net)])
def test_one_that_is_killed_goes_on_and_one_that_is_cancelled_keeps_its_best(
    digits: Docs, monkeypatch: pytest.MonkeyPatch, trainer: str, model: Any
) -> None:
    """With dropout: an attempt that goes on draws what the unbroken one drew."""

    def queued() -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(digits._workspace.services, "notify", lambda database, jobs: None)
            jobs = task(digits, trainer, sd.Training(epochs=3, batch_size=64, checkpoint_every_s=0))
        record = digits._workspace.jobs.claim(jobs["train digit"].id, "me")
        assert record is not None
        return record

    def work(record: dict[str, Any]) -> TrainingWork:
        database: Any = digits._workspace.store.database
        return TrainingWork(database, Loader(database), record)

    def weights() -> Any:
        made = digits.models["lib"]
        return (made if trainer == "lightning" else made.module_).state_dict()

    digits.create_model("lib", model(dropout=0.3))
    assert work(queued()).run(["run"], Control()).done == 36
    unbroken, expected = weights(), digits.learning_tasks["digit"].history.drop(columns="time")
    digits.learning_tasks.delete("digit")
    digits.models.rollback("lib", 1)
    record = queued()
    for steps in (15, 30):
        with pytest.raises(Killed):
            work(record).run(["run"], After(steps, kill))
    heard: list[int] = []
    control = Control()
    monkeypatch.setattr(control, "tell", heard.append)
    work(record).run(["run"], control)
    assert heard[0] == 24  # from its last checkpoint, at the end of an epoch
    assert_equal(weights(), unbroken)
    assert digits.learning_tasks["digit"].history.drop(columns="time").equals(expected)

    digits.learning_tasks.delete("digit")
    record = queued()

    def cancel() -> bool:
        digits._workspace.jobs.cancel(record["_id"])
        return True

    work(record).run(["run"], After(15, cancel))
    run = digits.learning_tasks["digit"].runs.iloc[0]
    assert (run["state"], run["stopped"], run["step"]) == ("cancelled", "cancelled", 15)
    assert 0 < run["best_step"] <= 15


def test_what_would_have_no_effect_is_refused(digits: Docs) -> None:
    digits.create_model("lib", LitDigits())
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
