"""Bytes in GridFS, found by their SHA-256, and deleted when no record points to them any more.

One may delete what another has just found there and is about to point to. So who deletes marks the file, then looks for
a record, and takes the file away only if the mark is still there; who keeps bytes removes the mark (or uploads them
anew) once more when the record is written.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from bson import ObjectId
from gridfs import GridFSBucket
from gridfs.errors import CorruptGridFile, NoFile
from pymongo.database import Database

__all__ = ["collect", "discard", "keep", "read"]

_BUCKET: Final = "_sddb.fs"
_CHUNK_BYTES: Final = 4 * 2**20
_KEEP_UNUSED: Final = timedelta(days=1)
_POINTERS: Final = (
    *(("_sddb.components", "artifact.sha256"), ("_sddb.components", "artifact.weights")),
    *(("_sddb.runs", "checkpoint.sha256"), ("_sddb.runs", "checkpoint.weights")),
)
"""The collections, and their fields, that name bytes which are in use."""


def keep(database: Database[Any], digest: str, data: bytes) -> None:
    """Store bytes, once."""
    found = database[f"{_BUCKET}.files"].update_many({"filename": digest}, {"$unset": {"metadata": ""}})
    if not found.matched_count:
        GridFSBucket(database, _BUCKET, _CHUNK_BYTES).upload_from_stream(digest, data)


def read(database: Database[Any], digest: str) -> bytes | None:
    """Return stored bytes; None where there are none.

    Raises
    ------
    ValueError
        They are not those of this digest.
    """
    try:
        data: bytes = GridFSBucket(database, _BUCKET).open_download_stream_by_name(digest).read()
    except NoFile:
        return None
    except CorruptGridFile as error:
        raise ValueError(digest) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(digest)
    return data


def discard(database: Database[Any], digest: str) -> None:
    """Delete stored bytes, unless a record points to them."""
    for file in database[f"{_BUCKET}.files"].find({"filename": digest}, {"_id": 1}):
        _delete(database, file["_id"], digest)


def _delete(database: Database[Any], id: ObjectId, digest: str) -> None:
    files = database[f"{_BUCKET}.files"]
    marked = {"_id": id, "metadata.deleting": ObjectId()}
    files.update_one({"_id": id}, {"$set": {"metadata.deleting": marked["metadata.deleting"]}})
    if any(database[place].find_one({field: digest}, {"_id": 1}) for place, field in _POINTERS):
        files.update_one(marked, {"$unset": {"metadata": ""}})
    elif files.delete_one(marked).deleted_count:
        database[f"{_BUCKET}.chunks"].delete_many({"files_id": id})


def collect(database: Database[Any]) -> None:
    """Delete bytes that nothing points to, and pieces of uploads that never ended, older than a day.

    Younger ones may belong to somebody who is registering just now.
    """
    before = datetime.now(UTC) - _KEEP_UNUSED
    used = {digest for place, field in _POINTERS for digest in database[place].distinct(field)}
    files, chunks = database[f"{_BUCKET}.files"], database[f"{_BUCKET}.chunks"]
    for file in files.find({"filename": {"$nin": list(used)}, "uploadDate": {"$lt": before}}):
        _delete(database, file["_id"], file["filename"])
    whole = files.distinct("_id")
    chunks.delete_many({"files_id": {"$nin": whole}, "_id": {"$lt": ObjectId.from_datetime(before)}})
