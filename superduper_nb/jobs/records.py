"""Job records (collection ``_sddb.jobs``): the queue itself. Executors come and go, the record stays.

A job is claimed under a lease that its executor renews; whoever finds a lapsed lease claims the job anew and goes on
where the record says. Leases compare the server's time with the server's time, and each later write of an executor
names it as owner: one that was overtaken changes nothing any more.

A writer records jobs before the data, on hold; it releases them when the data is written. Nobody claims a job on hold,
and a hold lapses like a lease: a writer that dies leaves jobs that find nothing to do, never data that is never
computed. The records are written with ``w: 1``: the oplog keeps the order, so the majority's word on the data, or on
the outputs, covers the records written before, and a claim or a progress report that is lost only repeats work.

The work of a job is a filter, a few identifiers, or a batch of them stored as chunk documents in the same collection,
so that no document grows with the work.
"""

from __future__ import annotations

from collections.abc import Collection as Some
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from bson import ObjectId, json_util
from pymongo import ReturnDocument, UpdateOne, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from toolz import partition_all

from superduper_nb.components.store import plain_database
from superduper_nb.errors import InvalidInputError, NotFoundError

__all__ = [
    "ACTIVE_STATES",
    "CHUNK_SIZE",
    "COLLECTION",
    "FINAL_STATES",
    "KEEP_S",
    "LOGS",
    "STATES",
    "JobStore",
    "NewJob",
    "Progress",
]

COLLECTION: Final = "_sddb.jobs"
LOGS: Final = "_sddb.logs"
STATES: Final = ("pending", "running", "succeeded", "failed", "cancelled", "blocked")
ACTIVE_STATES: Final = ("pending", "running")
FINAL_STATES: Final = ("succeeded", "failed", "cancelled", "blocked")

CHUNK_SIZE: Final = 1000
_INLINE: Final = 100
"""So many identifiers stand in the job itself."""
LEASE_MS: Final = 30_000
KEEP_S: Final = 14 * 24 * 3600
"""Ended jobs, their chunks and their logs are deleted after that long."""
LOG_LINES: Final = 10_000
"""Kept of each job."""
Records = list[dict[str, Any]]
Chunk = tuple[Any, list[Any]]

