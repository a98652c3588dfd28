"""What a write needs beside itself: encoded documents, folds, and the identifiers of what it will change."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pymongo.collection
from bson import ObjectId, Regex
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteMany, DeleteOne, InsertOne, ReadPreference, ReplaceOne, UpdateMany, UpdateOne

from superduper_nb.client.filters import encoded_filter
from superduper_nb.client.folds import folds
from superduper_nb.documents.content import changed_content, find_downloads
from superduper_nb.search.ids import id_key

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from superduper_nb.client.workspace import Workspace
    from superduper_nb.documents.codec import Codec

__all__ = ["PlannedWrite", "Prepared", "changed_paths", "prepared", "uncollected"]

_KEPT: Final = ("_fold", "_outputs", "_sddb", "_like")
"""Fields of the package, which a replacement of the user's does not take away."""
_MANY: Final = 1000


class Prepared(NamedTuple):
    """Documents as they are to be stored; the identifiers of those with something to fetch, and where that is."""

    documents: list[Any]
    fetching: list[Any]
    content: set[str]


def prepared(codec: Codec, documents: Sequence[Any], valid_fraction: float) -> Prepared:
    """Return copies of documents as they are to be stored; the originals get an ``_id``, as pymongo gives them."""
    made = Prepared([], [], set())
    for document, fold in zip(documents, folds(len(documents), valid_fraction), strict=True):
        if type(document) is dict and codec.flat(document):  # most are, and make up what inserting many costs
            if "_id" not in document:
                document["_id"] = ObjectId()
            made.documents.append(document if "_fold" in document else {**document, "_fold": fold})
        else:
            _prepare(made, codec, document, fold)
    return made


@contextmanager
def uncollected(new: int) -> Iterator[None]:
    """Put off the search for circles of garbage while many objects are made: it takes as long as inserting them."""
    if new < _MANY or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _prepare(made: Prepared, codec: Codec, document: Any, fold: str) -> None:
    if type(document) is not dict and isinstance(document, RawBSONDocument):  # the first is quick, and mostly enough
        document = {"_id": ObjectId(), **document}
    elif "_id" not in document:
        document["_id"] = ObjectId()
    if codec.plain(document):
        encoded = document
    else:
        encoded = codec.encode(document)
        if places := _to_fetch(encoded):
            made.fetching.append(encoded["_id"])
            made.content.update(places)
    made.documents.append(encoded if "_fold" in encoded else {**encoded, "_fold": fold})


