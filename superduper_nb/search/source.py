"""Where the vectors of an index come from: the outputs of one model version on one key of a collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

import bson
from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo import CursorType, ReadPreference
from pymongo.change_stream import ChangeStream
from pymongo.collection import Collection
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from superduper_nb.documents.paths import BASE, output_path, token_path
from superduper_nb.search.batches import Batches

__all__ = ["BATCH", "Source", "is_private"]

BATCH: Final = 2000
_AWAIT_MS: Final = 25
_NO_HISTORY: Final = frozenset({72, 239, 246})
"""InvalidOptions (before MongoDB 5), SnapshotTooOld, SnapshotUnavailable."""
_PRIVATE: Final = ("_outputs.", "_sddb.")
_NAMES: Final = {"$map": {"input": {"$objectToArray": "$updateDescription.updatedFields"}, "in": "$$this.k"}}
_PIPELINE: Final[list[dict[str, Any]]] = [
    {
        "$project": {  # as little as will do: each event is decoded with the interpreter held
            "operationType": 1,
            "id": "$documentKey._id",
            "updated": {"$cond": ["$updateDescription", _NAMES, "$$REMOVE"]},
            "removed": "$updateDescription.removedFields",
        }
    }
]


class Source:
    """Outputs in MongoDB.

    Parameters
    ----------
    collection : pymongo.collection.Collection
        Where the documents are.
    model, key, version
        Whose outputs.
    filter : mapping
        Only of documents that match it.

    Attributes
    ----------
    path : str
        Where in a document they are.
    """

    def __init__(
        self, collection: Collection[dict[str, Any]], *, model: str, key: str, version: int, filter: Mapping[str, Any]
    ) -> None:
        # Of the primary and majority-committed, as the stream is: nothing that could be rolled back.
        self._collection = collection.with_options(
            read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("majority")
        )
        self._database = collection.database.with_options(codec_options=collection.codec_options)
        self._key, self._token, self._filter = key, token_path(model, key), dict(filter)
        self.codec_options, self.version, self.path = collection.codec_options, version, output_path(key, model)
        self._raw = collection.codec_options.with_options(document_class=RawBSONDocument)

    @property
    def is_sharded(self) -> bool:
        """It is behind a mongos."""
        return self._database.client.is_mongos

    # --- now -------------------------------------------------------------------------------------------------------

    def now(self) -> Timestamp:
        """Return the time of the last operation."""
        now: Timestamp = self._database.command("ping")["operationTime"]
        return now

    def expected(self) -> int:
        """Return about how many outputs there will be; 0 where that would take a look at each document."""
        return 0 if self._filter else self._collection.estimated_document_count()

    def batches(self) -> Iterator[bytes]:
        """Yield all documents of the index, with their outputs, as BSON one behind the other."""
        query = self._current({})
        # mongod then sends on without being asked for each batch: it reads while we look. Not every mongos does that.
        kind = CursorType.NON_TAILABLE if self.is_sharded else CursorType.EXHAUST
        batches = Batches(self._collection, query, {self.path: 1}, batch_size=BATCH, cursor_type=kind)
        # The bytes of many documents at a time: what it yields is not what its annotation says.
        found = cast("Iterator[bytes]", batches)
        with ThreadPoolExecutor(1, "index load") as pool:
            following = pool.submit(next, found, b"")
            while batch := following.result():
                following = pool.submit(next, found, b"")  # read while this one is looked at
                yield batch

    def older_left(self) -> bool:
        """Say whether there are documents that only an older version has computed."""
        query = self._with_filter({f"{self._token}.v": {"$lt": self.version}})
        return self._collection.find_one(query, {"_id": 1}) is not None

    def _current(self, query: dict[str, Any]) -> dict[str, Any]:
        """Return the filter for those of some documents that belong to the index."""
        return self._with_filter(
            {**query, f"{self._token}.v": self.version, f"{self._token}.error": {"$exists": False}}
        )

    def _with_filter(self, query: dict[str, Any]) -> dict[str, Any]:
        return {"$and": [query, self._filter]} if self._filter else query

    # --- later -----------------------------------------------------------------------------------------------------

    def watch(self, resume: Mapping[str, Any] | None, begin: Timestamp | None) -> ChangeStream[dict[str, Any]]:
        """Open a stream of changes, behind a token or from a time."""
        return self._collection.watch(
            _PIPELINE, resume_after=resume, start_at_operation_time=begin, max_await_time_ms=_AWAIT_MS
        )

    def is_content(self, name: str) -> bool:
        """Say whether a field (with a dot behind it) can change what the vector is made of, or the filter."""
        if is_private(name):
            return False
        key = f"{self._key}."
        return bool(self._filter) or self._key == BASE or name.startswith(key) or key.startswith(name)

    def as_of(self, at: Timestamp, ids: list[Any]) -> bytes:
        """Read those of some documents that belong to the index as they were at a time; BSON as in `batches`."""
        return b"".join(found.raw for found in self._read(at, self._current({"_id": {"$in": ids}}), self.path))

    def newer(self, at: Timestamp, ids: list[Any]) -> list[Any]:
        """Return those of some identifiers whose documents a newer version had computed at a time."""
        query = self._with_filter({"_id": {"$in": ids}, f"{self._token}.v": {"$gt": self.version}})
        found = self._read(at, query, "_id")
        return [bson.decode(document.raw, self.codec_options)["_id"] for document in found]

    def _read(self, at: Timestamp, query: dict[str, Any], field: str) -> list[RawBSONDocument]:
        """Find documents as they were at a time; as they are now, where that is forgotten."""
        asked = {"find": self._collection.name, "filter": query, "projection": {field: 1}, "batchSize": BATCH + 1}
        concern = {"level": "snapshot", "atClusterTime": at}
        try:
            return list(self._database.cursor_command(asked, readConcern=concern, codec_options=self._raw))
        except OperationFailure as error:
            if error.code not in _NO_HISTORY:
                raise
            return list(self._collection.with_options(codec_options=self._raw).find(query, {field: 1}))


def is_private(name: str) -> bool:
    """Say whether a field (with a dot behind it) is one of ours."""
    return name.startswith(_PRIVATE)
