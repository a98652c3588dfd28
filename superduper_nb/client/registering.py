"""The part of ``Collection`` that registers what is kept up to date and what is trained on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pymongo.typings import _DocumentType

from superduper_nb.client.deriving import DerivingCollection
from superduper_nb.client.jobs import Jobs
from superduper_nb.client.learning import check_training, check_validation_sets, target_kind, train, trained_as
from superduper_nb.components.store import check_identifier
from superduper_nb.documents.content import pending_content
from superduper_nb.documents.paths import BASE, OUTPUTS, check_path
from superduper_nb.errors import InvalidInputError, NotFoundError, did_you_mean
from superduper_nb.jobs.watchers import Watcher, overlap, plan
from superduper_nb.models.apply import check_batch_size
from superduper_nb.search.measures import BUILTIN
from superduper_nb.search.options import IndexOptions
from superduper_nb.training import Training

if TYPE_CHECKING:
    from superduper_nb.client.workspace import Workspace

__all__ = ["RegisteringCollection"]

log = logging.getLogger(__name__)

_PRIVATE: Final = (OUTPUTS, "_sddb")
_SAMPLE: Final = 1000
"""So many documents are looked at for a key that is watched."""


class RegisteringCollection(DerivingCollection[_DocumentType]):
    """A collection on which watchers, semantic indexes and tasks that train can be registered."""

    def create_watcher(
        self,
        model: str,
        key: str,
        *,
        filter: Mapping[str, Any] | None = None,
        features: Mapping[str, str] | None = None,
        batch_size: int | None = None,
    ) -> Jobs:
        """Keep a model's outputs on a key of every document up to date from now on.

        Parameters
        ----------
        model : str
            A registered model.
        key : str
            What it is applied to: a field, ``"a.b"`` for a nested one, ``"_base"`` for the whole document.
        filter : mapping, optional
            Only documents that match it.
        features : mapping of str to str, optional
            ``{key: model}``: the output of that model on that key in the place of the raw value.
        batch_size : int, optional
            Inputs a batch; default: the model's.

        Returns
        -------
        Jobs
            The one that computes the outputs of the documents that are there; registered again, the one under way.
        """
        self._workspace.store.get("model", model)
        check_batch_size(batch_size)
        watcher = Watcher(self.name, model, key, self._checked(filter), dict(features or {}), batch_size)
        jobs = self._watch(watcher)
        self._warn_of_absence(watcher)
        return jobs

    def _warn_of_absence(self, watcher: Watcher) -> None:
        """Say that no document has the watched key: it may be a slip of the pen, and nothing would ever fail."""
        if watcher.key == BASE or watcher.key in watcher.features:
            return
        documents = self._workspace.store.database[self.name]
        first = [each["_id"] for each in documents.find(watcher.filter, {"_id": 1}).limit(_SAMPLE)]
        if first and not documents.find_one({"_id": {"$in": first}, watcher.key: {"$exists": True}}, {"_id": 1}):
            fields = (documents.find_one({"_id": first[0]}) or {}).keys() - {"_id", "_fold", *_PRIVATE}
            hint = did_you_mean(watcher.key, fields)
            log.warning("%s: %d documents were looked at, and none has the key.%s", watcher.id, len(first), hint)

    def _watch(self, watcher: Watcher, *, compute: bool = True) -> Jobs:
        """Register a watcher; compute its outputs at once, unless that is for later."""
        workspace = self._workspace
        self._check_watcher(watcher)
        _, new = workspace.store.put("watcher", watcher.id, watcher.definition(), collection=self.name)
        workspace.changed()
        if not (new and compute):  # a cell that is run again waits for what is under way
            return Jobs(workspace, workspace.underway([watcher]) if compute else {})
        fetch = workspace.fetch(self.name, pending_content(watcher.key)) if watcher.key != BASE else {}
        return workspace.started({**fetch, **workspace.backfill([watcher], list(fetch.values()))})

    def _check_watcher(self, watcher: Watcher) -> None:
        """Raise where a watcher can't be registered beside those that are."""
        workspace = self._workspace
        _check_key(watcher.key)
        for feature, upstream in watcher.features.items():
            _check_key(feature)
            workspace.store.get("watcher", f"{upstream}/{feature}", collection=self.name)
        others = [other for other in workspace.upkeep(self.name).watchers if other.id != watcher.id]
        _check_outputs(watcher, others)
        plan([*others, watcher])  # raises where they read from each other in a circle

    def create_semantic_index(
        self,
        id: str,
        models: Sequence[str],
        keys: Sequence[str],
        measure: str = "cosine",
        *,
        filter: Mapping[str, Any] | None = None,
        features: Mapping[str, str] | None = None,
        index: IndexOptions | None = None,
        loss: str | None = None,
        metrics: Sequence[str] = (),
        splitter: str | None = None,
        validation_sets: Sequence[str] = (),
        training: Training | None = None,
    ) -> Jobs:
        """Make documents findable by what the first model makes of the first key; with `loss`, train the models first.

        Parameters
        ----------
        id : str
            Its name.
        models, keys : sequences of str, of one length
            The first pair gives the vectors of the documents (its watcher is made where there is none); each pair can
            encode a query: ``like`` is encoded by the first model whose key it has.
        measure : str, default "cosine"
            ``"cosine"``, ``"dot"``, ``"l2"`` or a registered one.
        filter : mapping, optional
            Only documents that match it.
        features : mapping of str to str, optional
            ``{key: model}``: the output of that model on that key in the place of the raw value, in documents, queries
            and training alike; default: those of the first pair's watcher, where there is one.
        index : IndexOptions, optional
            How it is kept and searched: ``sd.IndexOptions(kind="scan", compact=True)``; default: chosen by its size.
        loss : str, optional
            ``(queries, documents) -> tensor`` over a batch: ``"info_nce"``, ``"triplet"``, ``"cosine"`` or a registered
            one. The last pair encodes queries, the first documents: two keys, two models, or one model on both.
        metrics : sequence of str
            ``"recall@k"``, ``"mrr"``, ``"ndcg@k"``, or registered ones: ``(found places, right place) -> float``.
        splitter : str, optional
            A registered one, ``document -> (query part, document part)``: for a single pair, whose model takes both.
        validation_sets : sequence of str
            Frozen sets (`create_validation_set`) to measure it on, beside the fold ``"valid"``:
            ``"<set>.<metric>"`` in its history, and for ``Training(monitor=)``.
        training : Training, optional
            How to train.

        Returns
        -------
        Jobs
            Those that train, and that compute the vectors that are missing.
        """
        check_identifier("A semantic index", id)
        workspace = self._workspace
        _check_pairs(workspace, models, keys)
        _check_measure(workspace, measure)
        read = self._read_by(f"{models[0]}/{keys[0]}", features)
        definition: dict[str, Any] = {
            "models": list(models),
            "keys": list(keys),
            "measure": measure,
            "filter": self._checked(filter),
            **({"features": read} if read else {}),
            **_kept_as(index, measure),
        }
        code: dict[str, Any] = {}
        if loss is not None:
            _check_sides(workspace, models, splitter)
            training = check_training(workspace, "semantic_index", loss=loss, metrics=metrics, training=training)
            sets = check_validation_sets(workspace, self.name, validation_sets, read)
            definition |= {"splitter": splitter, **trained_as(loss, metrics, sets, training)}
            code = training.code()
        elif training is not None or metrics or splitter or validation_sets:
            raise InvalidInputError("training=, metrics=, splitter= and validation_sets= need a loss= to train with.")
        jobs = self._watched(Watcher(self.name, models[0], keys[0], definition["filter"], read), compute=loss is None)
        made, new = workspace.store.put("semantic_index", id, definition, collection=self.name, obj=code or None)
        workspace.changed()
        if loss is not None:
            jobs = train(workspace, made)
        if new and made.version > 1 and (near := workspace.upkeep(self.name).upon(id)):
            jobs = workspace.started(
                {**{name: job.id for name, job in jobs.items()}, **workspace.revise(self.name, near)}
            )
        workspace.services.describe_index(self.database.name, self.name, id)  # loaded before the first search comes
        return jobs

    def _watched(self, watcher: Watcher, *, compute: bool) -> Jobs:
        """Register the watcher of an index, unless there is one; return the jobs that compute its outputs."""
        there = self._workspace.store.find("watcher", watcher.id, collection=self.name)
        if there is None:
            return self._watch(watcher, compute=compute)
        return Jobs(self._workspace, self._workspace.underway([Watcher.from_component(there)]))

    def _read_by(self, watcher: str, features: Mapping[str, str] | None) -> dict[str, str]:
        """Return what the watcher of an index reads in the place of raw values; it and the index read the same."""
        made = self._workspace.store.find("watcher", watcher, collection=self.name)
        if made is None:
            return dict(features or {})
        there = dict(made.definition["features"])
        if features is not None and dict(features) != there:
            raise InvalidInputError(f"features={dict(features)}: the watcher {watcher!r} was created with {there}.")
        return there

    def create_imputation(
        self,
        id: str,
        model: str,
        model_key: str,
        target: str | None,
        target_key: str,
        *,
        loss: str | None = None,
        metrics: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,
        features: Mapping[str, str] | None = None,
        validation_sets: Sequence[str] = (),
        training: Training | None = None,
    ) -> Jobs:
        """Train a model to predict one part of a document from another, and fill it in wherever it is missing.

        Parameters
        ----------
        id : str
            Its name.
        model, model_key : str
            A registered model, and what it predicts from.
        target : str or None
            A registered function or model that makes the target; None: the value itself.
        target_key : str
            Where the target is; documents without it are not learnt from.
        loss : str, optional
            ``(outputs, targets) -> tensor``: ``"cross_entropy"``, ``"bce"``, ``"mse"`` or a registered one; not for a
            scikit-learn estimator.
        metrics : sequence of str
            ``"accuracy"``, ``"f1"``, ``"mse"``, ``"mae"``, or registered ones: ``(outputs, targets) -> float``.
        filter : mapping, optional
            Only documents that match it.
        features : mapping of str to str, optional
            ``{key: model}``: the output of that model on that key in the place of the raw value.
        validation_sets : sequence of str
            Frozen sets (`create_validation_set`) to measure it on, beside the fold ``"valid"``:
            ``"<set>.<metric>"`` in its history, and for ``Training(monitor=)``.
        training : Training, optional
            How to train.

        Returns
        -------
        Jobs
            The one that trains, and those that compute with the trained model: ``_outputs.<model_key>.<model>`` is the
            label (of several: their list) or the number, unless the model has a ``postprocess`` of its own.
        """
        check_identifier("An imputation", id)
        workspace = self._workspace
        workspace.store.get("model", model)
        _check_key(target_key)
        training = check_training(workspace, "imputation", loss=loss, metrics=metrics, training=training)
        sets = check_validation_sets(workspace, self.name, validation_sets, features)
        watcher = Watcher(self.name, model, model_key, self._checked(filter), dict(features or {}))
        self._check_watcher(watcher)
        definition = {
            "model": model,
            "model_key": model_key,
            "target": target,
            "target_kind": target_kind(workspace, target),
            "target_key": target_key,
            "filter": watcher.filter,
            "features": watcher.features,
            **trained_as(loss, metrics, sets, training),
        }
        task, _ = workspace.store.put("imputation", id, definition, collection=self.name, obj=training.code() or None)
        workspace.changed()
        return train(workspace, task)

    def create_learning_task(
        self,
        id: str,
        trainer: str,
        models: Sequence[str],
        keys: Sequence[str],
        *,
        loss: str | None = None,
        metrics: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,
        features: Mapping[str, str] | None = None,
        validation_sets: Sequence[str] = (),
        training: Training | None = None,
        **options: Any,
    ) -> Jobs:
        """Train models in a way of your own.

        Parameters
        ----------
        id : str
            Its name.
        trainer : str
            A registered `superduper_nb.Trainer` class.
        models, keys : sequences of str, of one length
            Registered models, and what each is applied to.
        loss, metrics, filter, features, validation_sets, training
            As in `create_imputation`; the trainer finds the first two as its attributes.
        **options
            The trainer's ``options``: plain data.

        Returns
        -------
        Jobs
            The one that trains, and those that recompute what depends on the models.
        """
        check_identifier("A learning task", id)
        workspace = self._workspace
        workspace.store.get("trainer", trainer)
        _check_pairs(workspace, models, keys)
        training = check_training(workspace, "learning_task", loss=loss, metrics=metrics, training=training)
        sets = check_validation_sets(workspace, self.name, validation_sets, features)
        definition = {
            "trainer": trainer,
            "models": list(models),
            "keys": list(keys),
            "filter": self._checked(filter),
            "features": dict(features or {}),
            "options": options,
            **trained_as(loss, metrics, sets, training),
        }
        task, _ = workspace.store.put(
            "learning_task", id, definition, collection=self.name, obj=training.code() or None
        )
        workspace.changed()
        return train(workspace, task)


