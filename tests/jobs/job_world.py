"""What the tests of jobs share: registering, planning, and an oracle that counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import bson
import psutil
from bson import json_util
from pymongo.database import Database

from superduper_nb.cluster.dask import WorkerLostError
from superduper_nb.documents.paths import get_path
from superduper_nb.jobs import FINAL_STATES, JobStore, NewJob
from superduper_nb.jobs.foreground import run_foreground
from superduper_nb.jobs.outputs import Outcome, Refresh
from superduper_nb.jobs.watchers import Watcher, plan
from superduper_nb.models.loading import Loader
from tests.waiting import until


class World:
    """A database with models and watchers, and the writes of a client that plans jobs."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self.database = database
        self.docs = database["docs"]
        self.store = JobStore(database)
        self.loader = Loader(database)

    def model(self, id: str, obj: Any, **definition: Any) -> None:
        bundle = {"object": obj, "preprocess": None, "postprocess": None}
        settings = {"type": None, "batch_size": None, "device": "auto", **definition}
        self.loader.store.put("model", id, settings, obj=bundle)

    def watcher(self, model: str, key: str, **options: Any) -> Watcher:
        watcher = Watcher("docs", model, key, **options)
        self.loader.store.put("watcher", watcher.id, watcher.definition(), collection="docs")
        return watcher

    def watchers(self) -> list[Watcher]:
        return [Watcher.from_component(found) for found in self.loader.store.current("watcher", collection="docs")]

    def refresh(self, watcher: Watcher, **options: Any) -> Refresh:
        return Refresh(self.database, self.loader, watcher, **options)

    def run(self, watcher: Watcher, **options: Any) -> Outcome:
        """Bring all documents up to date, here."""
        return self.refresh(watcher, **options).run([found["_id"] for found in self.docs.find({}, {"_id": 1})])

    def jobs_for(self, ids: Iterable[Any], *, held: bool = False) -> dict[str, str]:
        """Record the jobs that follow a write of these documents."""
        ids, new = list(ids), {}
        work = self.store.chunks.create(ids)
        for watcher, before in plan(self.watchers()):
            parents = tuple(new[name].id for name in before)
            new[watcher.id] = NewJob("outputs", watcher.id, "docs", watcher.id, work, len(ids), parents)
        self.store.create(list(new.values()), held=held)
        return {name: job.id for name, job in new.items()}

    def insert(self, documents: list[dict[str, Any]]) -> dict[str, str]:
        """Insert documents as the client does: jobs first, on hold."""
        jobs = self.jobs_for([document["_id"] for document in documents], held=True)
        self.docs.insert_many(documents)
        self.store.release(list(jobs.values()))
        return jobs

    def backfill(self, watcher: Watcher) -> str:
        """Record a job over all documents that a watcher's filter selects."""
        work = {"filter": json_util.dumps(dict(watcher.filter))}
        job = NewJob("outputs", watcher.id, "docs", watcher.id, work, self.docs.estimated_document_count())
        self.store.create([job])
        return job.id

    def here(self, jobs: Iterable[str]) -> None:
        """Run jobs in this process."""
        run_foreground(self.database, self.loader, list(jobs))

    def ended(self, id: str, timeout: float = 60) -> dict[str, Any]:
        """Wait for a job's end; return its record."""

        def look() -> dict[str, Any] | None:
            record = self.store.get(id)
            return record if record["state"] in FINAL_STATES else None

        record: dict[str, Any] = until(look, f"the end of job {id}", timeout)
        return record


