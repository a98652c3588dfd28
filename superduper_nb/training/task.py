"""One run of a registered task: documents in, new versions of its models out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pymongo.database import Database

from superduper_nb.components import Component
from superduper_nb.components.store import plain_database
from superduper_nb.documents.inputs import fields_read, seen_by_models
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.models import Loader
from superduper_nb.training.building import Builder
from superduper_nb.training.data import Samples, Skipped
from superduper_nb.training.documents import Documents, FrozenDocuments
from superduper_nb.training.fitting import Fitter, Fitting
from superduper_nb.training.loop import Loop
from superduper_nb.training.options import Training
from superduper_nb.training.results import Onlooker, Result
from superduper_nb.training.runs import RunRecorder, RunStore, Told
from superduper_nb.training.stepper import Stepper
from superduper_nb.training.trainer import Trainer

if TYPE_CHECKING:
    from superduper_nb.training.parallel import Others

__all__ = ["Run", "Trained"]

_CLASSES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left.

    Attributes
    ----------
    result : Result
        How it ended.
    versions : dict of str to Component
        The new versions of the models.
    skipped : Skipped
        Documents that could not be learnt from.
    """

    result: Result
    versions: dict[str, Component]
    skipped: Skipped


class Run:
    """A run of a task.

    Parameters
    ----------
    database : pymongo.database.Database
        Where everything is.
    loader : Loader
        Gives components.
    id : str
        The run's identifier, which is its job's.

    Raises
    ------
    NotFoundError
        The run, its task or one of its models was deleted.
    """

    def __init__(self, database: Database[Any], loader: Loader, id: str) -> None:
        self._database, self._loader, self.id = plain_database(database), loader, id
        self._runs = RunStore(database)
        record = self._runs.get(id)
        if record is None:
            raise NotFoundError(f"No training run {id!r} in {database.name}.")
        task = (record["kind"], record["task"])
        self.task = loader.store.get(*task, collection=record["collection"], version=record["version"])
        code = loader.object(self.task) if self.task.artifact else {}
        self.training = Training.from_definition(self.task.definition["training"], code)
        self._skipped = Skipped()
        self._counted: dict[Any, int] = {}
        self._builder = Builder(loader, self.task, record["starts"], self.training)
        self._features = dict(self.task.definition.get("features") or {})
        self._upstream = {key: loader.store.get("model", model).version for key, model in self._features.items()}
        self._codec = loader.codec()

    def train(self, onlooker: Onlooker, told: Told, others: Others | None = None) -> Trained:
        """Train, or go on with it; nothing is stored yet. `told` hears now and then how it goes; `others` take part.

        Raises
        ------
        InvalidInputError
            There is nothing to learn from: no document, one class only.
        """
        checkpoint = self._runs.load_checkpoint(self.id)
        trainer = self._builder.trainer(self._labels)
        train, total = self._train_samples(trainer, checkpoint)
        validation = {name: self._samples(trainer, documents) for name, documents in self._validation().items()}
        if not len(validation["valid"].documents):
            print("The fold 'valid' is empty: the training loss says which weights are best.")
        recorder = RunRecorder(self._runs, self.id, told)
        self._runs.update(self.id, total=total, documents=len(train.documents))
        self._trainer = trainer
        if isinstance(trainer, Fitter):
            fitting = Fitting(trainer, self.training, train, validation, total, recorder, onlooker)
            result = fitting.run(checkpoint)
            self._runs.update(self.id, total=fitting.total)  # an estimator that is fitted at once takes one step
            return Trained(result, {}, self._skipped)
        if trainer.loss is None and self.task.kind == "imputation":
            raise InvalidInputError("The model is a torch module: say by which loss= it is to be trained.")
        stepper = Stepper(trainer, self.training, total)
        with self._together(stepper, train, onlooker, others):
            loop = Loop(stepper, self.training, train, validation, total, recorder, onlooker)
            result = loop.run(checkpoint)
        return Trained(result, {}, self._skipped)

    def _together(
        self, stepper: Stepper, train: Samples, onlooker: Onlooker, others: Others | None
    ) -> AbstractContextManager[None]:
        if self.training.processes == 1:
            return nullcontext()
        if others is None:
            raise InvalidInputError(
                f"processes={self.training.processes}: they are tasks on Dask workers, and this job runs in the "
                "notebook's own process. Connect to a notebook server, or leave out processes=."
            )
        from superduper_nb.training.parallel import leading

        given = {"blocks": train.documents.blocks, "buffer": train.buffer, "labels": self._counted}
        return leading(stepper, self.training, others, onlooker, given, self._skipped)

    def take_part(self, rank: int, address: str, host: str, given: Mapping[str, Any], onlooker: Onlooker) -> Skipped:
        """Be another process of this run, which one at an address leads; return what was skipped here."""
        from superduper_nb.training.parallel import follow, place

        checkpoint = self._runs.load_checkpoint(self.id)
        trainer = self._builder.trainer(lambda key: given["labels"])
        place(trainer, rank)
        documents = self._documents("train", given["blocks"])
        samples = self._samples(trainer, documents, given["buffer"], (rank, self.training.processes))
        stepper = Stepper(trainer, self.training, self.training.steps(len(documents)))
        if checkpoint is not None:
            stepper.restore(checkpoint["stepper"])
        at = checkpoint["place"] if checkpoint else {"step": 0, "epoch": 0, "batch": 0}
        follow(stepper, self.training, samples, at, rank, address, host, onlooker)
        return self._skipped

    def store(self, trained: Trained) -> Trained:
        """Store the best weights as new versions of the models; done twice, it is done once."""
        versions = {}
        for model in self._trained_models():
            before = self._builder.versions[model]
            bundle = self._trainer.finished(model, self._builder.bundles[model])
            origin = {"base": before.base, "by": self._by, "run": self.id}
            notes = {"signature": (before.notes or {}).get("signature", {})}
            made, _ = self._loader.store.put("model", model, before.definition, obj=bundle, origin=origin, notes=notes)
            versions[model] = made
        ends = {model: made.version for model, made in versions.items()}
        self._runs.finish(self.id, trained.result, ends, self._skipped.reasons)
        return Trained(trained.result, versions, self._skipped)

    def _trained_models(self) -> list[str]:
        modules = self._trainer.modules()
        for module in modules.values():
            module.to("cpu")  # where it is stored from, and loaded to
        names = list(modules) or [self._trainer.sides[0].model]
        return [name for name in names if self.training.use_grads.get(name, True)]

    @property
    def _by(self) -> str:
        return task_name(self.task)

    # --- documents -----------------------------------------------------------------------------------------------

    def _train_samples(self, trainer: Trainer, checkpoint: Mapping[str, Any] | None) -> tuple[Samples, int]:
        data = checkpoint["data"] if checkpoint else {}
        documents = self._documents("train", data.get("blocks"))
        if not len(documents):
            raise InvalidInputError(f"There is nothing to learn from: no document of the fold 'train' {self._wanted}.")
        if len(documents) < self.training.processes:
            raise InvalidInputError(f"processes={self.training.processes}, but only {len(documents)} documents.")
        samples = self._samples(trainer, documents, data.get("buffer"), (0, self.training.processes))
        return samples, self.training.steps(len(documents))

    @property
    def _wanted(self) -> str:
        target = self.task.definition.get("target_key")
        return f"matches the filter and has {target!r}" if target else "matches the filter"

    def _documents(self, fold: str, blocks: Any = None) -> Documents:
        definition = self.task.definition
        parts = [{"_fold": fold}, definition["filter"]]
        if target := definition.get("target_key"):
            parts.append({target: {"$exists": True, "$ne": None}})
        query = {"$and": [part for part in parts if part]}
        return Documents(self._database[self.task.collection], query, self._projection(), blocks=blocks)

    def _projection(self) -> dict[str, int] | None:
        definition = self.task.definition
        if definition.get("splitter") or self.task.kind == "learning_task":
            return None  # what those read, only they know
        keys = definition.get("keys") or [definition["model_key"], definition["target_key"]]
        return fields_read(keys, self._features)

    def _validation(self) -> dict[str, Documents]:
        return {"valid": self._documents("valid"), **{name: self._frozen(name) for name in self._validation_sets}}

    @property
    def _validation_sets(self) -> list[str]:
        return list(self.task.definition.get("validation_sets", ()))

    def _frozen(self, name: str) -> FrozenDocuments:
        held = self._loader.store.get("validation_set", name, collection=self.task.collection)
        return FrozenDocuments(self._database, held.definition["copy"], self.task.definition.get("target_key"))

    def _samples(
        self, trainer: Trainer, documents: Documents, buffer: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> Samples:
        def prepare(document: dict[str, Any]) -> Any:
            seen = seen_by_models(document, self._features, self._upstream)
            return trainer.prepare(self._codec.decode(seen, strict=True))

        own = isinstance(trainer, Fitter)  # it takes samples, not batches
        return Samples(
            documents,
            prepare,
            self._skipped,
            collate=list if own else trainer.collate,
            by_rows=trainer.by_rows and not own,
            seed=self.training.seed,
            buffer=buffer,
            cache_bytes=self.training.cache_mb * 2**20,
            workers=self.training.workers,
            share=share,
        )

    def _labels(self, key: str) -> dict[Any, int]:
        """Count the labels of the training fold, in the order of their values."""
        documents = self._documents("train")
        unwind: list[dict[str, Any]] = [{"$unwind": f"${key}"}] if self.task.definition["loss"] == "bce" else []
        group: list[dict[str, Any]] = [{"$group": {"_id": f"${key}", "n": {"$sum": 1}}}]
        ordered: list[dict[str, Any]] = [{"$sort": {"_id": 1}}, {"$limit": _CLASSES + 1}]
        found = documents.aggregate([*unwind, *group, *ordered])
        counts = {self._codec.decode(each["_id"]): each["n"] for each in found}
        _check_classes(key, list(counts))
        self._counted = counts
        return counts


def task_name(task: Component) -> str:
    """Return how a version names the task that trained it."""
    return f"{task.kind} {task.id} of {task.collection}"


def _check_classes(key: str, classes: Iterable[Any]) -> None:
    found = list(classes)
    if not found:
        raise InvalidInputError(f"There is nothing to learn from: no document of the fold 'train' has {key!r}.")
    if len(found) == 1:
        raise InvalidInputError(f"There is nothing to tell apart: {key!r} is {found[0]!r:.80} in every document.")
    if len(found) > _CLASSES:
        raise InvalidInputError(f"{key!r} has more than {_CLASSES} classes. Is it a number? Then loss='mse'.")