def _to_fetch(document: Any) -> set[str]:
    return {path for path, _ in find_downloads(document)}


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
    collection : pymongo.collection.Collection
        Which collection.
    session : ClientSession, optional
        All is done as part of it.

    Attributes
    ----------
    jobs : dict of str to str
        Those recorded so far: name to identifier.
    """

    def __init__(
        self, workspace: Workspace, collection: pymongo.collection.Collection[Any], session: ClientSession | None = None
    ) -> None:
        self._workspace, self._session = workspace, session
        self._codec = workspace.codec_beside(collection.codec_options)
        self._documents: pymongo.collection.Collection[dict[str, Any]] = pymongo.collection.Collection(
            collection.database,
            collection.name,
            codec_options=collection.codec_options.with_options(document_class=dict),
            read_preference=ReadPreference.PRIMARY,
        )
        self._upkeep = workspace.upkeep(collection.name)
        self._found: dict[Any, dict[str, Any]] | None = None
        self._ids: list[Any] = []
        self._changed: set[str] | None = set()
        self._fetching: list[Any] = []
        self._content: set[str] | None = set()
        self._deletes = False
        self.jobs: dict[str, str] = {}

    def update(self, filter: Any, update: Any, *, upsert: bool = False, many: bool = False, **options: Any) -> Any:
        """Take part of an update; return it as it is to be sent."""
        changed = changed_paths(update)
        encoded = self._codec.encode(update, update=True)
        content = changed_content(encoded, plain=self._codec.plain(update))
        if self._upkeep.steps(changed, content):
            found = self._find(filter, {"_id": 1}, many=many, **options)
            self._add([document["_id"] for document in found], changed, content)
        if not upsert:
            return encoded
        if isinstance(encoded, (list, tuple)):
            return [*encoded, {"$set": {"_fold": {"$ifNull": ["$_fold", self._draw()]}}}]
        if not isinstance(encoded, Mapping) or _sets_fold(encoded):
            return encoded
        return {**encoded, "$setOnInsert": {**encoded.get("$setOnInsert", {}), "_fold": self._draw()}}

    def replace(self, filter: Any, replacement: Any, *, upsert: bool = False, **options: Any) -> Any:
        """Take part of a replacement; return it as it is to be sent.

        It keeps the fold of the document that it replaces, and the outputs, which the jobs then bring up to date.
        """
        found = self._find(filter, dict.fromkeys(_KEPT, 1), **options)
        encoded = self._codec.encode(replacement)
        content = set() if self._codec.plain(replacement) else _to_fetch(encoded)
        self._add([document["_id"] for document in found], None, content)
        if not isinstance(encoded, Mapping) or not (found or upsert):
            return encoded
        kept = {name: found[0][name] for name in _KEPT if name in found[0]} if found else {}
        fold = encoded.get("_fold") or kept.get("_fold") or self._draw()
        return {**encoded, **kept, "_fold": fold}

    def operations(self, operations: Sequence[Any], let: Any = None) -> list[Any]:
        """Take part of a bulk write; return its operations as they are to be sent."""
        operations = [self._encoded(operation) for operation in operations]
        # Those that name a document by its _id, mostly all of them, are looked up together.
        named = [_named_id(o._filter) for o in operations if isinstance(o, (ReplaceOne, UpdateOne, UpdateMany))]
        ids = [id for id in named if id is not None]
        found = self._find({"_id": {"$in": ids}}, dict.fromkeys(_KEPT, 1), many=True) if ids else ()
        self._found = {id_key(document["_id"]): document for document in found}
        return [self._operation(operation, let) for operation in operations]

    def _encoded(self, operation: Any) -> Any:
        if not hasattr(operation, "_filter"):
            return operation
        ours = copy(operation)
        ours._filter = encoded_filter(self._codec, operation._filter)
        return ours

    def _operation(self, operation: Any, let: Any) -> Any:
        ours = copy(operation)
        if isinstance(operation, InsertOne):
            made = prepared(self._codec, [operation._doc], self._workspace.client._valid_fraction)
            (ours._doc,) = made.documents
            self._add([ours._doc["_id"]], None, made.content)
        elif isinstance(operation, (ReplaceOne, UpdateOne, UpdateMany)):
            found_by = {name: getattr(operation, f"_{name}", None) for name in ("sort", "collation", "hint")}
            options: dict[str, Any] = found_by | {"let": let, "upsert": bool(operation._upsert)}
            if isinstance(operation, ReplaceOne):
                ours._doc = self.replace(operation._filter, operation._doc, **options)
            else:
                many = isinstance(operation, UpdateMany)
                ours._doc = self.update(operation._filter, operation._doc, many=many, **options)
        else:
            self._deletes |= isinstance(operation, (DeleteOne, DeleteMany))
        return ours  # what else it is, pymongo says

    def name_upserted(self, filter: Any, change: Any) -> Any:
        """Give the document that an upsert will make its ``_id`` now; return the change with it.

        For the calls of pymongo whose result does not tell what MongoDB chose.
        """
        if self._ids or not isinstance(filter, Mapping):
            return change
        named = filter.get("_id")
        named = named.get("$eq") if isinstance(named, Mapping) else named
        if named is None and _names_id(filter):
            return change  # by an operator: MongoDB makes of it what it makes
        id = ObjectId() if named is None else named
        if named is None:
            id, change = _with_id(change, id)
        self._add([id], None, self._content)
        return change

    def record(self) -> None:
        """Record the jobs that follow."""
        self._plan(self._ids, self._changed, self._fetching)

    def inserted(self, ids: Iterable[Any]) -> None:
        """Record the jobs for documents that an upsert made."""
        made = list(ids)
        self._plan(made, None, made if self._content is None or self._content else [])

    def _plan(self, ids: list[Any], changed: set[str] | None, fetching: list[Any]) -> None:
        steps = self._upkeep.steps(changed, self._content if fetching else ()) if ids else []
        if self._deletes:
            steps += [step for step in self._upkeep.after_delete() if step.name not in {each.name for each in steps}]
        name = self._documents.name
        planned = self._workspace.plan_write(name, steps, ids, fetching, self._session) if steps else {}
        self.jobs |= {name if name not in self.jobs else f"{name} (inserted)": job for name, job in planned.items()}

    def _add(self, ids: list[Any], changed: set[str] | None, content: set[str] | None) -> None:
        """Note documents that change, and where they may have something to fetch then (None: anywhere)."""
        if content is None or content:
            self._content = _both(self._content, content)
            self._fetching += ids
        if ids:
            self._ids += ids
            self._changed = _both(self._changed, changed)

    def _find(self, filter: Any, fields: dict[str, int], *, many: bool = False, **options: Any) -> list[dict[str, Any]]:
        if not isinstance(filter, Mapping):
            return []  # pymongo says what is wrong with it
        options = {name: value for name, value in options.items() if value is not None}
        if self._found is not None and "collation" not in options and (id := _named_id(filter)) is not None:
            return [found] if (found := self._found.get(id_key(id))) else []
        if isinstance(sort := options.get("sort"), Mapping):
            options["sort"] = list(sort.items())
        return list(self._documents.find(filter, fields, session=self._session, limit=0 if many else 1, **options))

    def _draw(self) -> str:
        return "valid" if random.random() < self._workspace.client._valid_fraction else "train"


def _both(a: set[str] | None, b: set[str] | None) -> set[str] | None:
    return None if a is None or b is None else a | b


def _sets_fold(update: Mapping[str, Any]) -> bool:
    return any("_fold" in fields for fields in update.values() if isinstance(fields, Mapping))


def _named_id(filter: Any) -> Any:
    """Return the ``_id`` of the document that a filter names and asks nothing else of; None where it does not."""
    id = filter.get("_id") if isinstance(filter, Mapping) and len(filter) == 1 else None
    return None if isinstance(id, (Mapping, re.Pattern, Regex)) else id


def _names_id(filter: Any) -> bool:
    if isinstance(filter, Mapping):
        return "_id" in filter or any(map(_names_id, filter.values()))
    return isinstance(filter, (list, tuple)) and any(map(_names_id, filter))


def _with_id(change: Any, id: Any) -> tuple[Any, Any]:
    """Return the ``_id`` that an upsert by this change will give, and the change with it."""
    if not isinstance(change, Mapping):
        return id, [*change, {"$set": {"_id": {"$ifNull": ["$_id", {"$literal": id}]}}}]
    if not any(name.startswith("$") for name in change):
        return change.get("_id", id), {"_id": id, **change}
    on_insert = change.get("$setOnInsert", {})
    return on_insert.get("_id", id), {**change, "$setOnInsert": {"_id": id, **on_insert}}
