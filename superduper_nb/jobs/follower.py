"""Makes writes of any program do what those of our client do: it follows change streams and records the jobs.

One follower a database, under a lease. What changed is noted, and when no job of the collection is under way (our
client's own writes bring theirs along) the documents are looked at: those whose outputs are not current, or that have
something to fetch, get jobs, in the same plan as ever. The place in the stream is stored after that, so a crash repeats
a look and skips nothing. Where the stream can't be resumed, everything is looked at.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from bson import Timestamp
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from toolz import partition_all

from superduper_nb.components.store import Component, ComponentStore, plain_database
from superduper_nb.errors import NotFoundError
from superduper_nb.jobs.backfill import matching
from superduper_nb.jobs.changes import Change, Noted, changes_of, untouched
from superduper_nb.jobs.downloads import with_downloads
from superduper_nb.jobs.foreground import owner_name
from superduper_nb.jobs.outputs import Refresh
from superduper_nb.jobs.records import COLLECTION, LEASE_MS, JobStore
from superduper_nb.jobs.tasks import is_passing
from superduper_nb.jobs.underway import Underway
from superduper_nb.jobs.upkeep import DOWNLOAD, WHOLE_COLLECTION, Step, Work, new_jobs, upkeep_of
from superduper_nb.jobs.values import ACTIVE_STATES, NewJob
from superduper_nb.jobs.watchers import Watcher, plan
from superduper_nb.models.loading import Loader
from superduper_nb.search.ids import id_key

__all__ = ["Follower"]

log = logging.getLogger(__name__)

_LOOK_FOR_DATABASES_S: Final = 2.0
_RENEW_EVERY_S: Final = 5.0
_SAVE_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 10.0
"""So long are changed documents kept back while jobs are under way that may well be theirs."""
_MANY: Final = 1000
_TOO_MANY: Final = 100_000
"""So many changes are kept back at most."""
_AT_ONCE: Final = 10_000
"""So many of them are looked at, and get jobs, together."""
_ACT_EVERY_S: Final = 0.2
_WRITE_S: Final = 1.0
"""So long at most the stream is not read because somebody is writing; then it is read for as long."""
_STEP_S: Final = 0.05
_PAUSE_S: Final = 1.0
_UNRESUMABLE: Final = {260, 280, 286}  # InvalidResumeToken, ChangeStreamFatalError, ChangeStreamHistoryLost
_NO_STREAMS: Final = 40573


class Follower:
    """Follows every database that has watchers.

    Parameters
    ----------
    client : pymongo.MongoClient
        A deployment with change streams (a replica set).
    on_jobs : callable
        Called with the name of a database in which jobs were recorded (`Dispatcher.notify`).
    """

    def __init__(self, client: MongoClient[dict[str, Any]], on_jobs: Callable[[str], None]) -> None:
        self._client, self._on_jobs = client, on_jobs
        self._stop = threading.Event()
        self._followed: dict[str, threading.Thread] = {}
        self._thread = threading.Thread(target=self._run, name="superduper-follower", daemon=True)

    def start(self) -> None:
        """Begin, in threads of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop; the next follower goes on where this one was."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        for thread in self._followed.values():
            thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(PyMongoError):
                for name in (
                    set(self._client.list_database_names()) - {"admin", "config", "local"} - set(self._followed)
                ):
                    if ComponentStore(self._client[name]).current("watcher"):
                        follow = _Database(self._client, name, self._on_jobs, self._stop).run
                        self._followed[name] = threading.Thread(target=follow, name=f"follow-{name}", daemon=True)
                        self._followed[name].start()
            self._stop.wait(_LOOK_FOR_DATABASES_S)


