"""``Collection``: pymongo's, which plans jobs as it is written to and finds by similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pymongo.errors import OperationFailure
from pymongo.typings import _DocumentType

from superduper_nb.client.database import Database
from superduper_nb.client.finding import FindingCollection
from superduper_nb.client.jobs import JobList, Jobs
from superduper_nb.client.registered import Registered, passed_on
from superduper_nb.components.store import check_identifier
from superduper_nb.documents.paths import OUTPUTS, check_path
from superduper_nb.errors import InvalidInputError
from superduper_nb.jobs.watchers import Watcher, overlap, plan
from superduper_nb.search.measures import BUILTIN

__all__ = ["Collection"]

_PRIVATE: Final = (OUTPUTS, "_sddb")


class Collection(FindingCollection[_DocumentType]):
    """A `pymongo.collection.Collection`.

    Attributes
    ----------
    watchers, semantic_indexes, imputations, neighbourhoods, validation_sets : Registry
        What is registered on this collection: mappings by name.
    models, types, measures, losses, metrics, splitters, functions, trainers : Registry
        What is registered in its database.
    jobs : JobList
        The jobs of this collection.
    """

    # --- what is registered ----------------------------------------------------------------------------------------

    watchers = Registered("watcher", "The watchers.", of_collection=True)
    semantic_indexes = Registered("semantic_index", "The semantic indexes.", of_collection=True)
    imputations = Registered("imputation", "The imputations.", of_collection=True)
    neighbourhoods = Registered("neighbourhood", "The neighbourhoods.", of_collection=True)
    validation_sets = Registered("validation_set", "The validation sets.", of_collection=True)

    models = Registered("model", "The models of the database.")
    types = Registered("type", "The types of the database.")
    measures = Registered("measure", "The measures of the database.")
    losses = Registered("loss", "The losses of the database.")
    metrics = Registered("metric", "The metrics of the database.")
    splitters = Registered("splitter", "The splitters of the database.")
    functions = Registered("function", "The functions of the database.")
    trainers = Registered("trainer", "The trainers of the database.")

    @property
    def jobs(self) -> JobList:
        """The recorded jobs of this collection, newest first."""
        return JobList(self._workspace, self.name)

    # --- registering -------------------------------------------------------------------------------------------------

    create_model = passed_on(Database.create_model)
    create_type = passed_on(Database.create_type)
    create_measure = passed_on(Database.create_measure)
    create_loss = passed_on(Database.create_loss)
    create_metric = passed_on(Database.create_metric)
    create_splitter = passed_on(Database.create_splitter)
    create_function = passed_on(Database.create_function)
    create_trainer = passed_on(Database.create_trainer)

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
            The one that computes the outputs of the documents that are there.
        """
        workspace = self._workspace
        workspace.store.get("model", model)
        _check_key(key)
        for feature, upstream in (features or {}).items():
            _check_key(feature)
            workspace.store.get("watcher", f"{upstream}/{feature}", collection=self.name)
        if batch_size is not None and batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size!r}: it must be at least 1.")
        watcher = Watcher(self.name, model, key, self._checked(filter), dict(features or {}), batch_size)
        others = [other for other in workspace.watchers(self.name) if other.id != watcher.id]
        _check_outputs(watcher, others)
        plan([*others, watcher])  # raises where they read from each other in a circle
        _, new = workspace.store.put("watcher", watcher.id, watcher.definition(), collection=self.name)
        workspace.changed()
        return workspace.started(workspace.backfill([watcher]) if new else {})

    def _checked(self, filter: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a filter as it is to be registered, if MongoDB takes it."""
        try:
            encoded: dict[str, Any] = dict(self._workspace.codec.encode(dict(filter or {})))
            self._workspace.store.database[self.name].find_one(encoded, {"_id": 1})
        except (OperationFailure, TypeError, ValueError) as error:
            raise InvalidInputError(f"MongoDB refuses filter={filter!r:.80}: {error}") from None
        return encoded

    def create_semantic_index(
        self,
        id: str,
        models: Sequence[str],
        keys: Sequence[str],
        measure: str = "cosine",
        *,
        filter: Mapping[str, Any] | None = None,
    ) -> Jobs:
        """Make documents findable by what the first model makes of the first key.

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

        Returns
        -------
        Jobs
            Those that compute the vectors that are missing.
        """
        check_identifier("A semantic index", id)
        workspace = self._workspace
        if isinstance(models, str) or isinstance(keys, str) or not models or len(models) != len(keys):
            raise InvalidInputError(
                f"models= and keys= are lists of one length, such as ['m'] and ['text']; given {models!r}, {keys!r}."
            )
        for model, key in zip(models, keys, strict=True):
            workspace.store.get("model", model)
            _check_key(key)
        if measure not in BUILTIN:
            workspace.store.get("measure", measure)
        watcher = f"{models[0]}/{keys[0]}"
        jobs = Jobs(workspace, {})
        if watcher not in self.watchers:
            jobs = self.create_watcher(models[0], keys[0], filter=filter)
        definition = {"models": list(models), "keys": list(keys), "measure": measure, "filter": self._checked(filter)}
        workspace.store.put("semantic_index", id, definition, collection=self.name)
        workspace.services.describe_index(self.database.name, self.name, id)  # loaded before the first search comes
        return jobs

    # --- other --------------------------------------------------------------------------------------------------------

    predict = passed_on(Database.predict)
    predict_many = passed_on(Database.predict_many)
    watch_job = passed_on(Database.watch_job)

    def __getitem__(self, name: str) -> Collection[_DocumentType]:
        return self.database.get_collection(  # type: ignore[return-value]
            f"{self.name}.{name}", self.codec_options, self.read_preference, self.write_concern, self.read_concern
        )

    def with_options(self, *args: Any, **kwargs: Any) -> Collection[Any]:
        """Return the same collection with other options, as pymongo does; of our class."""
        made = super().with_options(*args, **kwargs)
        return self.database.get_collection(  # type: ignore[return-value]
            self.name, made.codec_options, made.read_preference, made.write_concern, made.read_concern
        )


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
