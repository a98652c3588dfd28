"""Imputations, semantic indexes and tasks of one's own, through real jobs in this process."""

from __future__ import annotations

import json
import time
from collections import Counter
from importlib.metadata import distribution
from typing import Any

import numpy as np
import pytest
import torch
from test_training_durable import After, Killed, kill, work
from training_models import DIGITS, bag, net, pixels

import superduper_nb as sd
from superduper_nb.errors import ConflictError, InvalidInputError, JobFailedError, NotFoundError
from superduper_nb.jobs.outputs import Control
from superduper_nb.magics.session import Connections
from superduper_nb.magics.table import run
from superduper_nb.models import Predictor
from superduper_nb.widgets.jobs import jobs_html, jobs_text, snapshot

Docs = sd.Collection[dict[str, Any]]
QUICK = sd.Training(epochs=8, batch_size=32, lr=1e-2)


def impute(docs: Docs, training: sd.Training = QUICK, **options: Any) -> Any:
    options = {"loss": "cross_entropy", "metrics": ["accuracy", "f1"], **options}
    return docs.create_imputation("digit", "net", "img", None, "label", training=training, **options)


def curve(docs: Docs, name: str = "valid.loss", task: str = "digit") -> list[float]:
    return list(docs.imputations[task].history[name].dropna())


def test_an_imputation_learns_and_fills_the_missing_labels(digits: Docs, digit_rows: list[dict[str, Any]]) -> None:
    jobs = impute(digits)
    assert list(jobs) == ["train digit", "net/img"]
    assert {job.status for job in jobs.values()} == {"succeeded"}
    assert curve(digits, "valid.accuracy")[-1] > 0.85
    runs = digits.imputations["digit"].runs
    assert runs["state"].tolist() == ["succeeded"]
    # Seen where jobs are seen: a curve that falls, and the last results.
    shown = jobs_text(snapshot([jobs["train digit"].record]))
    assert f"valid.accuracy {curve(digits, 'valid.accuracy')[-1]:.4g}" in shown
    assert shown.index("█") < shown.index("▁")
    connections = Connections()
    connections.open("default", {}, connect=lambda **_: digits.database.client)
    run(f"use {digits.database.name}.docs", connections=connections)
    assert f"valid.accuracy {curve(digits, 'valid.accuracy')[-1]:.4g}" in repr(
        run("jobs", connections=connections).value
    )
    drawn = jobs_html(snapshot([jobs["train digit"].record]))
    assert drawn.count("<polyline") == 2 * 4  # loss and valid.loss, accuracy, F1; each with its key
    assert "valid.accuracy" in drawn
    assert runs["best"].iloc[0] == min(curve(digits))
    assert runs["valid.f1"].iloc[0] > 0.8
    assert digits.imputations["digit"]["target_key"] == "label"

    # What is stored is the label, computed by the version that training stored.
    assert digits.models.versions("net") == [1, 2]
    local = Predictor(digits.models["net"], postprocess=lambda logits: sorted(DIGITS)[int(logits.argmax())])
    filled = {d["_id"]: d["_outputs"]["img"]["net"] for d in digits.find({"label": {"$exists": False}})}
    expected = {row["_id"]: local.predict(row["img"]) for row in digit_rows if "label" not in row}
    assert filled == expected
    assert digits.insert_one({"_id": "new", "img": digit_rows[3]["img"]}).jobs
    assert digits.find_one("new")["_outputs"]["img"]["net"] == local.predict(digit_rows[3]["img"])  # type: ignore[index]

    # Cells are run again: neither the training nor the untrained model comes back.
    assert not impute(digits)
    assert not digits.create_model("net", net())
    assert digits.models.versions("net") == [1, 2]
    # Another seed starts from the model as it was, and both runs can be compared.
    impute(digits, sd.Training(epochs=8, batch_size=32, lr=1e-2, seed=1))
    runs = digits.imputations["digit"].runs
    assert runs["training.seed"].fillna(0).tolist() == [0, 1]
    both = digits.imputations["digit"].compare("valid.loss")
    assert list(both.columns) == list(runs.index)
    assert both.loc[0].nunique() == 1
    assert both.iloc[:, 1].dropna().tolist() == curve(digits)
    with pytest.raises(NotFoundError, match=r"Did you mean 'valid\.loss'"):
        digits.imputations["digit"].compare("valid.los")
    # The old version is there to go back to; it is no no-op, though the current one was made of it.
    digits.models.rollback("net", 1)
    assert digits.models.versions("net") == [1, 2, 3, 4]
    assert torch.equal(digits.models["net"].layers[0].weight, net().layers[0].weight)
    computed = digits.find_one({"_id": 899})
    assert computed is not None
    assert np.allclose(computed["_outputs"]["img"]["net"], Predictor(net()).predict(digit_rows[899]["img"]), atol=1e-6)
    assert not digits.create_model("net", net())
    # It is used, and with it its history goes.
    with pytest.raises(ConflictError, match="imputation digit"):
        digits.models.delete("net")
    digits.imputations.delete("digit")
    assert digits.database["_sddb.runs"].count_documents({}) == 0
    assert digits.database["_sddb.history"].count_documents({}) == 0


