"""Component records: what is registered in a database, in which versions (collection ``_sddb.components``)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, get_args

from bson import json_util
from pymongo import DESCENDING, MongoClient
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from superduper_nb.components import artifacts, blobs
from superduper_nb.components.fingerprint import fingerprint
from superduper_nb.errors import InvalidInputError, NotFoundError, did_you_mean

__all__ = ["COLLECTION", "Component", "ComponentStore", "Kind", "check_identifier", "plain_database"]

Kind = Literal[
    "type",
    "model",
    "measure",
    "loss",
    "metric",
    "splitter",
    "function",
    "trainer",
    "watcher",
    "semantic_index",
    "imputation",
    "learning_task",
    "neighbourhood",
    "validation_set",
]
KINDS: Final = get_args(Kind)
COLLECTION: Final = "_sddb.components"

_STAMP: Final = {"_id": "stamp", "kind": "stamp", "collection": "", "id": "", "version": 0}
"""The record whose ``n`` counts what was registered and deleted, so that others notice by reading one document."""

_DELETED: Final = "deleted "
"""What stands before the kind in the records that remember the last version of what was deleted."""

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def check_identifier(what: str, value: object) -> str:
    """Return `value` if it may name a component.

    Raises
    ------
    InvalidInputError
        It is no string of the allowed form.
    """
    if isinstance(value, str) and _IDENTIFIER.fullmatch(value):
        return value
    raise InvalidInputError(
        f"{what} can't be named {value!r}: a name starts with a letter or '_', "
        "goes on with letters, digits, '_' or '-', and has at most 64 of them."
    )


def plain_database(database: Database[Any]) -> Database[dict[str, Any]]:
    """Return the same database as pymongo's own class: the package's records need no decoding."""
    client: MongoClient[dict[str, Any]] = database.client
    return Database(client, database.name)


@dataclass(frozen=True, slots=True)
class Component:
    """One version of something registered.

    Attributes
    ----------
    collection : str
        The collection it belongs to; empty for what belongs to the whole database.
    definition : dict
        Its settings, without code.
    artifact : dict or None
        Header of the stored object: SHA-256, size, format, signature.
    origin : dict or None
        Of a version that nobody registered: ``base``, the hash of the registered one that it was made from, and ``by``,
        the task that trained it.
    """

    kind: Kind
    id: str
    collection: str
    version: int
    definition: dict[str, Any]
    artifact: dict[str, Any] | None
    hash: str
    created: datetime
    origin: dict[str, Any] | None = None
    notes: dict[str, Any] | None = None

    @property
    def base(self) -> str:
        """The hash of what a user registered, of which this version was made."""
        return self.hash if self.origin is None else str(self.origin["base"])

    @property
    def identity(self) -> dict[str, Any]:
        """What a signature binds the artifact to."""
        return {"kind": self.kind, "collection": self.collection, "id": self.id, "version": self.version}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Component:
        """Build one from its document."""
        fields = {name: record[name] for name in ("kind", "id", "collection", "version", "artifact", "hash", "created")}
        definition = json_util.loads(record["definition"])
        return cls(definition=definition, origin=record.get("origin"), notes=record.get("notes"), **fields)


class ComponentStore:
    """The components of one database.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose components.
    """

    def __init__(self, database: Database[Any]) -> None:
        self.database = plain_database(database)
        self._records = self.database[COLLECTION]

    def put(
        self,
        kind: Kind,
        id: str,
        definition: dict[str, Any],
        *,
        collection: str = "",
        obj: Any = None,
        origin: dict[str, Any] | None = None,
        notes: dict[str, Any] | None = None,
    ) -> tuple[Component, bool]:
        """Register a version, unless the current one has the same content, or was made of this one by training.

        Parameters
        ----------
        origin : dict, optional
            Of a version that no user registers just now (see `Component`): only the same content is no new version.
        notes : dict, optional
            Kept with a new version, whose content it is no part of.

        Returns
        -------
        tuple of Component and bool
            The current version, and whether it is new.
        """
        # As Extended JSON: a filter's "$" operators and dotted keys are data here, not MongoDB's to read.
        text = json_util.dumps(definition, json_options=json_util.CANONICAL_JSON_OPTIONS)
        content = _content(kind, id, obj) if obj is not None else None
        digest = hashlib.sha256(json.dumps([text, content]).encode()).hexdigest()
        current = self.find(kind, id, collection=collection)
        if current and _is_current(current, digest, origin):
            return current, False
        packed = None if obj is None else artifacts.pack(obj, what=f"The {kind} {id!r}")
        header = None if packed is None else artifacts.save(self.database, packed)
        extra = {name: value for name, value in (("origin", origin), ("notes", notes)) if value is not None}
        made, new = self._insert(kind, id, collection, text, header, digest, extra)
        if packed is not None:
            artifacts.save(self.database, packed)
        return made, new

    def _insert(
        self,
        kind: Kind,
        id: str,
        collection: str,
        text: str,
        header: dict[str, Any] | None,
        digest: str,
        extra: dict[str, Any],
    ) -> tuple[Component, bool]:
        self._records.create_index([("kind", 1), ("collection", 1), ("id", 1), ("version", -1)], unique=True)
        while True:
            current = self.find(kind, id, collection=collection)
            if current and _is_current(current, digest, extra.get("origin")):
                return current, False
            identity = {
                "kind": kind,
                "collection": collection,
                "id": id,
                "version": 1 + (current.version if current else self._last(kind, collection, id)),
            }
            record = {
                **identity,
                "definition": text,
                "artifact": header and artifacts.seal(identity, header),
                "hash": digest,
                "created": self.database.command("hello")["localTime"],  # a follower begins there, on MongoDB's clock
                **extra,
            }
            try:
                self._records.insert_one(record)
            except DuplicateKeyError:
                continue  # another session registered that version number first: take the next
            self._count()
            return Component.from_record(record), True

    def _last(self, kind: Kind, collection: str, id: str) -> int:
        """Return the newest version of what was deleted under this name; 0 where nothing was."""
        gone = self._records.find_one({"kind": _DELETED + kind, "collection": collection, "id": id})
        return gone["version"] if gone else 0

    def _count(self) -> None:
        self._records.update_one(_STAMP, {"$inc": {"n": 1}}, upsert=True)

    def stamp(self) -> int:
        """Return a number that is another one after each registration and deletion."""
        record = self._records.find_one({"_id": _STAMP["_id"]}, {"n": 1})
        return record["n"] if record else 0

    def find(self, kind: Kind, id: str, *, collection: str = "", version: int | None = None) -> Component | None:
        """Return a version (the current one by default), or None."""
        query: dict[str, Any] = {"kind": kind, "collection": collection, "id": id}
        if version is not None:
            query["version"] = version
        record = self._records.find_one(query, sort=[("version", DESCENDING)])
        return None if record is None else Component.from_record(record)

    def note_first(self, component: Component, name: str, value: Any) -> Any:
        """Note what shows only when a version is used, once: return what was noted first."""
        place = f"seen.{name}"
        unseen = {**component.identity, place: {"$exists": False}}
        self._records.update_one(unseen, {"$set": {place: value}})
        record = self._records.find_one(component.identity, {place: 1})
        return record["seen"][name] if record else value

    def get(self, kind: Kind, id: str, *, collection: str = "", version: int | None = None) -> Component:
        """Return a version (the current one by default).

        Raises
        ------
        NotFoundError
            There is none; the message names near ones, or the versions there are.
        """
        if found := self.find(kind, id, collection=collection, version=version):
            return found
        where = f"{self.database.name}.{collection}" if collection else self.database.name
        what = f"{kind.replace('_', ' ')} {id!r}" + (f" version {version}" if version is not None else "")
        there = ", ".join(map(str, self.versions(kind, id, collection=collection)))
        hint = f" Its versions: {there}." if there else did_you_mean(id, self.ids(kind, collection=collection))
        raise NotFoundError(f"No {what} in {where}.{hint}")

    def newest(self, kind: Kind, id: str, *, collection: str = "") -> int:
        """Return the number of the current version, from the index alone; raises `NotFoundError`."""
        query = {"kind": kind, "collection": collection, "id": id}
        record = self._records.find_one(query, {"_id": 0, "version": 1}, sort=[("version", DESCENDING)])
        return record["version"] if record else self.get(kind, id, collection=collection).version

    def exists(self) -> bool:
        """Say whether anything at all is registered."""
        return self._records.find_one({"kind": {"$in": KINDS}}, {"_id": 1}) is not None

    def ids(self, kind: Kind, *, collection: str = "") -> list[str]:
        """List the identifiers of a kind, sorted."""
        return sorted(self._records.distinct("id", {"kind": kind, "collection": collection}))

    def versions(self, kind: Kind, id: str, *, collection: str = "") -> list[int]:
        """List the version numbers, oldest first."""
        query = {"kind": kind, "collection": collection, "id": id}
        return sorted(record["version"] for record in self._records.find(query, {"version": 1}))

    def current(self, *kinds: Kind, collection: str | None = None) -> list[Component]:
        """List the current version of each component of these kinds (of every collection when None is given)."""
        query: dict[str, Any] = {"kind": kinds[0] if len(kinds) == 1 else {"$in": kinds}}
        if collection is not None:
            query["collection"] = collection
        newest: dict[tuple[str, str, str], Component] = {}
        for record in self._records.find(query).sort("version", 1):
            newest[record["kind"], record["collection"], record["id"]] = Component.from_record(record)
        return list(newest.values())

    def delete(self, kind: Kind, id: str, *, collection: str = "") -> None:
        """Remove every version, and the artifacts that nothing else points to."""
        query = {"kind": kind, "collection": collection, "id": id}
        stored = [record["artifact"] for record in self._records.find(query, {"artifact": 1}) if record["artifact"]]
        if newest := self.find(kind, id, collection=collection):
            # A version number never comes back with other content: outputs in documents carry it.
            last = {"$max": {"version": newest.version}}
            self._records.update_one({**query, "kind": _DELETED + kind}, last, upsert=True)
        self._records.delete_many(query)
        self._count()
        for artifact in stored:
            artifacts.discard(self.database, artifact)
        blobs.collect(self.database)

    def trust(self, component: Component) -> Component:
        """Sign a component's artifact as this installation, too: from now on it is loaded here. Nothing is loaded yet.

        Raises
        ------
        TrustError
            The stored bytes are gone, or not those that the record tells of.
        """
        if component.artifact is None:
            raise InvalidInputError(
                f"The {component.kind} {component.id!r} holds no object, so there is nothing to trust."
            )
        signed = artifacts.trust(self.database, component.identity, component.artifact)
        self._records.update_one(component.identity, {"$set": {"artifact": signed}})
        self._count()
        return replace(component, artifact=signed)

    def load(self, component: Component) -> Any:
        """Return the stored object of a component (verified first: see `artifacts.load`)."""
        if component.artifact is None:
            raise InvalidInputError(f"The {component.kind} {component.id!r} holds no object.")
        return artifacts.load(self.database, component.identity, component.artifact)


def _is_current(current: Component, digest: str, origin: dict[str, Any] | None) -> bool:
    # A cell that is run again registers what was trained since: that is no reason to forget the training.
    return digest == current.hash or (origin is None and digest == current.base)


def _content(kind: str, id: str, obj: Any) -> str:
    try:
        return fingerprint(obj)
    except Exception:
        artifacts.dumps(obj, what=f"The {kind} {id!r}")  # says what can't be stored, and why
        raise