class _Database:
    """Follows one database."""

    def __init__(
        self, client: MongoClient[dict[str, Any]], name: str, on_jobs: Callable[[str], None], stop: threading.Event
    ) -> None:
        self._database = plain_database(client[name])
        self._on_jobs, self._stop = on_jobs, stop
        self._owner = f"{owner_name()}:{uuid.uuid4().hex[:6]}"
        self._store, self._loader = JobStore(self._database), Loader(self._database)
        self._underway = Underway(self._store)
        self._noted: dict[str, Noted] = {}
        self._deleted: dict[str, datetime] = {}
        """For each collection, when something was last deleted."""
        self._once: set[str] = set()
        """Collections in which no identifier was inserted twice since the jobs that are under way were recorded."""
        self._since = self._renewed = self._saved = self._acted = self._reads_until = 0.0

    def run(self) -> None:
        """Follow until stopped, whatever happens to the stream."""
        while not self._stop.is_set():
            try:
                if self._lease():
                    self._follow()
                else:
                    self._stop.wait(_RENEW_EVERY_S)
            except OperationFailure as error:
                self._refused(error)
            except PyMongoError as error:
                log.debug("The follower of %s waits for MongoDB (%s)", self._database.name, type(error).__name__)
                self._stop.wait(_PAUSE_S)
            except Exception:  # one surprise must not end it for good
                log.exception("The follower of %s stumbled; it goes on", self._database.name)
                self._stop.wait(_RENEW_EVERY_S)
        with suppress(PyMongoError):
            self._database["_sddb.leases"].delete_one({"_id": "follower", "owner": self._owner})

    def _refused(self, error: OperationFailure) -> None:
        """Begin anew where the stored place is what MongoDB can't make sense of; wait where it is something else."""
        resumed = self._database["_sddb.follow"].find_one({"_id": "outputs", "token": {"$exists": True}})
        if error.code == _NO_STREAMS:
            log.warning("MongoDB is no replica set: writes of other programs start no jobs in %s.", self._database.name)
            self._stop.wait()
        elif resumed and not is_passing(error):
            self._look_at_everything()
        elif error.code in _UNRESUMABLE:
            self._look_at_everything()
            self._stop.wait(_PAUSE_S)
        else:
            log.warning("The changes of %s can't be followed: %s", self._database.name, error)
            self._stop.wait(_RENEW_EVERY_S)

    def _lease(self) -> bool:
        """Take or keep the lease; False where another follower has it."""
        leases = self._database["_sddb.leases"]
        with suppress(DuplicateKeyError):
            leases.insert_one({"_id": "follower", "owner": None, "until": None})
        free = {"$or": [{"owner": self._owner}, {"$expr": {"$lt": ["$until", "$$NOW"]}}]}
        until = {"owner": self._owner, "until": {"$add": ["$$NOW", LEASE_MS]}}
        self._renewed = time.monotonic()
        return leases.update_one({"_id": "follower", **free}, [{"$set": until}]).matched_count == 1

    # --- the stream ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        self._noted.clear()  # what was noted and not stored comes again
        self._deleted.clear()
        collections, looked = self._collections(), time.monotonic()
        first = self._database["_sddb.follow"].find_one({"_id": "outputs"}) is None
        self._once = {name for name in collections if first or not self._busy(name)}
        pipeline = changes_of(sorted(collections))
        with self._database.watch(pipeline, max_await_time_ms=200, batch_size=_MANY, **self._start()) as stream:
            while not self._stop.is_set() and stream.alive:
                if time.monotonic() - looked > _LOOK_FOR_DATABASES_S:
                    looked = time.monotonic()
                    if self._collections() != collections:
                        self._go_back()
                        return
                self._let_write()
                event = None if self._full() else stream.try_next()
                if event is not None:
                    self._note(event)
                if (event is None or self._overdue()) and self._act() and stream.resume_token:
                    self._save(dict(stream.resume_token))
                if time.monotonic() - self._renewed > _RENEW_EVERY_S and not self._lease():
                    return
        if not self._stop.is_set():  # the database was dropped: its stream can't be resumed, and there is nothing left
            self._database["_sddb.follow"].delete_one({"_id": "outputs"})
            self._stop.wait(_PAUSE_S)

    def _full(self) -> bool:
        """Say whether too much is kept back to read on; that lasts no longer than a client's write, or its hold."""
        return self._count() >= _TOO_MANY and (self._stop.wait(_STEP_S) or True)

    def _let_write(self) -> None:
        """Wait while a client of ours is in the midst of a write: to read what it writes would take MongoDB from it."""
        if (begun := time.monotonic()) < self._reads_until:
            return
        held, now = {"state": "pending", "hold": {"$ne": None}}, begun
        while self._database[COLLECTION].find_one(held, {"_id": 1}) and now - begun < _WRITE_S:
            if self._stop.wait(_STEP_S):
                break
            now = time.monotonic()
        self._reads_until = now + max(_STEP_S, now - begun)

    def _collections(self) -> set[str]:
        return {watcher.collection for watcher in self._watchers()}

    def _go_back(self) -> None:
        """Begin anew, with another set of collections, at the time when the newest watcher was registered."""
        created = [watcher.created for watcher in self._watchers()]
        if created and self._act():
            since = Timestamp(max(created), 1)
            self._database["_sddb.follow"].replace_one({"_id": "outputs"}, {"time": since}, upsert=True)

    def _start(self) -> dict[str, Any]:
        """Return where to begin: where the last follower was, else when the first watcher was registered."""
        if place := self._database["_sddb.follow"].find_one({"_id": "outputs"}):
            return {"resume_after": place["token"]} if "token" in place else {"start_at_operation_time": place["time"]}
        created = [watcher.created for watcher in self._watchers()]
        return {"start_at_operation_time": Timestamp(min(created), 1)} if created else {}

    def _save(self, token: dict[str, Any]) -> None:
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self._saved = time.monotonic()
            self._database["_sddb.follow"].replace_one({"_id": "outputs"}, {"token": token}, upsert=True)

    def _note(self, event: dict[str, Any]) -> None:
        collection = event["ns"]["coll"]
        if not self._noted:
            self._since = time.monotonic()
        noted = self._noted.setdefault(collection, Noted(self._database.codec_options))
        if event["operationType"] == "delete":
            self._once.discard(collection)
            later = event["clusterTime"].as_datetime() + timedelta(seconds=1)
            self._deleted[collection] = event.get("wallTime", later)  # before MongoDB 6 only to the second
            return
        noted.note(Change.of(event))

    def _overdue(self) -> bool:
        """Say whether to look at what was noted although the stream has not come to rest."""
        return time.monotonic() - self._acted > _ACT_EVERY_S and self._count() >= _MANY

    def _count(self) -> int:
        return sum(map(len, self._noted.values()))

    # --- what follows --------------------------------------------------------------------------------------------

    def _watchers(self) -> Sequence[Component]:
        return self._loader.store.current("watcher")

    def _act(self) -> bool:
        """Record jobs for what was noted; False when something is kept back."""
        self._acted = time.monotonic()
        for collection in list(self._noted):
            patient = self._acted - self._since < _PATIENCE_S and self._count() < _TOO_MANY
            busy = self._busy(collection)
            if busy and (patient or self._store.writing(collection)):
                continue
            if not busy:
                self._once.add(collection)
            parts = self._noted.pop(collection).parts(_AT_ONCE)
            self._plan(collection, next(parts, ()), self._deleted.pop(collection, None))
            for part in parts:
                self._plan(collection, part)
        return not self._noted

    def _busy(self, collection: str) -> bool:
        active = {"state": {"$in": list(ACTIVE_STATES)}, "collection": collection}
        return self._database[COLLECTION].find_one(active, {"_id": 1}) is not None

    def _plan(self, collection: str, noted: Sequence[Change], deleted: datetime | None = None) -> None:
        paths = [change.paths for change in noted]
        changed = None if None in paths else set().union(*(p for p in paths if p is not None))
        upkeep = upkeep_of(self._loader.store, collection)
        fetching, content = self._fetching(collection, noted)
        planned = plan(upkeep.watchers, changed)
        stale = [id for part in partition_all(_MANY, noted) for id in self._stale(planned, part)]
        steps = upkeep.steps(changed, content) if stale or fetching else []
        if deleted is not None:
            names = {step.name for step in steps}
            steps += [
                step
                for step in upkeep.after_delete()
                if step.name not in names and not self._revised(collection, step, deleted)
            ]
        self._record(collection, steps, list({id_key(id): id for id in (*stale, *fetching)}.values()), fetching)

    def _revised(self, collection: str, step: Step, since: datetime) -> bool:
        """Say whether a neighbourhood was looked at since then: that of our own client's deletion, say."""
        done = {"kind": step.kind, "component": step.component, "collection": collection, "state": "succeeded"}
        return self._database[COLLECTION].find_one({**done, "started": {"$gte": since}}, {"_id": 1}) is not None

    def _record(self, collection: str, steps: Sequence[Step], ids: list[Any], fetching: list[Any]) -> None:
        if not steps:
            return
        work: dict[str, Work] = {"neighbours": WHOLE_COLLECTION}
        for kind, those in (("outputs", ids), (DOWNLOAD, fetching)):
            if those:
                work[kind] = self._store.chunks.create(those), len(those)
        self._store.create(list(new_jobs(steps, collection, work).values()))
        self._on_jobs(self._database.name)

    def _fetching(self, collection: str, noted: Sequence[Change]) -> tuple[list[Any], set[str]]:
        """Return the documents that have something to fetch, and where."""
        found: list[Any] = []
        places: set[str] = set()
        for part in partition_all(_MANY, noted):
            some, where = with_downloads(self._database[collection], [change.id for change in part])
            named = self._named(DOWNLOAD, collection, "", untouched(part)) if some else set()
            found += [id for id in some if id_key(id) not in named]
            places |= where
        return found, places

    def _named(self, kind: str, collection: str, component: str, inserted: Sequence[Any]) -> set[Any]:
        """Return the keys of those documents that a job under way is still to come to."""
        return self._underway.names(kind, collection, component, inserted) if collection in self._once else set()

    def _stale(self, planned: Sequence[tuple[Watcher, tuple[str, ...]]], changes: Sequence[Change]) -> Iterator[Any]:
        """Yield those of which an output is not current."""
        left, new = [change.id for change in changes], untouched(changes)
        for watcher, _ in planned:
            with suppress(NotFoundError):  # its model was deleted
                refresh = Refresh(self._database, self._loader, watcher)
                done = {id_key(id) for id in refresh.computed(new)}
                done |= self._named("outputs", watcher.collection, watcher.id, new)
                tasks, drops, _ = refresh.look([id for id in left if id_key(id) not in done])
                found = {id_key(id): id for id in (*(task.id for task in tasks), *(id for id, _ in drops))}
                yield from found.values()
                left = [id for id in left if id_key(id) not in found]

    def _look_at_everything(self) -> None:
        """Record jobs over all documents, also those that have an output and should have none, and begin anew."""
        log.warning("The changes of %s since the last time are no longer known: all is looked at.", self._database.name)
        now = self._database.client.admin.command("hello")["operationTime"]
        for collection in self._collections():
            upkeep = upkeep_of(self._loader.store, collection)
            total = self._database[collection].estimated_document_count()
            work: dict[str, Work] = {DOWNLOAD: (matching({}), total), "neighbours": WHOLE_COLLECTION}
            new: dict[str, NewJob] = {}
            for step in upkeep.steps(None, None):
                if step.kind == "outputs":
                    watcher = next(each for each in upkeep.watchers if each.id == step.component)
                    work["outputs"] = matching(_concerned(watcher)), total
                new |= new_jobs([step], collection, work, known=new)
            self._store.create(list(new.values()))
        self._database["_sddb.follow"].replace_one({"_id": "outputs"}, {"time": now}, upsert=True)
        self._on_jobs(self._database.name)


def _concerned(watcher: Watcher) -> dict[str, Any]:
    return {"$or": [dict(watcher.filter), {watcher.token_path: {"$exists": True}}]}