def test_the_same_seed_gives_the_same_weights(digits: Docs) -> None:
    weights = []
    for _ in range(2):
        digits.models.rollback("net", 1)
        torch.rand(3)
        before = torch.get_rng_state()
        impute(digits, sd.Training(max_steps=20, batch_size=32))
        assert torch.equal(torch.get_rng_state(), before)  # a notebook's own generator is left as it was
        digits.imputations.delete("digit")
        weights.append(digits.models["net"].state_dict())
    assert not torch.equal(weights[0]["layers.0.weight"], net().layers[0].weight)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_few_steps_are_saved_too(digits: Docs) -> None:
    """PEER 2.4: with the default interval nothing was ever validated, so nothing was saved."""
    impute(digits, sd.Training(max_steps=5))
    assert digits.models.versions("net") == [1, 2]
    assert digits.imputations["digit"].runs["best_step"].tolist() == [5]


def test_an_empty_valid_fold_is_no_error(digits: Docs) -> None:
    """PEER 2.4: ZeroDivisionError."""
    digits.delete_many({"_fold": "valid"})
    filter = {"_id": {"$lt": 100}}
    jobs = impute(digits, sd.Training(max_steps=20), filter=filter)
    assert jobs["train digit"].status == "succeeded"
    assert digits.imputations["digit"].runs["monitor"].tolist() == ["loss"]
    assert filter == {"_id": {"$lt": 100}}  # PEER 2.4: _fold leaked into it
    assert digits.imputations["digit"]["filter"] == filter
    assert "is empty" in jobs["train digit"].logs()[0]["text"]