@dataclass
class Oracle:
    """Compares what is in MongoDB with what was acknowledged, and with the model applied here."""

    world: World
    watcher: Watcher
    model: Callable[[Any], Any]
    version: int = 1

    def check(self, acknowledged: Iterable[Any], *, failed: Iterable[Any] = ()) -> dict[str, int]:
        """Count what is wrong."""
        present = {_key(document["_id"]): document for document in self.world.docs.find()}
        expected, excused = set(map(_key, acknowledged)), set(map(_key, failed))
        unfinished = {"state": {"$exists": True, "$nin": list(FINAL_STATES)}}
        wrong = [key for key, found in present.items() if key not in excused and not self._right(found)]
        return {
            "lost": len(expected - present.keys()),
            "phantom": len(present.keys() - expected),
            "wrong": len(wrong),
            "unfinished": self.world.database["_sddb.jobs"].count_documents(unfinished),
        }

    def _right(self, document: dict[str, Any]) -> bool:
        output = get_path(document, self.watcher.output_path, None)
        token = get_path(document, self.watcher.token_path, None)
        value = self.model(get_path(document, self.watcher.key))
        return bool(token and output == value and token["v"] == self.version and "error" not in token)


class Effects:
    """Counts how often each output was written, as MongoDB's change stream tells it, from now on.

    Parameters
    ----------
    database : pymongo.database.Database
        With the documents of a `World`.
    watcher : Watcher
        Whose outputs.
    """

    def __init__(self, database: Database[dict[str, Any]], watcher: Watcher) -> None:
        self._docs, self._watcher, self._begun = database[watcher.collection], watcher, _now(database)

    def count(self) -> dict[str, int]:
        """Count the outputs that stand there and were ``unseen`` when written, or written twice (``doubled``)."""
        written = Counter(self._written())
        tokens = self._docs.find({self._watcher.token_path: {"$exists": True}}, {self._watcher.token_path: 1})
        standing = {_effect(found["_id"], get_path(found, self._watcher.token_path)) for found in tokens}
        return {
            "unseen": len(standing - written.keys()),
            "doubled": sum(times > 1 for times in written.values()),
        }

    def _written(self) -> Iterator[bytes]:
        until, updates = _now(self._docs.database), [{"$match": {"operationType": "update"}}]
        with self._docs.watch(updates, start_at_operation_time=self._begun, batch_size=1000) as stream:
            while (event := stream.try_next()) and event["clusterTime"] <= until:
                changed = _nested(event["updateDescription"]["updatedFields"])
                if token := get_path(changed, self._watcher.token_path, None):
                    yield _effect(event["documentKey"]["_id"], token)


def _now(database: Database[dict[str, Any]]) -> bson.Timestamp:
    now: bson.Timestamp = database.client.admin.command("hello")["operationTime"]
    return now


def _effect(id: Any, token: dict[str, Any]) -> bytes:
    return bytes(bson.encode({"id": id, "v": token["v"], "h": token["h"]}))


def _nested(changed: dict[str, Any]) -> dict[str, Any]:
    """Undo the dots: the fields of an update are named by the highest path that is new."""
    nested: dict[str, Any] = {}
    for path, value in changed.items():
        *above, last = path.split(".")
        inner = nested
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return nested


GOOD = {"lost": 0, "phantom": 0, "wrong": 0, "unfinished": 0}


def _key(id: Any) -> bytes:
    return bytes(bson.encode({"": id}))


def descendants(pid: int) -> list[psutil.Process]:
    """List the processes below one."""
    return list(psutil.Process(pid).children(recursive=True))


def lost_worker() -> WorkerLostError:
    """Return what a pool says of a task with which a worker died, another one each time."""
    return WorkerLostError("killed", uuid4().hex)


class ThreadPool:
    """A pool of threads: the dispatcher's work without the time that worker processes take to start."""

    def __init__(self, threads: int = 2) -> None:
        self._executor = ThreadPoolExecutor(threads)
        self.submitted: list[tuple[str, int]] = []
        self.lose: Callable[[list[Any]], BaseException | None] = lambda ids: None

    def submit(self, key: str, function: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        _, job, ids, _ = args
        self.submitted.append((job["_id"], len(ids)))
        return self._executor.submit(self._run, function, args, ids)

    def _run(self, function: Callable[..., Any], args: Any, ids: list[Any]) -> Any:
        if error := self.lose(ids):
            raise error
        return function(*args)

    def subscribe(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> None:
        """Nothing is told: threads have no events."""

    def threads(self) -> int:
        """Leave it to each test how much is in flight."""
        return 0