START: Final = {"cursor": None, "done": 0, "failed": 0}
_FRESH: Final[dict[str, Any]] = {
    "state": "pending",
    "owner": None,
    "resume": START,
    "progress": {"done": 0, "failed": 0, "rate": None, "eta": None},
    "failures": {"count": 0, "first": []},
    "finished": None,
    "error": None,
    "blocked_by": None,
    "hold": None,
}
"""What a job that is queued again forgets."""


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
        ``{"ids": [...]}``, ``{"batch": id, "chunks": n}`` or ``{"filter": Extended JSON}``.
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
            **_FRESH,
            "parents": list(self.parents),
            "work": self.work,
            "progress": {**_FRESH["progress"], "total": self.total},
            "attempts": 0,
            "retry_failed": False,
            "created": datetime.now(UTC),
            "started": None,
            "worker": None,
            "logged": 0,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes
    ----------
    resume : dict
        Where another executor goes on: ``cursor`` (everything up to here is done: the number of the last chunk, or the
        last ``_id``), with the ``done`` and ``failed`` documents up to there.
    done, failed : int
        All documents so far.
    first : tuple of dict
        The first failures: ``{"_id", "error"}``.
    rate : float or None
        Documents a second, lately.
    eta : float or None
        Seconds that it will still take.
    worker : str or None
        Who did the last of it.
    """

    resume: dict[str, Any]
    done: int
    failed: int
    first: tuple[dict[str, Any], ...]
    rate: float | None = None
    eta: float | None = None
    worker: str | None = None


class JobStore:
    """The jobs of one database.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose jobs.
    """

    def __init__(self, database: Database[Any]) -> None:
        self.database = plain_database(database)
        self._logs = self.database.get_collection(LOGS, write_concern=WriteConcern(w=1))

    @cached_property
    def _jobs(self) -> Collection[dict[str, Any]]:
        # Behind mongos the jobs and the data may lie on different shards, whose oplogs have no common order.
        order = None if self.database.client.is_mongos else WriteConcern(w=1)
        return self.database.get_collection(COLLECTION, write_concern=order)

    def prepare(self) -> None:
        """Make the indexes, those that delete what is old among them."""
        self._jobs.create_index("state", sparse=True)
        self._jobs.create_index("parents", sparse=True)
        self._jobs.create_index("work.batch", sparse=True)
        self._jobs.create_index("finished", expireAfterSeconds=KEEP_S)
        self._logs.create_index([("job", 1), ("n", 1)])
        self._logs.create_index("time", expireAfterSeconds=KEEP_S)

    def exists(self) -> bool:
        """Say whether this database has jobs at all."""
        return self._jobs.find_one({}, {"_id": 1}) is not None

    # --- writers -----------------------------------------------------------------------------------------------

    def create(self, jobs: Sequence[NewJob], *, session: ClientSession | None = None, held: bool = False) -> None:
        """Record jobs.

        Parameters
        ----------
        jobs : sequence of NewJob
            Parents before their children.
        session : ClientSession, optional
            They are part of its transaction.
        held : bool, default False
            Nobody begins before `release` was called, or a lease's time has passed.
        """
        if held and jobs:
            self._jobs.bulk_write([_held(job) for job in jobs], session=session)
        elif jobs:
            self._jobs.insert_many([job.record() for job in jobs], session=session)

    def release(self, ids: Some[str], *, session: ClientSession | None = None) -> None:
        """Let held jobs begin; those that were begun because their hold had lapsed begin again."""
        early = {"$in": ["$state", ["running", "succeeded"]]}
        again = {name: value for name, value in _FRESH.items() if name != "progress"}
        again |= {"progress.done": 0, "progress.failed": 0}
        fresh = {name: {"$cond": [early, {"$literal": value}, f"${name}"]} for name, value in again.items()}
        held = {"_id": {"$in": list(ids)}, "hold": {"$ne": None}}
        self._jobs.update_many(held, [{"$set": {**fresh, "hold": None}}], session=session)

    def create_batch(self, ids: Iterable[Any], *, session: ClientSession | None = None) -> dict[str, Any]:
        """Store identifiers, many of them as chunk documents; return the ``work`` that stands for them."""
        parts = [list(part) for part in partition_all(CHUNK_SIZE, ids)]
        if len(parts) <= 1 and sum(map(len, parts)) <= _INLINE:
            return {"ids": parts[0] if parts else []}
        batch = str(ObjectId())
        chunks = [{"_id": _chunk_id(batch, n), "kind": "chunk", "ids": part} for n, part in enumerate(parts)]
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

    def active(self, collection: str) -> tuple[str, ...]:
        """Return the jobs of a collection that have not ended."""
        query = {"state": {"$in": list(ACTIVE_STATES)}, "collection": collection}
        return tuple(job["_id"] for job in self._jobs.find(query, {"_id": 1}))

    def logs(self, id: str, since: int = 0) -> Records:
        """List what a job printed, from line `since` on."""
        self.get(id)
        lines = self._logs.find({"job": id, "n": {"$gte": since}}, {"_id": 0})
        return list(lines.sort("n", 1).limit(1000))

    def next_chunk(self, record: dict[str, Any], cursor: Any) -> Chunk | None:
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
            return self._stored_chunk(work, 0 if cursor is None else cursor + 1)
        return self._scanned_chunk(record["collection"], json_util.loads(work["filter"]), cursor)

    def _stored_chunk(self, work: dict[str, Any], n: int) -> Chunk | None:
        if n >= work["chunks"]:
            return None
        chunk = self._jobs.find_one({"_id": _chunk_id(work["batch"], n)})
        if chunk is None:
            raise NotFoundError("The list of this job's documents was deleted; update them to queue them again.")
        return n, chunk["ids"]

    def _scanned_chunk(self, collection: str, query: dict[str, Any], cursor: Any) -> Chunk | None:
        # $expr compares across BSON types, as the sort does; a plain $gt sees only the cursor's own type.
        rest = query if cursor is None else {"$and": [query, {"$expr": {"$gt": ["$_id", {"$literal": cursor}]}}]}
        found = self.database[collection].find(rest, {"_id": 1}).sort("_id", 1).limit(CHUNK_SIZE)
        ids = [document["_id"] for document in found]
        return (ids[-1], ids) if ids else None

    def ready(self, *, only: Some[str] | None = None, without: Some[str] = (), limit: int = 100) -> Records:
        """List the jobs that may be claimed now, oldest first: parents succeeded, and nobody works on them.

        Those that wait for a parent that did not succeed are marked as blocked on the way, should its executor have
        died before it could.
        """
        found: Records = []
        which = {"$nin": list(without)} if only is None else {"$in": list(only)}
        for job in self._jobs.find({"_id": which, **_free()}).sort("_id", 1):
            bad = [id for id, state in self._parents(job).items() if state in ("failed", "cancelled", "blocked")]
            if bad:
                self._block(bad[0])
            # A parent that is gone was cleaned up after it succeeded.
            elif all(state == "succeeded" for state in self._parents(job).values()):
                found.append(job)
            if len(found) == limit:
                break
        return found

    def _parents(self, job: dict[str, Any]) -> dict[str, str]:
        if not job["parents"]:
            return {}
        return {p["_id"]: p["state"] for p in self._jobs.find({"_id": {"$in": job["parents"]}}, {"state": 1})}

    # --- the executor's side -----------------------------------------------------------------------------------

    def claim(self, id: str, owner: str) -> dict[str, Any] | None:
        """Take a ready job under a lease; return its record, or None if someone else was quicker."""
        change = {
            "state": "running",
            "owner": owner,
            "lease": {"$add": ["$$NOW", LEASE_MS]},
            "started": {"$ifNull": ["$started", "$$NOW"]},
            "attempts": {"$add": ["$attempts", 1]},
        }
        return self._jobs.find_one_and_update(
            {"_id": id, **_free()}, [{"$set": change}], return_document=ReturnDocument.AFTER
        )

    def report(self, id: str, owner: str, progress: Progress) -> bool:
        """Record progress and renew the lease; False when the job is no longer this owner's."""
        change = {
            "resume": {"$literal": progress.resume},
            "progress.done": progress.done,
            "progress.failed": progress.failed,
            "progress.rate": progress.rate,
            "progress.eta": progress.eta,
            "failures": {"$literal": {"count": progress.failed, "first": list(progress.first)}},
            "worker": {"$literal": progress.worker},
            "lease": {"$add": ["$$NOW", LEASE_MS]},
        }
        return self._owned(id, owner, change)

    def owns(self, id: str, owner: str) -> bool:
        """Say whether a job still runs under this owner: it was neither cancelled nor taken over."""
        return self._jobs.find_one({"_id": id, "owner": owner, "state": "running"}, {"_id": 1}) is not None

    def finish(self, id: str, owner: str, state: str, error: dict[str, Any] | None = None) -> bool:
        """Record the end of a job and, where it failed, block what waits for it; False when it is no longer ours."""
        change: dict[str, Any] = {"state": state, "finished": "$$NOW", "error": {"$literal": error}}
        change |= {"progress.rate": None, "progress.eta": None}
        if state == "succeeded":
            change["progress.total"] = "$progress.done"
        if not self._owned(id, owner, change):
            return False
        if state != "succeeded":
            self._block(id)
        return True

    def let_go(self, owner: str) -> None:
        """End the leases of an owner that stops, so that another need not wait for them to lapse."""
        running = {"state": "running", "owner": owner}
        self._jobs.update_many(running, [{"$set": {"lease": {"$subtract": ["$$NOW", 1]}, "owner": None}}])

    def forget_chunks(self, record: dict[str, Any]) -> None:
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

    def log(self, id: str, lines: Sequence[dict[str, Any]]) -> None:
        """Append ``{"time", "text", "stream"}`` lines to what a job printed; the first ten thousand are kept."""
        before = self._jobs.find_one_and_update({"_id": id}, {"$inc": {"logged": len(lines)}}, {"logged": 1})
        if before is None or before["logged"] >= LOG_LINES:
            return
        kept = [{"job": id, "n": n, **line} for n, line in enumerate(lines, before["logged"]) if n < LOG_LINES]
        if len(kept) < len(lines):
            kept[-1] |= {"text": f"… no more is kept than {LOG_LINES} lines of a job", "stream": "note"}
        self._logs.insert_many(kept)

    def note(self, id: str, text: str) -> None:
        """Let a job say something of itself, in a line."""
        self._jobs.update_one({"_id": id}, {"$set": {"note": text}})

    def _owned(self, id: str, owner: str, change: dict[str, Any]) -> bool:
        result = self._jobs.update_one({"_id": id, "owner": owner, "state": "running"}, [{"$set": change}])
        return result.matched_count == 1

    def _block(self, id: str) -> None:
        blocked = {"state": "blocked", "blocked_by": id, "finished": datetime.now(UTC)}
        self._jobs.update_many({"parents": id, "state": "pending"}, {"$set": blocked})
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
            self.forget_chunks(self.get(id))
        return self.get(id)

    def retry(self, id: str) -> dict[str, Any]:
        """Queue an ended job again with the documents that failed, and release what was blocked by it."""
        record = self.get(id)
        if record["state"] in ACTIVE_STATES or (record["state"] == "succeeded" and not record["failures"]["count"]):
            raise InvalidInputError(f"Job {id} is {record['state']}: there is nothing to retry.")
        self._queue_again(id)
        return self.get(id)

    def behind(self, id: str) -> Records:
        """List the jobs that wait for a job, directly or not, parents first."""
        children = list(self._jobs.find({"parents": id}).sort("_id", 1))
        return children + [job for child in children for job in self.behind(child["_id"])]

    def _queue_again(self, id: str) -> None:
        fresh = {name: value for name, value in _FRESH.items() if name != "progress"}
        fresh |= {f"progress.{name}": value for name, value in _FRESH["progress"].items()}
        if batch := self.get(id)["work"].get("batch"):
            self._jobs.update_many(_chunks(batch), {"$unset": {"finished": ""}})
        self._jobs.update_one({"_id": id}, {"$set": {**fresh, "retry_failed": True}})
        # Children that ran did so without the documents that failed here.
        for child in self._jobs.find({"parents": id, "state": {"$in": ["blocked", "succeeded"]}}, {"_id": 1}):
            self._queue_again(child["_id"])


def _free() -> dict[str, Any]:
    """Match what nobody works on: not on hold, or claimed by someone who fell silent."""
    pending = {"state": "pending", "$expr": {"$lt": ["$hold", "$$NOW"]}}
    return {"$or": [pending, {"state": "running", "$expr": {"$lt": ["$lease", "$$NOW"]}}]}


def _held(job: NewJob) -> UpdateOne:
    hold = {"hold": {"$add": ["$$NOW", LEASE_MS]}}
    record = {"$replaceWith": {"$mergeObjects": [{"$literal": job.record()}, hold]}}
    return UpdateOne({"_id": job.id}, [record], upsert=True)  # an upsert, for the server's clock


def _chunks(batch: str) -> dict[str, Any]:
    return {"_id": {"$gte": f"{batch}:", "$lt": f"{batch};"}}


def _chunk_id(batch: str, n: int) -> str:
    return f"{batch}:{n:08d}"
