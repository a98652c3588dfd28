"""The work of a job: a filter, a few identifiers, or a batch of them stored as chunk documents beside the jobs.

So no document grows with the work, and ten million documents are no list in anybody's memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from bson import ObjectId, json_util
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from toolz import partition_all

from superduper_nb.errors import NotFoundError
from superduper_nb.jobs.values import ACTIVE_STATES

__all__ = ["CHUNK_SIZE", "ChunkStore"]

CHUNK_SIZE: Final = 1000
_INLINE: Final = 100
"""So many identifiers stand in the job itself."""
Chunk = tuple[Any, list[Any]]


class ChunkStore:
    """The work of the jobs of one database.

    Parameters
    ----------
    jobs : pymongo.collection.Collection
        Where the jobs are, and the chunk documents.
    """

    def __init__(self, jobs: Collection[dict[str, Any]]) -> None:
        self._jobs = jobs

    def create(self, ids: Iterable[Any], *, session: ClientSession | None = None) -> dict[str, Any]:
        """Store identifiers, many of them as chunk documents; return the ``work`` that stands for them."""
        parts = [list(part) for part in partition_all(CHUNK_SIZE, ids)]
        if len(parts) <= 1 and sum(map(len, parts)) <= _INLINE:
            return {"ids": parts[0] if parts else []}
        batch = str(ObjectId())
        chunks = [{"_id": _chunk_id(batch, n), "kind": "chunk", "ids": part} for n, part in enumerate(parts)]
        self._jobs.insert_many(chunks, session=session)
        return {"batch": batch, "chunks": len(chunks)}

    def after(self, record: dict[str, Any], cursor: Any) -> Chunk | None:
        """Return the part of a job's work that follows a cursor, as (its cursor, identifiers); None at the end.

        Each is a query of its own: between two of them lie minutes of work, which would outlive a cursor on the server.

        Raises
        ------
        NotFoundError
            A chunk document is gone.
        """
        work = record["work"]
        if "ids" in work:
            return (0, work["ids"]) if cursor is None and work["ids"] else None
        if "batch" in work:
            return self._stored(work, 0 if cursor is None else cursor + 1)
        return self._scanned(record["collection"], json_util.loads(work["filter"]), cursor)

    def _stored(self, work: dict[str, Any], n: int) -> Chunk | None:
        if n >= work["chunks"]:
            return None
        chunk = self._jobs.find_one({"_id": _chunk_id(work["batch"], n)})
        if chunk is None:
            raise NotFoundError("The list of this job's documents was deleted; update them to queue them again.")
        return n, chunk["ids"]

    def _scanned(self, collection: str, query: dict[str, Any], cursor: Any) -> Chunk | None:
        # $expr compares across BSON types, as the sort does; a plain $gt sees only the cursor's own type.
        rest = query if cursor is None else {"$and": [query, {"$expr": {"$gt": ["$_id", {"$literal": cursor}]}}]}
        found = self._jobs.database[collection].find(rest, {"_id": 1}).sort("_id", 1).limit(CHUNK_SIZE)
        ids = [document["_id"] for document in found]
        return (ids[-1], ids) if ids else None

    def forget(self, record: dict[str, Any]) -> None:
        """Delete the chunks of an ended job, unless they are another's work too; a retry's go when the job does."""
        if (batch := record["work"].get("batch")) is None:
            return
        others = {"work.batch": batch, "state": {"$in": list(ACTIVE_STATES)}}
        retry = {"work.batch": batch, "$or": [{"state": {"$ne": "succeeded"}}, {"failures.count": {"$gt": 0}}]}
        if self._jobs.find_one(others, {"_id": 1}):
            return
        if self._jobs.find_one(retry, {"_id": 1}):
            self._jobs.update_many(_chunks(batch), [{"$set": {"finished": "$$NOW"}}])
        else:
            self._jobs.delete_many(_chunks(batch))

    def keep(self, record: dict[str, Any]) -> None:
        """Keep the chunks of a job that is queued again as long as it has not ended."""
        if batch := record["work"].get("batch"):
            self._jobs.update_many(_chunks(batch), {"$unset": {"finished": ""}})


def _chunks(batch: str) -> dict[str, Any]:
    return {"_id": {"$gte": f"{batch}:", "$lt": f"{batch};"}}


def _chunk_id(batch: str, n: int) -> str:
    return f"{batch}:{n:08d}"