def _check_sides(workspace: Workspace, models: Sequence[str], splitter: str | None) -> None:
    """Raise unless what is trained has two sides to bring together."""
    if splitter is not None:
        workspace.store.get("splitter", splitter)
    elif len(models) == 1:
        raise InvalidInputError("Training needs two sides: a second model and key, or a splitter=.")


def _kept_as(index: IndexOptions | None, measure: str) -> dict[str, Any]:
    """Return what a definition says of an index's options: nothing where they are the default."""
    if index is None:
        return {}
    if not isinstance(index, IndexOptions):
        raise InvalidInputError(f"index={index!r:.80}: give sd.IndexOptions(...).")
    index.check_measure(measure)
    index.check_here()
    return {"index": given} if (given := index.definition()) else {}


def _check_measure(workspace: Workspace, measure: str) -> None:
    if measure not in BUILTIN and workspace.store.find("measure", measure) is None:
        known = did_you_mean(measure, [*BUILTIN, *workspace.store.ids("measure")])
        raise NotFoundError(f"No measure {measure!r} in {workspace.name}.{known}")


def _check_pairs(workspace: Workspace, models: Sequence[str], keys: Sequence[str]) -> None:
    if isinstance(models, str) or isinstance(keys, str) or not models or len(models) != len(keys):
        raise InvalidInputError(
            f"models= and keys= are lists of one length, such as ['m'] and ['text']; given {models!r}, {keys!r}."
        )
    for model, key in zip(models, keys, strict=True):
        workspace.store.get("model", model)
        _check_key(key)


def _check_key(key: str) -> None:
    if check_path(key).partition(".")[0] in _PRIVATE:
        raise InvalidInputError(f"{key!r} is the package's own field. To read an output: features={{key: model}}.")


def _check_outputs(watcher: Watcher, others: Sequence[Watcher]) -> None:
    """Raise where one watcher's outputs would lie inside another's."""
    for other in others:
        if overlap(watcher.output_path, other.output_path):
            raise InvalidInputError(
                f"The outputs of {watcher.id!r} and {other.id!r} would lie inside each other ({watcher.output_path}, "
                f"{other.output_path}). Give the model another name."
            )