def test_documents_without_a_fold_get_one_when_they_are_learnt_from(
    docs: Docs, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = database["docs"]  # as any program writes it

    def known() -> dict[Any, Any]:
        return {document["_id"]: document.get("_fold") for document in theirs.find()}

    theirs.insert_many([{"_id": i, "x": [i % 2, 1.0], "y": i % 2} for i in range(40)])
    docs.create_model("m", torch.nn.Linear(2, 2), preprocess=torch.as_tensor)
    how = {"loss": "cross_entropy", "training": sd.Training(max_steps=2)}
    assert docs.create_imputation("p", "m", "x", None, "y", filter={"_id": {"$lt": 30}}, **how).wait()
    before = known()
    assert Counter(before.values()) == {"train": 28, "valid": 2, None: 10}
    monkeypatch.setattr("superduper_nb.client.folds._FEW", 10)
    docs.create_validation_set("held", {"_id": {"$gte": 0}}, sample_size=1)
    after = known()
    assert {id: after[id] for id, fold in before.items() if fold} == {id: f for id, f in before.items() if f}
    assert set(after.values()) == {"train", "valid"}


def test_a_filter_is_left_as_it_was(digits: Docs) -> None:
    """PEER 2.4: ``_fold`` leaked into the user's filter, and into what was stored."""
    filter: dict[str, Any] = {"_id": {"$lt": 100}}
    impute(digits, sd.Training(max_steps=2), filter=filter)
    assert filter == {"_id": {"$lt": 100}}
    assert digits.imputations["digit"]["filter"] == digits.watchers["net/img"]["filter"] == filter


def test_folds_are_those_of_who_inserts_and_may_be_drawn_anew(docs: Docs, digit_rows: list[dict[str, Any]]) -> None:
    """PEER 2.4: no stratification, and the fold was fixed at the insert."""
    from sklearn.model_selection import train_test_split

    rows = [{**row} for row in digit_rows if "label" in row]
    _, held = train_test_split(rows, test_size=0.2, stratify=[row["label"] for row in rows], random_state=0)
    chosen = {row["_id"] for row in held}
    docs.create_model("net", net())
    docs.insert_many([{**row, "_fold": "valid" if row["_id"] in chosen else "train"} for row in rows])
    for label in DIGITS:
        folds = [row["_fold"] for row in docs.find({"label": label})]
        assert folds.count("valid") / len(folds) == pytest.approx(0.2, abs=0.01)
    docs.create_function("number", DIGITS.index)
    docs.create_metric("rows", lambda outputs, targets: len(targets))
    options = {"metrics": ["rows"], "target": "number", "training": sd.Training(max_steps=1)}
    docs.create_imputation("digit", "net", "img", target_key="label", loss="cross_entropy", **options)
    assert set(curve(docs, "valid.rows")) == {len(held)}
    docs.update_many({"_id": {"$in": sorted(chosen)[:100]}}, {"$set": {"_fold": "train"}})
    docs.imputations["digit"].train()
    assert set(curve(docs, "valid.rows")) == {len(held) - 100}


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [0, 1, 2, 3, 4, 5, 6]), (3600.0, [0, 6])])
def test_it_validates_every_so_many_seconds_and_at_the_end(digits: Docs, seconds: float, steps: list[int]) -> None:
    impute(digits, sd.Training(max_steps=6, validate_every_s=seconds))
    assert digits.imputations["digit"].history["valid.loss"].dropna().index.tolist() == steps


def test_any_result_can_be_monitored_and_stops_early(digits: Docs) -> None:
    """PEER 2.4: only watch='objective' ever saved a model."""
    how = sd.Training(max_steps=200, lr=0.05, validate_every=5, monitor="valid.accuracy", early_stopping=3)
    impute(digits, how)
    run = digits.imputations["digit"].runs.iloc[0]
    accuracies = digits.imputations["digit"].history["valid.accuracy"].dropna()
    assert run["best"] == accuracies.max()
    assert run["step"] < 200
    assert run["best_step"] == accuracies.idxmax() == run["step"] - 15
    assert "no better for 3" in run["stopped"]


def test_bad_data_is_told_in_a_line(digits: Docs) -> None:
    digits.create_model("narrow", net(classes=3))
    for model, loss, filter, said in [
        ("net", "cross_entropy", {"_id": -1}, "nothing to learn from"),
        ("net", "cross_entropy", {"label": "two"}, "'label' is 'two' in every document"),
        ("net", "mse", {}, r"is for numbers; a target is '\w+'\. Labels: 'cross_entropy'"),
        ("narrow", "cross_entropy", {}, r"answers 3 numbers, and 'label' has 10 classes \('eight', 'five'"),
    ]:
        jobs = digits.create_imputation("digit", model, "img", None, "label", loss=loss, filter=filter)
        assert "\n" not in (jobs["train digit"].error or "")
        with pytest.raises(JobFailedError, match=said):
            jobs["train digit"].wait()
        assert jobs["train digit"].error
    assert list(digits.watchers) == []
    assert digits.models.versions("net") == [1]
    # The failed one is tried again when its cell is.
    assert digits.create_imputation("digit", "net", "img", None, "label", loss="cross_entropy", filter={"label": "two"})


