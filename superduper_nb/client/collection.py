"""``Collection``: pymongo's, which plans jobs as it is written to and finds by similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import pymongo.collection
from pymongo.typings import _DocumentType

from superduper_nb.client.cursor import Cursor, DecodingCommandCursor, split_like
from superduper_nb.client.jobs import JobList, Jobs
from superduper_nb.client.registry import Registry
from superduper_nb.client.results import (
    BulkWriteResult,
    DeleteResult,
    InsertManyResult,
    InsertOneResult,
    UpdateResult,
    with_jobs,
)
from superduper_nb.client.writes import PlannedWrite, prepared
from superduper_nb.components.store import check_identifier
from superduper_nb.documents.paths import check_path
from superduper_nb.errors import InvalidInputError
from superduper_nb.jobs.watchers import Watcher, plan
from superduper_nb.search.measures import BUILTIN
from superduper_nb.search.values import SearchReply, SearchRequest, check_n

if TYPE_CHECKING:
    from superduper_nb.client.database import Database
    from superduper_nb.client.workspace import Workspace

__all__ = ["Collection"]


class Collection(pymongo.collection.Collection[_DocumentType]):
    """A `pymongo.collection.Collection`.

    Attributes
    ----------
    watchers, semantic_indexes : Registry
        What is registered on this collection: mappings by name.
    models, types, measures : Registry
        What is registered in its database.
    jobs : JobList
        The jobs of this collection.
    """

    @property
    def _workspace(self) -> Workspace:
        return self._ours._workspace

    @property
    def _ours(self) -> Database[Any]:
        return cast("Database[Any]", self.database)

    # --- what is registered ----------------------------------------------------------------------------------------

    @property
    def watchers(self) -> Registry:
        """The watchers."""
        return Registry(self._workspace, "watcher", self.name)

    @property
    def semantic_indexes(self) -> Registry:
        """The semantic indexes."""
        return Registry(self._workspace, "semantic_index", self.name)

    @property
    def models(self) -> Registry:
        """The models of the database."""
        return self._ours.models

    @property
    def types(self) -> Registry:
        """The types of the database."""
        return self._ours.types

    @property
    def measures(self) -> Registry:
        """The measures of the database."""
        return self._ours.measures

    @property
    def jobs(self) -> JobList:
        """The recorded jobs of this collection, newest first."""
        return JobList(self._workspace, self.name)

    # --- registering -------------------------------------------------------------------------------------------------

    def create_model(self, id: str, obj: Any, **options: Any) -> Jobs:
        """Register a model in the database (see `Database.create_model`)."""
        return self._ours.create_model(id, obj, **options)

    def create_type(self, id: str, obj: Any) -> Jobs:
        """Register a type in the database (see `Database.create_type`)."""
        return self._ours.create_type(id, obj)

    def create_measure(self, id: str, obj: Callable[[Any, Any], Any]) -> Jobs:
        """Register a measure in the database (see `Database.create_measure`)."""
        return self._ours.create_measure(id, obj)

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
        check_path(key)
        for feature, upstream in (features or {}).items():
            check_path(feature)
            workspace.store.get("watcher", f"{upstream}/{feature}", collection=self.name)
        watcher = Watcher(self.name, model, key, dict(filter or {}), dict(features or {}), batch_size)
        others = [other for other in workspace.watchers(self.name) if other.id != watcher.id]
        plan([*others, watcher])  # raises where they read from each other in a circle
        _, new = workspace.store.put("watcher", watcher.id, watcher.definition(), collection=self.name)
        workspace.changed()
        return self._ours._started(workspace.backfill([watcher]) if new else {})

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
                f"models= and keys= are two lists of one length, such as ['m'] and ['text']; given {models!r} and {keys!r}."
            )
        for model, key in zip(models, keys, strict=True):
            workspace.store.get("model", model)
            check_path(key)
        if measure not in BUILTIN:
            workspace.store.get("measure", measure)
        watcher = f"{models[0]}/{keys[0]}"
        jobs = Jobs(workspace, {})
        if watcher not in self.watchers:
            jobs = self.create_watcher(models[0], keys[0], filter=filter)
        definition = {"models": list(models), "keys": list(keys), "measure": measure, "filter": dict(filter or {})}
        workspace.store.put("semantic_index", id, definition, collection=self.name)
        return jobs

    # --- finding -------------------------------------------------------------------------------------------------------

    def find(
        self,
        filter: Mapping[str, Any] | None = None,
        *args: Any,
        like: Mapping[str, Any] | None = None,
        n: int = 10,
        semantic_index: str | None = None,
        exact: bool = False,
        min_score: float | None = None,
        raw: bool = False,
        **kwargs: Any,
    ) -> Cursor[_DocumentType]:
        """Query the database, as `pymongo.collection.Collection.find`; with `like`, by similarity.

        Of the documents that match the filter and carry a current output, the `n` best by the index's measure, best first,
        ties by ``_id``; each has ``_score``, higher is better. Where k ≤ n match, exactly those k come back.

        Parameters
        ----------
        filter : mapping, optional
            As in pymongo; ``{"$like": …}`` at its top level is another way to give `like`.
        *args, **kwargs
            pymongo's: projection, skip, limit, sort, … They apply to the result of the search.
        like : mapping, optional
            Any key of the index with its value, a whole document, or ``{"_id": …}``.
        n : int, default 10
            How many; at most 10 000.
        semantic_index : str, optional
            Which; not needed where the collection has only one.
        exact : bool, default False
            Compare with every vector, whatever the index is.
        min_score : float, optional
            Leave out what scores less.
        raw : bool, default False
            Leave stored values as they are.
        """
        filter, in_filter = split_like(filter)
        if in_filter is not None and like is not None:
            raise InvalidInputError("Both like= and $like in the filter: give one of them.")
        cursor: Cursor[_DocumentType] = Cursor(self, filter, *args, **kwargs)
        if not raw:
            cursor._read = self._workspace.reader(self.codec_options.document_class)
        like = in_filter if like is None else like
        if like is not None:
            options = {"n": n, "semantic_index": semantic_index, "exact": exact, "min_score": min_score}
            _check_search(like, n)
            cursor._search = lambda spec: self._searched(like, spec, **options)
        return cursor

    def _searched(self, like: Mapping[str, Any], filter: Mapping[str, Any] | None, **options: Any) -> SearchReply:
        workspace = self._workspace
        what = {"id": like["_id"]} if set(like) == {"_id"} else {"like": workspace.codec.encode(dict(like))}
        request = SearchRequest(
            database=self.database.name,
            collection=self.name,
            filter=dict(filter) if filter else None,
            after=workspace.after,
            **what,
            **options,
        )
        return workspace.services.search(request)

    def aggregate(
        self, pipeline: Any, *args: Any, n: int = 10, semantic_index: str | None = None, **kwargs: Any
    ) -> Any:
        """Aggregate, as `pymongo.collection.Collection.aggregate`.

        A first stage ``{"$like": {…}}``, or one behind a first ``{"$match": {…}}``, searches: the stages behind it see the `n`
        nearest, best first, with ``_score``.
        """
        if isinstance(pipeline, (list, tuple)):
            pipeline = self._with_search(list(pipeline), n, semantic_index)
        if self._workspace.reader(self.codec_options.document_class) is None:
            return super().aggregate(pipeline, *args, **kwargs)
        return self._decoding_aggregate(pipeline, *args, **kwargs)

    def _decoding_aggregate(
        self, pipeline: Any, session: Any = None, let: Any = None, comment: Any = None, **kwargs: Any
    ) -> Any:
        from pymongo.synchronous.aggregation import _CollectionAggregationCommand

        with self.database.client._tmp_session(session) as opened:
            return self._aggregate(
                _CollectionAggregationCommand,
                pipeline,
                DecodingCommandCursor,
                session=opened,
                let=let,
                comment=comment,
                **kwargs,
            )

    def _with_search(self, pipeline: list[Any], n: int, semantic_index: str | None) -> list[Any]:
        at = next((i for i, stage in enumerate(pipeline) if isinstance(stage, Mapping) and "$like" in stage), None)
        if at is None:
            return pipeline
        if at > 1 or (at == 1 and set(pipeline[0]) != {"$match"}):
            raise InvalidInputError("$like is the first stage of a pipeline, or the second behind one $match.")
        like, filter = pipeline[at]["$like"], pipeline[0]["$match"] if at else None
        _check_search(like, n)
        reply = self._searched(like, filter, n=n, semantic_index=semantic_index)
        rank = {"$indexOfArray": [{"$literal": reply.ids}, "$_id"]}
        return [
            {"$match": {"_id": {"$in": reply.ids}}},
            {"$set": {"_sddb": rank, "_score": {"$arrayElemAt": [reply.scores, rank]}}},
            {"$sort": {"_sddb": 1}},
            {"$unset": "_sddb"},
            *pipeline[at + 1 :],
        ]

    def find_one_and_update(self, filter: Any, update: Any, *args: Any, **kwargs: Any) -> Any:
        """Update one document and return it, as pymongo does; the jobs that follow are queued."""
        return self._modify(super().find_one_and_update, filter, update, *args, **kwargs)

    def find_one_and_replace(self, filter: Any, replacement: Any, *args: Any, **kwargs: Any) -> Any:
        """Replace one document and return it, as pymongo does; the jobs that follow are queued."""
        return self._modify(super().find_one_and_replace, filter, replacement, *args, **kwargs)

    def find_one_and_delete(self, *args: Any, **kwargs: Any) -> Any:
        """Delete one document and return it, as pymongo does."""
        return self._decoded(super().find_one_and_delete(*args, **kwargs))

    def _modify(self, method: Callable[..., Any], filter: Any, change: Any, *args: Any, **kwargs: Any) -> Any:
        session, upsert = kwargs.get("session"), bool(kwargs.get("upsert"))
        if (write := self._planned(session)) is None:
            return method(filter, change, *args, **kwargs)
        planned = write.replace if method.__name__ == "find_one_and_replace" else write.update
        change = planned(filter, change, upsert=upsert, sort=kwargs.get("sort"))
        write.record()
        try:
            return self._decoded(method(filter, change, *args, **kwargs))
        finally:
            self._start(write.jobs, session)

    def _decoded(self, document: Any) -> Any:
        read = self._workspace.reader(self.codec_options.document_class)
        return document if document is None or read is None else read(document)

    # --- writing -------------------------------------------------------------------------------------------------------

    def insert_one(self, document: Any, *args: Any, **kwargs: Any) -> InsertOneResult:
        """Insert a document, as pymongo does; the result's ``jobs`` are those that follow."""
        session = kwargs.get("session")
        stored, jobs = self._prepare([document], session)
        try:
            result = super().insert_one(stored[0], *args, **kwargs)
        finally:
            started = self._start(jobs, session)
        return with_jobs(result, started)  # type: ignore[no-any-return]

    def insert_many(self, documents: Any, *args: Any, **kwargs: Any) -> InsertManyResult:
        """Insert documents, as pymongo does; the result's ``jobs`` are those that follow."""
        if (
            not isinstance(documents, (list, tuple))
            and hasattr(documents, "__iter__")
            and not isinstance(documents, Mapping)
        ):
            documents = list(documents)
        session = kwargs.get("session")
        stored, jobs = self._prepare(documents, session)
        try:
            result = super().insert_many(stored, *args, **kwargs)
        finally:
            started = self._start(jobs, session)
        return with_jobs(result, started)  # type: ignore[no-any-return]

    def _prepare(self, documents: Any, session: Any) -> tuple[Any, dict[str, str]]:
        """Return what to store, and the jobs, which are recorded first: a crash after it leaves jobs, never gaps."""
        workspace = self._workspace
        mappings = isinstance(documents, (list, tuple)) and documents and all(isinstance(d, Mapping) for d in documents)
        if not workspace.managed or not mappings:  # what is wrong with the documents is pymongo's to say
            return documents, {}
        stored = prepared(workspace, documents, workspace.client._valid_fraction)
        return stored, workspace.plan_ids(self.name, [document["_id"] for document in stored], session=session)

    def _start(self, jobs: dict[str, str], session: Any = None) -> Jobs:
        if jobs and not (session is not None and session.in_transaction):
            self._workspace.services.notify(self.database.name, list(jobs.values()))
        self._workspace.mark()
        return Jobs(self._workspace, jobs)

    def update_one(self, filter: Any, update: Any, *args: Any, **kwargs: Any) -> UpdateResult:
        """Update a document, as pymongo does; the result's ``jobs`` are those that follow."""
        return self._changed(super().update_one, filter, update, *args, **kwargs)

    def update_many(self, filter: Any, update: Any, *args: Any, **kwargs: Any) -> UpdateResult:
        """Update documents, as pymongo does; the result's ``jobs`` are those that follow."""
        return self._changed(super().update_many, filter, update, *args, **kwargs)

    def replace_one(self, filter: Any, replacement: Any, *args: Any, **kwargs: Any) -> UpdateResult:
        """Replace a document, as pymongo does; it keeps its fold, and the result's ``jobs`` are those that follow."""
        return self._changed(super().replace_one, filter, replacement, *args, **kwargs)

    def _changed(self, method: Callable[..., Any], filter: Any, change: Any, *args: Any, **kwargs: Any) -> UpdateResult:
        session = kwargs.get("session")
        upsert = bool(args[0] if args else kwargs.get("upsert"))
        if (write := self._planned(session)) is None:
            return with_jobs(method(filter, change, *args, **kwargs), Jobs(self._workspace, {}))  # type: ignore[no-any-return]
        if method.__name__ == "replace_one":
            change = write.replace(filter, change, upsert=upsert, sort=kwargs.get("sort"))
        else:
            many = method.__name__ == "update_many"
            change = write.update(filter, change, upsert=upsert, many=many, sort=kwargs.get("sort"))
        write.record()
        try:
            result = method(filter, change, *args, **kwargs)
            if result.acknowledged and result.upserted_id is not None:
                write.inserted([result.upserted_id])
        finally:
            started = self._start(write.jobs, session)
        return with_jobs(result, started)  # type: ignore[no-any-return]

    def bulk_write(self, requests: Any, *args: Any, **kwargs: Any) -> BulkWriteResult:
        """Write in bulk, as pymongo does; the result's ``jobs`` are those that follow."""
        session = kwargs.get("session")
        write = self._planned(session)
        if write is None or not isinstance(requests, list):
            result = super().bulk_write(requests, *args, **kwargs)
            return with_jobs(result, Jobs(self._workspace, {}))  # type: ignore[no-any-return]
        operations = [write.operation(request) for request in requests]
        write.record()
        try:
            result = super().bulk_write(operations, *args, **kwargs)
            if result.acknowledged:
                write.inserted((result.upserted_ids or {}).values())
        finally:
            started = self._start(write.jobs, session)
        return with_jobs(result, started)  # type: ignore[no-any-return]

    def delete_one(self, *args: Any, **kwargs: Any) -> DeleteResult:
        """Delete a document, as pymongo does; indexes follow."""
        return with_jobs(super().delete_one(*args, **kwargs), self._start({}))  # type: ignore[no-any-return]

    def delete_many(self, *args: Any, **kwargs: Any) -> DeleteResult:
        """Delete documents, as pymongo does; indexes follow."""
        return with_jobs(super().delete_many(*args, **kwargs), self._start({}))  # type: ignore[no-any-return]

    def _planned(self, session: Any) -> PlannedWrite | None:
        return PlannedWrite(self._workspace, self.name, session) if self._workspace.managed else None

    # --- other -----------------------------------------------------------------------------------------------------------

    def predict(self, model: str, x: Any, *, version: int | None = None) -> Any:
        """Apply a registered model to one input (see `Database.predict`)."""
        return self._ours.predict(model, x, version=version)

    def predict_many(self, model: str, xs: Sequence[Any], *, version: int | None = None) -> list[Any]:
        """Apply a registered model to many inputs (see `Database.predict_many`)."""
        return self._ours.predict_many(model, xs, version=version)

    def watch_job(self, id: str) -> None:
        """Print what a job says until it ends."""
        self._ours.watch_job(id)

    def __getitem__(self, name: str) -> Collection[_DocumentType]:
        return self.database.get_collection(  # type: ignore[return-value]
            f"{self.name}.{name}", self.codec_options, self.read_preference, self.write_concern, self.read_concern
        )

    def with_options(self, *args: Any, **kwargs: Any) -> Collection[Any]:  # noqa: D102
        made = super().with_options(*args, **kwargs)
        return self.database.get_collection(  # type: ignore[return-value]
            self.name, made.codec_options, made.read_preference, made.write_concern, made.read_concern
        )


def _check_search(like: Any, n: int) -> None:
    if not isinstance(like, Mapping) or not like:
        raise InvalidInputError(
            f"like= is a document with a key of the index, such as {{'text': 'warm'}}; given {like!r:.80}."
        )
    check_n(n)
