"""What a write needs beside itself: encoded documents, folds, and the identifiers of what it will change."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteMany, DeleteOne, InsertOne, ReplaceOne, UpdateMany, UpdateOne

from superduper_nb.client.folds import folds

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from superduper_nb.client.workspace import Workspace

__all__ = ["PlannedWrite", "changed_paths", "prepared"]


def prepared(workspace: Workspace, documents: Sequence[Any], valid_fraction: float) -> list[Any]:
    """Return copies of documents as they are to be stored; the originals get an ``_id``, as pymongo gives them."""
    drawn = folds(len(documents), valid_fraction)
    encode = workspace.codec.encode
    stored: list[Any] = []
    for document, fold in zip(documents, drawn, strict=True):
        if isinstance(document, RawBSONDocument):
            stored.append(document)
            continue
        if "_id" not in document:
            document["_id"] = ObjectId()
        encoded = encode(document)
        stored.append(encoded if "_fold" in encoded else {**encoded, "_fold": fold})
    return stored


def changed_paths(update: Any) -> set[str] | None:
    """Return the paths that an update names; None for a replacement or a pipeline, which may change everything."""
    if not isinstance(update, Mapping):
        return None
    paths: set[str] = set()
    for operator, fields in update.items():
        if not operator.startswith("$") or not isinstance(fields, Mapping):
            return None
        paths |= set(map(str, fields))
        if operator == "$rename":
            paths |= set(map(str, fields.values()))
    return set(_without_positions(paths))


def _without_positions(paths: Iterable[str]) -> Iterable[str]:
    """Cut paths at a positional operator: what lies behind it may be in any element."""
    for path in paths:
        yield path.partition(".$")[0]


class PlannedWrite:
    """A change of documents that are named by a filter.

    The identifiers are looked up, and the jobs recorded, before the change is made: a crash in between leaves jobs that
    find nothing to do, never outputs that stay out of date.

    Parameters
    ----------
    workspace : Workspace
        Of the database.
    collection : str
        Which collection.
    session : ClientSession, optional
        All is done as part of it.
    """

    def __init__(self, workspace: Workspace, collection: str, session: ClientSession | None = None) -> None:
        self._workspace, self._collection, self._session = workspace, collection, session
        self._ids: list[Any] = []
        self._changed: set[str] | None = set()
        self.jobs: dict[str, str] = {}

    def update(self, filter: Any, update: Any, *, upsert: bool = False, many: bool = False, sort: Any = None) -> Any:
        """Take part of an update; return it as it is to be sent."""
        encoded = self._workspace.codec.encode(update)
        found = self._find(filter, many=many, sort=sort)
        self._add([document["_id"] for document in found], changed_paths(update))
        if upsert and not found and isinstance(encoded, Mapping) and not _sets_fold(encoded):
            return {**encoded, "$setOnInsert": {**encoded.get("$setOnInsert", {}), "_fold": self._draw()}}
        return encoded

    def replace(self, filter: Any, replacement: Any, *, upsert: bool = False, sort: Any = None) -> Any:
        """Take part of a replacement; return it as it is to be sent, with the fold of what it replaces."""
        encoded = self._workspace.codec.encode(replacement)
        found = self._find(filter, sort=sort)
        self._add([document["_id"] for document in found], None)
        if isinstance(encoded, RawBSONDocument) or "_fold" in encoded or not (found or upsert):
            return encoded
        fold = found[0].get("_fold") if found else None
        return {**encoded, "_fold": fold or self._draw()}

    def operation(self, operation: Any) -> Any:
        """Take part of one operation of a bulk write; return it as it is to be sent."""
        ours = copy(operation)
        if isinstance(operation, InsertOne):
            (ours._doc,) = prepared(self._workspace, [operation._doc], self._workspace.client._valid_fraction)
            self._add([operation._doc["_id"]], None)
        elif isinstance(operation, ReplaceOne):
            ours._doc = self.replace(operation._filter, operation._doc, upsert=bool(operation._upsert))
        elif isinstance(operation, (UpdateOne, UpdateMany)):
            many = isinstance(operation, UpdateMany)
            ours._doc = self.update(operation._filter, operation._doc, upsert=bool(operation._upsert), many=many)
        elif not isinstance(operation, (DeleteOne, DeleteMany)):
            return operation  # what it is, pymongo says
        return ours

    def record(self) -> None:
        """Record the jobs that follow."""
        self._plan(self._ids, self._changed)

    def inserted(self, ids: Iterable[Any]) -> None:
        """Record the jobs for documents that an upsert made."""
        self._plan(list(ids), None)

    def _plan(self, ids: list[Any], changed: set[str] | None) -> None:
        planned = self._workspace.plan_ids(self._collection, ids, changed, self._session)
        self.jobs |= {name if name not in self.jobs else f"{name} (inserted)": job for name, job in planned.items()}

    def _add(self, ids: Iterable[Any], changed: set[str] | None) -> None:
        self._ids += ids
        self._changed = None if changed is None or self._changed is None else self._changed | changed

    def _find(self, filter: Any, *, many: bool = False, sort: Any = None) -> list[dict[str, Any]]:
        if not isinstance(filter, Mapping):
            return []  # pymongo says what is wrong with it
        documents = self._workspace.store.database[self._collection]
        found = documents.find(filter, {"_id": 1, "_fold": 1}, sort=sort, session=self._session)
        return list(found if many else found.limit(1))

    def _draw(self) -> str:
        return "valid" if random.random() < self._workspace.client._valid_fraction else "train"


def _sets_fold(update: Mapping[str, Any]) -> bool:
    return any("_fold" in fields for fields in update.values() if isinstance(fields, Mapping))