def test_what_cannot_be_learnt_from_is_skipped_and_counted(digits: Docs) -> None:
    unseen = {"_id": "unseen", "img": pixels(np.zeros(64)), "label": "eleven", "_fold": "valid"}
    pending = {"_id": "away", "img": {"_content": {"url": "https://x.test/a", "type": "array"}}, "label": "one"}
    digits.insert_many([unseen, {**pending, "_fold": "train"}])
    jobs = impute(digits, sd.Training(max_steps=30))
    failures = jobs["train digit"].failures
    assert jobs["train digit"].status == "succeeded"
    assert {each["_id"] for each in failures["first"]} == {"unseen", "away"}
    assert failures["count"] == 2
    assert any("'eleven' is in no document" in each["error"] for each in failures["first"])
    assert digits.imputations["digit"].runs["skipped"].tolist() == [2]


def test_a_loss_that_becomes_nan_stops_it_and_keeps_the_best(digits: Docs) -> None:
    digits.create_loss("sometimes", nan_after(40))
    digits.create_function("number", DIGITS.index)
    how = sd.Training(max_steps=60, validate_every=10)
    jobs = digits.create_imputation("digit", "net", "img", "number", "label", loss="sometimes", training=how)
    (stopped,) = jobs["train digit"].failures["first"]
    assert "the loss was nan at step" in stopped["error"]
    run = digits.imputations["digit"].runs.iloc[0]
    assert 0 < run["best_step"] < run["step"] < 60
    assert digits.models.versions("net") == [1, 2]
    assert all(torch.isfinite(each).all() for each in digits.models["net"].state_dict().values())

    digits.create_loss("never", nan_after(0))
    digits.models.rollback("net", 1)
    jobs = digits.create_imputation("other", "net", "img", "number", "label", loss="never")
    assert "nan at step 1 (epoch 0)" in (jobs["train other"].error or "")
    assert jobs["net/img"].status == "blocked"


class nan_after:  # noqa: N801  # a function with a count
    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, outputs: Any, targets: Any) -> Any:
        if outputs.requires_grad:
            self.calls -= 1
        return torch.nn.functional.cross_entropy(outputs, targets) * (1.0 if self.calls >= 0 else float("nan"))


