"""Job records (collection ``_sddb.jobs``): the queue itself. Executors come and go, the record stays.

A job is claimed under a lease that its executor renews; whoever finds a lapsed lease claims the job anew and goes on
where the record says. Leases compare the server's time with the server's time, and each later write of an executor
names it as owner: one that was overtaken changes nothing any more.

The work of a job is a filter, or a batch of identifiers stored as chunk documents in the same collection, so that no
document grows with the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId, json_util
from pymongo import ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from toolz import partition_all

from superduper_nb.components.store import plain_database
from superduper_nb.errors import InvalidInputError, NotFoundError

__all__ = ["ACTIVE_STATES", "CHUNK_SIZE", "COLLECTION", "FINAL_STATES", "STATES", "JobStore", "NewJob", "Progress"]

COLLECTION: Final = "_sddb.jobs"
STATES: Final = ("pending", "running", "succeeded", "failed", "cancelled", "blocked")
ACTIVE_STATES: Final = ("pending", "running")
FINAL_STATES: Final = ("succeeded", "failed", "cancelled", "blocked")

CHUNK_SIZE: Final = 1000
LEASE_MS: Final = 30_000
Records = list[dict[str, Any]]
Chunk = tuple[Any, list[Any]]

START: Final = {"cursor": None, "done": 0, "failed": 0}


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be recorded.

    Attributes
    ----------
    kind : str
        What the executor does; ``"outputs"`` applies a watcher's model.
    name : str
        What users see; a watcher's identifier, say.
    work : dict
        ``{"batch": id, "chunks": n}`` or ``{"filter": Extended JSON}``.
    total : int or None
        Documents, where known.
    parents : tuple of str
        Jobs that must succeed first.
    """

    kind: str
    name: str
    collection: str
    component: str
    work: dict[str, Any]
    total: int | None = None
    parents: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: str(ObjectId()))

    def record(self) -> dict[str, Any]:
        """Return the document of a new job."""
        return {
            "_id": self.id,
            "kind": self.kind,
            "name": self.name,
            "collection": self.collection,
            "component": self.component,
            "state": "pending",
            "parents": list(self.parents),
            "work": self.work,
            "progress": {"done": 0, "total": self.total, "failed": 0},
            "resume": START,
            "attempts": 0,
            "retry_failed": False,
            "created": datetime.now(UTC),
            "started": None,
            "finished": None,
            "error": None,
            "failures": {"count": 0, "first": []},
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes
    ----------
    resume : dict
        Where another executor goes on: ``cursor`` (everything up to here is done: the number of the last chunk, or the last
        ``_id``), with the ``done`` and ``failed`` documents up to there.
    done, failed : int
        All documents so far.
    first : tuple of dict
        The first failures: ``{"_id", "error"}``.
    """

    resume: dict[str, Any]
    done: int
    failed: int
    first: tuple[dict[str, Any], ...]


class JobStore:
    """The jobs of one database.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose jobs.
    """

    def __init__(self, database: Database[Any]) -> None:
        self.database = plain_database(database)
        self._jobs = self.database[COLLECTION]

    # --- writers -----------------------------------------------------------------------------------------------

    def create(self, jobs: Sequence[NewJob], *, session: ClientSession | None = None) -> None:
        """Record jobs; with `session`, as part of its transaction."""
        if jobs:
            self._jobs.insert_many([job.record() for job in jobs], session=session)

    def create_batch(self, ids: Iterable[Any], *, session: ClientSession | None = None) -> dict[str, Any]:
        """Store identifiers as chunk documents; return the ``work`` that stands for them."""
        batch = str(ObjectId())
        chunks = [
            {"_id": _chunk_id(batch, n), "kind": "chunk", "ids": list(part)}
            for n, part in enumerate(partition_all(CHUNK_SIZE, ids))
        ]
        if chunks:
            self._jobs.insert_many(chunks, session=session)
        return {"batch": batch, "chunks": len(chunks)}

    # --- readers -----------------------------------------------------------------------------------------------

    def get(self, id: str) -> dict[str, Any]:
        """Return the record of a job."""
        record = self._jobs.find_one({"_id": id, "kind": {"$ne": "chunk"}})
        if record is None:
            raise NotFoundError(f"No job {id!r} in {self.database.name}.")
        return record

    def list(
        self, status: str | None = None, since: str | None = None, limit: int = 100, collection: str | None = None
    ) -> Records:
        """List job records, newest first; `since` gives those before that id (the next page)."""
        if status is not None and status not in STATES:
            raise InvalidInputError(f"No job state is called {status!r}. The states: {', '.join(STATES)}.")
        query: dict[str, Any] = {"kind": {"$ne": "chunk"}, "state": status or {"$exists": True}}
        if since is not None:
            query["_id"] = {"$lt": since}
        if collection is not None:
            query["collection"] = collection
        return list(self._jobs.find(query).sort("_id", -1).limit(limit))

    def pending(self, collection: str, component: str) -> int:
        """Return how many documents the queued jobs of a component have still to do."""
        query = {"state": {"$in": list(ACTIVE_STATES)}, "component": component, "collection": collection}
        left = [job["progress"] for job in self._jobs.find(query, {"progress": 1})]
        return sum(max(0, (progress["total"] or 0) - progress["done"]) for progress in left)

    def logs(self, id: str, since: int = 0) -> Records:
        """List what a job printed, from line `since` on."""
        self.get(id)
        lines = self.database["_sddb.logs"].find({"job": id, "n": {"$gte": since}}, {"_id": 0})
        return list(lines.sort("n", 1).limit(1000))

    def chunks(self, record: dict[str, Any]) -> Iterator[Chunk]:
        """Yield what is left of a job's work as (cursor, identifiers), streaming."""
        work, cursor = record["work"], record["resume"]["cursor"]
        if "batch" in work:
            return self._stored_chunks(work["batch"], cursor)
        return self._scanned_chunks(record["collection"], json_util.loads(work["filter"]), cursor)

    # Both page by queries of their own: between two chunks lie minutes of work, which would outlive a server-side cursor.

    def _stored_chunks(self, batch: str, cursor: int | None) -> Iterator[Chunk]:
        n = 0 if cursor is None else cursor + 1
        while chunk := self._jobs.find_one({"_id": _chunk_id(batch, n)}):
            yield n, chunk["ids"]
            n += 1

    def _scanned_chunks(self, collection: str, query: dict[str, Any], cursor: Any) -> Iterator[Chunk]:
        documents = self.database[collection]
        while True:
            # $expr compares across BSON types, as the sort does; a plain $gt sees only the cursor's own type.
            rest = query if cursor is None else {"$and": [query, {"$expr": {"$gt": ["$_id", {"$literal": cursor}]}}]}
            ids = [document["_id"] for document in documents.find(rest, {"_id": 1}).sort("_id", 1).limit(CHUNK_SIZE)]
            if not ids:
                return
            cursor = ids[-1]
            yield cursor, ids

    def ready(self) -> Records:
        """List the jobs that may be claimed now, oldest first: parents succeeded, and nobody works on them."""
        lapsed = {"$expr": {"$lt": ["$lease", "$$NOW"]}}
        query = {"$or": [{"state": "pending"}, {"state": "running", **lapsed}]}
        candidates = list(self._jobs.find(query).sort("_id", 1).limit(200))
        parents = {parent for job in candidates for parent in job["parents"]}
        states = {job["_id"]: job["state"] for job in self._jobs.find({"_id": {"$in": list(parents)}}, {"state": 1})}
        # A parent that is gone was cleaned up after it succeeded.
        return [job for job in candidates if all(states.get(p, "succeeded") == "succeeded" for p in job["parents"])]

    # --- the executor's side -----------------------------------------------------------------------------------

    def claim(self, id: str, owner: str) -> dict[str, Any] | None:
        """Take a ready job under a lease; return its record, or None if someone else was quicker."""
        free = {"$or": [{"state": "pending"}, {"state": "running", "$expr": {"$lt": ["$lease", "$$NOW"]}}]}
        change = {
            "state": "running",
            "owner": owner,
            "lease": {"$add": ["$$NOW", LEASE_MS]},
            "started": {"$ifNull": ["$started", "$$NOW"]},
            "attempts": {"$add": ["$attempts", 1]},
        }
        return self._jobs.find_one_and_update(
            {"_id": id, **free}, [{"$set": change}], return_document=ReturnDocument.AFTER
        )

    def report(self, id: str, owner: str, progress: Progress) -> bool:
        """Record progress and renew the lease; False when the job is no longer this owner's."""
        change = {
            "resume": {"$literal": progress.resume},
            "progress.done": progress.done,
            "progress.failed": progress.failed,
            "failures": {"$literal": {"count": progress.failed, "first": list(progress.first)}},
            "lease": {"$add": ["$$NOW", LEASE_MS]},
        }
        return self._owned(id, owner, change)

    def finish(self, id: str, owner: str, state: str, error: dict[str, Any] | None = None) -> bool:
        """Record the end of a job and, where it failed, block what waits for it; False when it is no longer ours."""
        change: dict[str, Any] = {"state": state, "finished": "$$NOW", "error": {"$literal": error}}
        if state == "succeeded":
            change["progress.total"] = "$progress.done"
        if not self._owned(id, owner, change):
            return False
        if state != "succeeded":
            self._block(id)
        return True

    def _owned(self, id: str, owner: str, change: dict[str, Any]) -> bool:
        result = self._jobs.update_one({"_id": id, "owner": owner, "state": "running"}, [{"$set": change}])
        return result.matched_count == 1

    def _block(self, id: str) -> None:
        self._jobs.update_many({"parents": id, "state": "pending"}, {"$set": {"state": "blocked", "blocked_by": id}})
        for child in self._jobs.find({"blocked_by": id, "state": "blocked"}, {"_id": 1}):
            self._block(child["_id"])

    # --- control -----------------------------------------------------------------------------------------------

    def cancel(self, id: str) -> dict[str, Any]:
        """Stop a job that has not ended; what it has written stays."""
        self.get(id)
        change = {"state": "cancelled", "finished": "$$NOW"}
        query = {"_id": id, "state": {"$in": [*ACTIVE_STATES, "blocked"]}}
        if self._jobs.update_one(query, [{"$set": change}]).modified_count:
            self._block(id)
        return self.get(id)

    def retry(self, id: str) -> dict[str, Any]:
        """Queue an ended job again with the documents that failed, and release what was blocked by it."""
        record = self.get(id)
        if record["state"] in ACTIVE_STATES or (record["state"] == "succeeded" and not record["failures"]["count"]):
            raise InvalidInputError(f"Job {id} is {record['state']}: there is nothing to retry.")
        self._release(id)
        return self.get(id)

    def _release(self, id: str) -> None:
        fresh: dict[str, Any] = {"state": "pending", "error": None, "finished": None, "blocked_by": None, "owner": None}
        fresh |= {"resume": START, "progress.done": 0, "progress.failed": 0, "failures": {"count": 0, "first": []}}
        fresh |= {"retry_failed": True}
        self._jobs.update_one({"_id": id}, {"$set": fresh})
        for child in self._jobs.find({"blocked_by": id, "state": "blocked"}, {"_id": 1}):
            self._release(child["_id"])


def _chunk_id(batch: str, n: int) -> str:
    return f"{batch}:{n:08d}"
