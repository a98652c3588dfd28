"""``Collection``: pymongo's, which plans jobs as it is written to and finds by similarity."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, NoReturn

from pymongo.typings import _DocumentType

from superduper_nb.client.database import Database
from superduper_nb.client.jobs import JobList
from superduper_nb.client.registered import Registered, passed_on
from superduper_nb.client.registering import RegisteringCollection

__all__ = ["Collection"]


class Collection(RegisteringCollection[_DocumentType]):
    """A `pymongo.collection.Collection`.

    Attributes
    ----------
    watchers, semantic_indexes, imputations, learning_tasks, neighbourhoods, validation_sets : Registry
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
    learning_tasks = Registered("learning_task", "The learning tasks.", of_collection=True)
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

    # --- other --------------------------------------------------------------------------------------------------------

    predict = passed_on(Database.predict)
    predict_many = passed_on(Database.predict_many)
    predict_stream = passed_on(Database.predict_stream)
    apredict = passed_on(Database.apredict)
    apredict_many = passed_on(Database.apredict_many)
    apredict_stream = passed_on(Database.apredict_stream)
    load_model = passed_on(Database.load_model)
    unload_model = passed_on(Database.unload_model)
    watch_job = passed_on(Database.watch_job)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Say, as pymongo does, that there is no such method; with the name that may have been meant."""
        _, _, name = self.name.rpartition(".")
        if close := get_close_matches(name, [each for each in dir(type(self)) if not each.startswith("_")], n=1):
            meant = f"there is no method {name!r}. Did you mean {close[0]!r}?"
            raise TypeError(f"'{type(self).__name__}' object is not callable: {meant}")
        super().__call__(*args, **kwargs)

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