def test_own_metrics_may_answer_tensors(digits: Docs) -> None:
    digits.create_metric("right", lambda outputs, targets: (outputs.argmax(1) == targets).float().mean())
    digits.create_metric("broken", lambda outputs, targets: 1 / 0)
    impute(digits, sd.Training(max_steps=10), metrics=["accuracy", "right"])
    assert curve(digits, "valid.right") == pytest.approx(curve(digits, "valid.accuracy"))
    jobs = impute(digits, sd.Training(max_steps=10), metrics=["broken"])
    assert "The metric 'broken' failed: ZeroDivisionError" in (jobs["train digit"].error or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_absent_gpu_is_named(digits: Docs) -> None:
    jobs = impute(digits, sd.Training(max_steps=1, device="cuda"))
    assert "torch sees no GPU here" in (jobs["train digit"].error or "")


def test_regression_and_several_labels(docs: Docs) -> None:
    docs.create_model("line", torch.nn.Linear(2, 1))
    rng = np.random.default_rng(0)
    rows = []
    for i, x in enumerate(rng.normal(size=(300, 2)).astype(np.float32)):
        tags = [name for name, value in zip(("right", "up"), x, strict=True) if value > 0]
        fold = "valid" if i % 5 == 0 else "train"
        rows.append({"_id": i, "x": x, "y": float(2 * x[0] - x[1]), "tags": tags, "_fold": fold})
    docs.insert_many(rows)
    how = sd.Training(epochs=50, lr=0.1, scheduler="cosine", warmup_steps=5)
    docs.create_imputation("y", "line", "x", None, "y", loss="mse", metrics=["mae", "mse"], training=how)
    assert docs.imputations["y"].runs["valid.mae"].iloc[0] < 0.02
    docs.create_model("tagger", torch.nn.Linear(2, 2))
    docs.create_imputation("tags", "tagger", "x", None, "tags", loss="bce", metrics=["accuracy", "f1"], training=how)
    assert docs.imputations["tags"].runs["valid.f1"].iloc[0] > 0.95
    found = docs.find_one({"tags": ["right"]})
    assert found is not None
    assert found["_outputs"]["x"]["tagger"] == ["right"]
    assert found["_outputs"]["x"]["line"] == pytest.approx(found["y"], abs=0.1)


def test_estimators_are_fitted(digits: Docs) -> None:
    from sklearn.linear_model import LogisticRegression, SGDClassifier

    digits.create_model("logistic", LogisticRegression(max_iter=200))
    digits.create_imputation("digit", "logistic", "img", None, "label", metrics=["accuracy", "f1"])
    run = digits.imputations["digit"].runs.iloc[0]
    assert (run["step"], run["total"]) == (1, 1)
    assert run["valid.accuracy"] > 0.9
    assert digits.find_one({"_id": 899})["_outputs"]["img"]["logistic"] in DIGITS  # type: ignore[index]
    digits.create_model("sgd", SGDClassifier(random_state=0))
    how = sd.Training(epochs=5, batch_size=50)
    jobs = digits.create_imputation("streamed", "sgd", "img", None, "label", metrics=["accuracy"], training=how)
    assert jobs["train streamed"].progress[0] == 5 * -(-711 // 50)
    assert digits.imputations["streamed"].runs["valid.accuracy"].iloc[0] > 0.8
    jobs = digits.create_imputation("wrong", "sgd", "img", None, "label", loss="mse")
    assert "leave out loss=" in (jobs["train wrong"].error or "")
    jobs = digits.create_imputation("wrong", "net", "img", None, "label")
    assert "by which loss=" in (jobs["train wrong"].error or "")


def test_a_killed_fit_in_batches_goes_on(digits: Docs, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimator's own random numbers included; and the best of what was monitored is kept."""
    from sklearn.linear_model import SGDClassifier

    def queued() -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(digits._workspace.services, "notify", lambda database, jobs: None)
            how = sd.Training(epochs=2, batch_size=100, checkpoint_every_s=0, monitor="valid.accuracy")
            jobs = digits.create_imputation("fit", "sgd", "img", None, "label", metrics=["accuracy"], training=how)
        return digits._workspace.jobs.claim(jobs["train fit"].id, "me")

    digits.create_model("sgd", SGDClassifier(loss="log_loss", eta0=0.5, learning_rate="constant"))
    work(digits, queued()).run(["run"], Control())
    unbroken = digits.models["sgd"].coef_
    expected = digits.imputations["fit"].history.drop(columns="time")
    run = digits.imputations["fit"].runs.iloc[0]
    assert len(expected) == 2
    assert run["best"] == expected["valid.accuracy"].max()
    digits.imputations.delete("fit")
    digits.models.rollback("sgd", 1)
    record = queued()
    for steps in (3, 11):
        with pytest.raises(Killed):
            work(digits, record).run(["run"], After(steps, kill))
        np.random.rand(5)  # the generator that the estimator draws from
    heard: list[int] = []
    control = Control()
    monkeypatch.setattr(control, "tell", heard.append)
    work(digits, record).run(["run"], control)
    assert heard[0] == 10  # not from the start, and not from the start of the epoch
    assert np.array_equal(digits.models["sgd"].coef_, unbroken)
    assert digits.imputations["fit"].history.drop(columns="time").equals(expected)
    # What our own loop alone would heed is refused.
    jobs = digits.create_imputation("no", "sgd", "img", None, "label", training=sd.Training(epochs=1, lr=0.1))
    assert "lr=0.1: EstimatorTrainer has a loop of its own" in (jobs["train no"].error or "")


def emoji() -> list[dict[str, Any]]:
    """Return 1 915 emoji with their names and keywords."""
    path = distribution("emojis.py").locate_file("emojis/database/data.json")
    entries = json.loads(path.read_text("utf-8"))  # type: ignore[attr-defined]
    found = [(entry["label"], " ".join(entry["tags"])) for entry in entries if "group" in entry and entry["tags"]]
    return [
        {"_id": i, "name": name, "tags": tags, "_fold": "valid" if i % 10 == 0 else "train"}
        for i, (name, tags) in enumerate(found)
    ]


def test_two_towers_learn_to_find_each_other(docs: Docs) -> None:
    docs.insert_many(emoji())
    docs.create_model("names", bag(0), type="vector")
    docs.create_model("words", bag(1), type="vector")
    docs.create_metric("first", lambda found, true: torch.tensor(found[0] == true))
    how = sd.Training(epochs=6, lr=1e-2)
    metrics = ["recall@1", "recall@10", "mrr", "ndcg@10", "first"]
    jobs = docs.create_semantic_index(
        "meaning", ["names", "words"], ["name", "tags"], loss="info_nce", metrics=metrics, training=how
    )
    assert list(jobs) == ["train meaning", "names/name"]
    history = docs.semantic_indexes["meaning"].history
    before, after = history["valid.recall@10"].iloc[0], history["valid.recall@10"].iloc[-1]
    assert after > before + 0.1
    assert history["valid.first"].dropna().tolist() == pytest.approx(history["valid.recall@1"].dropna().tolist())
    assert docs.models.versions("names") == docs.models.versions("words") == [1, 2]

    # The number is that of a real search: each validation query, by the trained towers, among the documents of its set.
    valid = list(docs.find({"_fold": "valid"}))

    def searched() -> float:
        likes = [{"tags": document["tags"]} for document in valid]
        found = docs.find_many(likes, {"_fold": "valid"}, n=10)
        hits = [row["_id"] in [each["_id"] for each in hits] for row, hits in zip(valid, found, strict=True)]
        return sum(hits) / len(valid)

    trained = searched()
    assert trained == pytest.approx(after, abs=0.02)
    # Both towers as they were. Until the index has changed over, searches are those of the trained ones: no mixture.
    docs.models.rollback("words", 1)
    docs.models.rollback("names", 1)
    seen = []
    deadline = time.monotonic() + 30
    while not seen or seen[-1] != pytest.approx(before, abs=0.005):
        seen.append(searched())
        assert time.monotonic() < deadline
    assert set(seen) <= {trained, seen[-1]}


class Reads(torch.nn.Module):
    """A tower that notes which inputs it was given."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind, self.layer = kind, torch.nn.Linear(1, 4)

    def preprocess(self, value: Any) -> torch.Tensor:
        assert isinstance(value, self.kind), f"this tower reads {self.kind.__name__}, not {value!r}"
        return torch.tensor([float(len(value))])

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


def test_each_tower_gets_its_own_key_in_training_and_validation(docs: Docs) -> None:
    """PEER 2.4: validation shuffled the list of inputs, so a model might get the other one's column."""
    rows = [{"text": "x" * n, "words": ["y"] * n, "_fold": "train" if n % 3 else "valid"} for n in range(1, 40)]
    docs.insert_many(rows)
    docs.create_model("texts", Reads(str), type="vector")
    docs.create_model("lists", Reads(list), type="vector")
    how = sd.Training(max_steps=4, validate_every=1)
    jobs = docs.create_semantic_index(
        "meaning", ["texts", "lists"], ["text", "words"], loss="info_nce", metrics=["mrr"], training=how
    )
    assert jobs["train meaning"].failures["count"] == 0
    assert len(docs.semantic_indexes["meaning"].history["valid.mrr"].dropna()) == 5


def test_one_tower_and_a_splitter(docs: Docs) -> None:
    """PEER 2.4: validation without a splitter failed, and with one flipped the database's settings."""
    docs.insert_many(emoji()[:600])

    def split(document: dict[str, Any]) -> Any:
        if document["_id"] == 7:
            raise ValueError("I don't like this one")
        return {"name": document["tags"]}, document

    docs.create_splitter("by_tags", split)
    docs.create_model("tower", bag(0), type="vector")
    with pytest.raises(InvalidInputError, match="two sides"):
        docs.create_semantic_index("meaning", ["tower"], ["name"], loss="info_nce")
    jobs = docs.create_semantic_index(
        "meaning", ["tower"], ["name"], loss="triplet", splitter="by_tags", training=sd.Training(epochs=2, lr=1e-2)
    )
    assert jobs["train meaning"].failures == {
        "count": 1,
        "first": [{"_id": 7, "error": "ValueError: I don't like this one"}],
    }
    losses = docs.semantic_indexes["meaning"].history["valid.loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert docs.find(like={"name": "grinning face"}, n=3).to_list()


class Denoise(sd.Trainer):
    """Restores an image; counts what is given to it."""

    def step(self, batch: Any) -> Any:
        (x,) = batch
        noise = torch.rand_like(x) * self.options["noise"]
        assert self.loss is not None
        return self.loss(self.sides[0].output(x + noise), x)


class Both(sd.Trainer):
    """Two models in turn, as the two of a GAN."""

    def step(self, batch: Any) -> Any:
        first, second = self.sides
        yield "a", (first.output(batch[0]) ** 2).mean()
        yield "b", (second.output(first.output(batch[0])) - batch[1]).pow(2).mean()


def test_a_trainer_of_ones_own(digits: Docs) -> None:
    digits.create_model("coder", torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Linear(16, 64)))
    digits.create_trainer("denoise", Denoise)
    how = sd.Training(epochs=3, lr=1e-2)
    digits.create_learning_task("clean", "denoise", ["coder"], ["img"], loss="mse", training=how, noise=0.1)
    losses = digits.learning_tasks["clean"].history["valid.loss"].dropna()
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]
    assert digits.models.versions("coder") == [1, 2]
    digits.create_model("a", torch.nn.Linear(64, 64))
    digits.create_model("b", torch.nn.Linear(64, 64))
    digits.create_trainer("both", Both)
    digits.create_learning_task("gan", "both", ["a", "b"], ["img", "img"], training=how)
    losses = digits.learning_tasks["gan"].history["valid.loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert digits.models.versions("a") == digits.models.versions("b") == [1, 2]


def test_frozen_models_stay_and_features_are_read(digits: Docs) -> None:
    """Transfer learning: a head on what another model made of the image."""
    digits.create_model("body", torch.nn.Linear(64, 24), type="vector")
    digits.create_watcher("body", "img")
    digits.create_model("head", torch.nn.Linear(24, 10))
    jobs = digits.create_imputation(
        "digit", "head", "img", None, "label", loss="cross_entropy", features={"img": "body"}, training=QUICK
    )
    assert jobs["train digit"].failures["count"] == 0
    assert digits.models.versions("body") == [1]
    assert digits.models.versions("head") == [1, 2]
    right = [
        d["_outputs"]["img"]["head"] == d["label"] for d in digits.find({"_fold": "valid", "label": {"$exists": True}})
    ]
    assert np.mean(right) > 0.8
    # A target that is a model: distillation, the teacher frozen.
    digits.create_model("teacher", torch.nn.Linear(64, 10))
    how = sd.Training(max_steps=40, use_grads={"teacher": False}, validate_every=20)
    digits.create_imputation("distil", "net", "img", "teacher", "img", loss="mse", training=how)
    assert digits.models.versions("teacher") == [1]
    losses = curve(digits, task="distil")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("own_watcher", [False, True])
def test_an_index_learns_and_searches_by_features(docs: Docs, own_watcher: bool) -> None:
    """A head on stored vectors: training, documents and queries go through the same two models."""
    docs.create_model("body", bag(0), type="vector")
    docs.create_watcher("body", "name")
    docs.create_watcher("body", "tags")
    docs.insert_many(emoji()[:600])
    torch.manual_seed(0)
    docs.create_model("head", torch.nn.Linear(16, 8), type="vector")
    features = {"name": "body", "tags": "body"}
    if own_watcher:
        docs.create_watcher("head", "name", features=features)
        with pytest.raises(InvalidInputError, match="the watcher 'head/name' was created with"):
            docs.create_semantic_index("meaning", ["head"], ["name"], features={})
    jobs = docs.create_semantic_index(
        "meaning",
        ["head", "head"],
        ["name", "tags"],
        features=None if own_watcher else features,
        loss="info_nce",
        metrics=["recall@10"],
        training=sd.Training(epochs=3, lr=1e-2),
    )
    assert jobs["train meaning"].status == "succeeded", jobs["train meaning"].error
    assert jobs["train meaning"].failures["count"] == 0
    history = docs.semantic_indexes["meaning"].history
    assert history["valid.loss"].dropna().iloc[-1] < history["valid.loss"].dropna().iloc[0]
    assert docs.models.versions("body") == [1]
    body, head = Predictor(docs.models["body"]), docs.models["head"]
    found = docs.find_one({"_id": 5})
    assert found is not None

    def encoded(text: str) -> torch.Tensor:
        return head(body.predict(text).clone()[None])[0].detach()

    vector = encoded(found["name"])
    assert torch.allclose(torch.tensor(np.array(found["_outputs"]["name"]["head"])), vector, atol=1e-6)
    (nearest,) = docs.find(like={"name": found["name"]}, n=1)
    assert nearest["_score"] == pytest.approx(1.0)
    assert nearest["name"] == found["name"]
    (other,) = docs.find(like={"tags": found["tags"]}, n=1)
    true = torch.cosine_similarity(encoded(found["tags"]), encoded(other["name"]), dim=0)
    assert other["_score"] == pytest.approx(float(true), abs=1e-5)


def test_registering_checks_names(digits: Docs) -> None:
    with pytest.raises(InvalidInputError, match="Did you mean 'cross_entropy'"):
        impute(digits, loss="cross_entropi")
    with pytest.raises(InvalidInputError, match="No metric is called 'acuracy'"):
        impute(digits, metrics=["acuracy"])
    with pytest.raises(InvalidInputError, match=r"sd\.Training"):
        impute(digits, training={"lr": 1})  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="No function and no model is called 'x'"):
        digits.create_imputation("digit", "net", "img", "x", "label", loss="mse")
    with pytest.raises(InvalidInputError, match="need a loss="):
        digits.create_semantic_index("i", ["net"], ["img"], metrics=["mrr"])
    assert list(digits.imputations) == []


def test_a_task_is_measured_on_frozen_validation_sets(digits: Docs, digit_rows: list[dict[str, Any]]) -> None:
    """Of the weights that are kept, the result on a set is that of the model applied to the copies."""
    labelled = {"label": {"$exists": True}, "_fold": {"$exists": True}}
    digits.create_validation_set("few", labelled, sample_size=40)
    digits.create_validation_set("valid", labelled, sample_size=10)
    with pytest.raises(InvalidInputError, match="'valid' is a fold"):
        impute(digits, validation_sets=["valid"])
    with pytest.raises(InvalidInputError, match="is a list of names"):
        impute(digits, validation_sets="few")
    with pytest.raises(NotFoundError, match="Did you mean 'few'"):
        impute(digits, validation_sets=["fews"])
    impute(digits, sd.Training(epochs=3, batch_size=32, lr=1e-2, monitor="few.accuracy"), validation_sets=["few"])
    local = Predictor(digits.models["net"], postprocess=lambda logits: sorted(DIGITS)[int(logits.argmax())])
    held = list(digits.validation_sets["few"])
    right = sum(local.predict(document["img"]) == document["label"] for document in held) / len(held)
    assert max(curve(digits, "few.accuracy")) == pytest.approx(right)
    assert len(curve(digits, "valid.accuracy")) == len(curve(digits, "few.accuracy"))
    with pytest.raises(ConflictError, match="imputation digit"):
        digits.validation_sets.delete("few")
