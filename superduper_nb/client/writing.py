"""The part of ``Collection`` that writes: as pymongo does, with the jobs that follow from it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pymongo.collection
from pymongo.typings import _DocumentType

from superduper_nb.client.filters import encoded_filter
from superduper_nb.client.jobs import Jobs
from superduper_nb.client.results import (
    BulkWriteResult,
    DeleteResult,
    InsertManyResult,
    InsertOneResult,
    UpdateResult,
    with_jobs,
)
from superduper_nb.client.writes import PlannedWrite, prepared, uncollected
from superduper_nb.errors import InvalidInputError

if TYPE_CHECKING:
    from superduper_nb.client.database import Database
    from superduper_nb.client.workspace import Workspace

__all__ = ["WritingCollection"]

R = TypeVar("R")


class WritingCollection(pymongo.collection.Collection[_DocumentType]):
    """A collection whose writes record jobs."""

    @property
    def _workspace(self) -> Workspace:
        return self._ours._workspace

    @property
    def _ours(self) -> Database[Any]:
        return cast("Database[Any]", self.database)

    def _ours_to_prepare(self, written: Any) -> bool:
        return self._workspace.takes(written, self.codec_options)

    # --- new documents ---------------------------------------------------------------------------------------------

    def insert_one(self, document: Any, *args: Any, **kwargs: Any) -> InsertOneResult:
        """Insert a document, as pymongo does; the result's ``jobs`` are those that follow."""
        session = _named("insert_one", args, kwargs).get("session")
        if not self._ours_to_prepare(document) or not isinstance(document, Mapping):  # else it is pymongo's to say
            return with_jobs(super().insert_one(document, *args, **kwargs), self._no_jobs(), InsertOneResult)
        (stored,), jobs = self._prepare([document], session)
        with self._following(jobs, session) as started:
            result = super().insert_one(stored, *args, **kwargs)
        return with_jobs(result, started(), InsertOneResult)

    def insert_many(self, documents: Any, *args: Any, **kwargs: Any) -> InsertManyResult:
        """Insert documents, as pymongo does; the result's ``jobs`` are those that follow."""
        if hasattr(documents, "to_dict"):  # pymongo would ask for its truth value
            raise InvalidInputError(
                "insert_many takes documents, not a data frame: give frame.to_dict('records') (pandas) or "
                "frame.to_dicts() (polars), or in a notebook write %sddb insert --from frame."
            )
        session = _named("insert_many", args, kwargs).get("session")
        first = documents[0] if isinstance(documents, (list, tuple)) and documents else None
        if not self._ours_to_prepare(first) or isinstance(documents, Mapping) or not hasattr(documents, "__iter__"):
            return with_jobs(super().insert_many(documents, *args, **kwargs), self._no_jobs(), InsertManyResult)
        given = list(documents)
        if not given or not all(type(document) is dict or isinstance(document, Mapping) for document in given):
            return with_jobs(super().insert_many(given, *args, **kwargs), self._no_jobs(), InsertManyResult)
        with uncollected(len(given)):
            stored, jobs = self._prepare(given, session)
        with self._following(jobs, session) as started, uncollected(len(given)):
            result = super().insert_many(stored, *args, **kwargs)
        return with_jobs(result, started(), InsertManyResult)

    def _prepare(self, documents: list[Any], session: Any) -> tuple[list[Any], dict[str, str]]:
        """Return what to store, and the jobs, which are recorded first: a crash after it leaves jobs, never gaps."""
        workspace = self._workspace
        made = prepared(workspace.codec_beside(self.codec_options), documents, workspace.client._valid_fraction)
        steps = workspace.upkeep(self.name).steps(None, made.content)
        if not steps:
            return made.documents, {}
        ids = [document["_id"] for document in made.documents]
        return made.documents, workspace.plan_write(self.name, steps, ids, made.fetching, session)

    # --- changes ---------------------------------------------------------------------------------------------------

    def update_one(self, filter: Any, update: Any, *args: Any, **kwargs: Any) -> UpdateResult:
        """Update a document, as pymongo does; the result's ``jobs`` are those that follow."""
        return self._changed(super().update_one, filter, update, args, kwargs)

    def update_many(self, filter: Any, update: Any, *args: Any, **kwargs: Any) -> UpdateResult:
        """Update documents, as pymongo does; the result's ``jobs`` are those that follow."""
        return self._changed(super().update_many, filter, update, args, kwargs)

    def replace_one(self, filter: Any, replacement: Any, *args: Any, **kwargs: Any) -> UpdateResult:
        """Replace a document, as pymongo does; it keeps its fold, and the result's ``jobs`` are those that follow."""
        return self._changed(super().replace_one, filter, replacement, args, kwargs)

    def _changed(
        self, method: Callable[..., Any], filter: Any, change: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> UpdateResult:
        if not self._ours_to_prepare(change):
            return with_jobs(method(filter, change, *args, **kwargs), self._no_jobs(), UpdateResult)
        filter = self._filter(filter)
        options = _named(method.__name__, args, kwargs)
        write = self._planned(options)
        change = _plan(write, method.__name__, filter, change, options)
        write.record()
        with self._following(write.jobs, options.get("session")) as started:
            result = method(filter, change, *args, **kwargs)
            if result.acknowledged and result.upserted_id is not None:
                write.inserted([result.upserted_id])
        return with_jobs(result, started(), UpdateResult)

    def find_one_and_update(self, filter: Any, update: Any, *args: Any, **kwargs: Any) -> Any:
        """Update one document and return it, as pymongo does; the jobs that follow are queued."""
        return self._modified(super().find_one_and_update, filter, update, args, kwargs)

    def find_one_and_replace(self, filter: Any, replacement: Any, *args: Any, **kwargs: Any) -> Any:
        """Replace one document and return it, as pymongo does; the jobs that follow are queued."""
        return self._modified(super().find_one_and_replace, filter, replacement, args, kwargs)

    def _modified(
        self, method: Callable[..., Any], filter: Any, change: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self._ours_to_prepare(change):
            return method(filter, change, *args, **kwargs)
        filter = self._filter(filter)
        options = _named(method.__name__, args, kwargs)
        write = self._planned(options)
        change = _plan(write, method.__name__, filter, change, options)
        if options.get("upsert"):
            change = write.name_upserted(filter, change)
        write.record()
        with self._following(write.jobs, options.get("session")):
            return self._decoded(method(filter, change, *args, **kwargs))

    def bulk_write(self, requests: Any, *args: Any, **kwargs: Any) -> BulkWriteResult:
        """Write in bulk, as pymongo does; the result's ``jobs`` are those that follow."""
        if not self._workspace.managed or not isinstance(requests, list):
            return with_jobs(super().bulk_write(requests, *args, **kwargs), self._no_jobs(), BulkWriteResult)
        options = _named("bulk_write", args, kwargs)
        write = self._planned(options)
        operations = write.operations(requests, options.get("let"))
        write.record()
        with self._following(write.jobs, options.get("session")) as started:
            result = super().bulk_write(operations, *args, **kwargs)
            if result.acknowledged:
                write.inserted((result.upserted_ids or {}).values())
        return with_jobs(result, started(), BulkWriteResult)

    # --- deletes ---------------------------------------------------------------------------------------------------

    def delete_one(self, filter: Any, *args: Any, **kwargs: Any) -> DeleteResult:
        """Delete a document, as pymongo does; indexes and neighbourhoods follow."""
        return self._deleted(super().delete_one, filter, args, kwargs)

    def delete_many(self, filter: Any, *args: Any, **kwargs: Any) -> DeleteResult:
        """Delete documents, as pymongo does; indexes and neighbourhoods follow."""
        return self._deleted(super().delete_many, filter, args, kwargs)

    def _deleted(
        self, method: Callable[..., Any], filter: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DeleteResult:
        session = _named(method.__name__, args, kwargs).get("session")
        with self._following(self._after_delete(session), session) as started:
            result = method(self._filter(filter), *args, **kwargs)
        return with_jobs(result, started(), DeleteResult)

    def find_one_and_delete(self, filter: Any, *args: Any, **kwargs: Any) -> Any:
        """Delete one document and return it, as pymongo does; indexes and neighbourhoods follow."""
        session = _named("find_one_and_delete", args, kwargs).get("session")
        with self._following(self._after_delete(session), session):
            return self._decoded(super().find_one_and_delete(self._filter(filter), *args, **kwargs))

    def _after_delete(self, session: Any) -> dict[str, str]:
        if not self._workspace.managed:
            return {}
        steps = self._workspace.upkeep(self.name).after_delete()
        return self._workspace.plan_write(self.name, steps, (), session=session) if steps else {}

    # --- what they share -------------------------------------------------------------------------------------------

    def _planned(self, options: Mapping[str, Any]) -> PlannedWrite:
        return PlannedWrite(self._workspace, self, options.get("session"))

    @contextmanager
    def _following(self, jobs: dict[str, str], session: Any = None) -> Iterator[Callable[[], Jobs]]:
        """Let recorded jobs begin when the write is over, also where it failed: some of it may be done."""
        try:
            yield lambda: Jobs(self._workspace, jobs)
        finally:
            if jobs:
                self._workspace.release(jobs.values(), session)
            self._workspace.mark()

    def _filter(self, filter: Any) -> Any:
        """Return a filter as MongoDB takes it."""
        workspace = self._workspace
        return encoded_filter(workspace.codec_beside(self.codec_options), filter) if workspace.managed else filter

    def _no_jobs(self) -> Jobs:
        return Jobs(self._workspace, {})

    def _decoded(self, document: Any) -> Any:
        read = self._workspace.reader(self.codec_options)
        return document if document is None or read is None else read([document])[0]


def _plan(write: PlannedWrite, name: str, filter: Any, change: Any, options: Mapping[str, Any]) -> Any:
    upsert = bool(options.get("upsert"))
    found_by = {option: options.get(option) for option in ("sort", "collation", "hint", "let")}
    if name.endswith(("replace_one", "and_replace")):
        return write.replace(filter, change, upsert=upsert, **found_by)
    return write.update(filter, change, upsert=upsert, many=name == "update_many", **found_by)


def _named(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a call by name, also those given by position."""
    return {**dict(zip(_options(method), args, strict=False)), **kwargs} if args else kwargs


@functools.cache
def _options(method: str) -> list[str]:
    names = list(inspect.signature(getattr(pymongo.collection.Collection, method)).parameters)
    first_option = 3 if "update" in method or "replace" in method else 2
    return names[first_option:]
