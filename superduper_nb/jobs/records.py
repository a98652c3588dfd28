"""Job records (collection ``_sddb.jobs``): the queue itself. Executors come and go, the record stays.

A job is claimed under a lease that its executor renews; whoever finds a lapsed lease claims the job anew and goes on
where the record says. Leases compare the server's time with the server's time, and each later write of an executor
names it as owner: one that was overtaken changes nothing any more.

A writer records jobs before the data, on hold; it releases them when the data is written. Nobody claims a job on hold,
and a hold lapses like a lease: a writer that dies leaves jobs that find nothing to do, never data that is never
computed. The records are written with ``w: 1``: the oplog keeps the order, so the majority's word on the data, or on
the outputs, covers the records written before, and a claim or a progress report that is lost only repeats work.
"""

from __future__ import annotations

from collections.abc import Collection as Some
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from pymongo import IndexModel, ReturnDocument, UpdateOne, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database

from superduper_nb.components.store import plain_database
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.jobs.chunks import ChunkStore
from superduper_nb.jobs.values import ACTIVE_STATES, FRESH, STATES, NewJob, Progress

__all__ = ["COLLECTION", "KEEP_S", "LOGS", "JobStore"]

COLLECTION: Final = "_sddb.jobs"
LOGS: Final = "_sddb.logs"
LEASE_MS: Final = 30_000
KEEP_S: Final = 14 * 24 * 3600
"""Ended jobs, their chunks and their logs are deleted after that long."""
LOG_LINES: Final = 10_000
"""Kept of each job."""
Records = list[dict[str, Any]]


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

    @cached_property
    def chunks(self) -> ChunkStore:
        """What they have to do, in parts."""
        return ChunkStore(self._jobs)

    def prepare(self) -> None:
        """Make the indexes, those that delete what is old among them.

        Those of a collection together: MongoDB takes 0.1 s whenever it builds some.
        """
        asked = [IndexModel(key, sparse=True) for key in ("state", "parents", "work.batch")]
        self._jobs.create_indexes([*asked, IndexModel("finished", expireAfterSeconds=KEEP_S)])
        numbered = IndexModel([("job", 1), ("n", 1)])
        self._logs.create_indexes([numbered, IndexModel("time", expireAfterSeconds=KEEP_S)])

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
        again = {name: value for name, value in FRESH.items() if name != "progress"}
        again |= {"progress.done": 0, "progress.failed": 0}
        fresh = {name: {"$cond": [early, {"$literal": value}, f"${name}"]} for name, value in again.items()}
        held = {"_id": {"$in": list(ids)}, "hold": {"$ne": None}}
        self._jobs.update_many(held, [{"$set": {**fresh, "hold": None}}], session=session)

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

    def backfilling(self, collection: str, component: str) -> str | None:
        """Return the newest job over all documents of a watcher, where one has not ended."""
        query = {"state": {"$in": list(ACTIVE_STATES)}, "kind": "outputs", "work.filter": {"$exists": True}}
        which = {"collection": collection, "component": component}
        found = self._jobs.find_one({**query, **which}, {"_id": 1}, sort=[("_id", -1)])
        return str(found["_id"]) if found else None

    def underway(self, kind: str, collection: str, component: str) -> Records:
        """Return the work of a component's jobs that have not ended, and name their documents.

        One on hold is not among them: should its writer die, it may have passed documents that came after its hold.
        """
        query = {"state": {"$in": list(ACTIVE_STATES)}, "hold": None, "work.filter": {"$exists": False}}
        which = {"kind": kind, "collection": collection, "component": component}
        return list(self._jobs.find({**query, **which}, {"collection": 1, "work": 1}).sort("_id", 1))

    def writing(self, collection: str) -> bool:
        """Say whether a client of ours is in the midst of a write to a collection."""
        held = {"state": "pending", "collection": collection, "$expr": {"$gt": ["$hold", "$$NOW"]}}
        return self._jobs.find_one(held, {"_id": 1}) is not None

    def logs(self, id: str, since: int = 0) -> Records:
        """List what a job printed, from line `since` on."""
        self.get(id)
        lines = self._logs.find({"job": id, "n": {"$gte": since}}, {"_id": 0})
        return list(lines.sort("n", 1).limit(1000))

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

    def log(self, id: str, lines: Sequence[dict[str, Any]]) -> None:
        """Append ``{"time", "text", "stream"}`` lines to what a job printed; the first ten thousand are kept."""
        before = self._jobs.find_one_and_update({"_id": id}, {"$inc": {"logged": len(lines)}}, {"logged": 1})
        if before is None or before["logged"] >= LOG_LINES:
            return
        kept = [{"job": id, "n": n, **line} for n, line in enumerate(lines, before["logged"]) if n < LOG_LINES]
        if len(kept) < len(lines):
            kept[-1] |= {"text": f"… no more is kept than {LOG_LINES} lines of a job", "stream": "note"}
        self._logs.insert_many(kept)

    def note(self, id: str, text: str, curves: Sequence[Mapping[str, Any]] = ()) -> None:
        """Let a job say something of itself: in a line, and as curves, ``{"name", "steps", "values"}`` each."""
        self._jobs.update_one({"_id": id}, {"$set": {"note": text, "curves": list(curves)}})

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
            self.chunks.forget(self.get(id))
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
        fresh = {name: value for name, value in FRESH.items() if name != "progress"}
        fresh |= {f"progress.{name}": value for name, value in FRESH["progress"].items()}
        self.chunks.keep(self.get(id))
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
