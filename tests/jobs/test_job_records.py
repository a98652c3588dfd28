from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import bson
import pytest
from bson import ObjectId, json_util
from job_world import World
from pymongo.database import Database

from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.jobs import JobStore, NewJob
from superduper_nb.jobs.chunks import CHUNK_SIZE
from superduper_nb.jobs.records import LOG_LINES
from superduper_nb.jobs.values import Progress

DB = Database[dict[str, Any]]


def new(work: dict[str, Any] | None = None, *, parents: tuple[str, ...] = (), total: int = 3) -> NewJob:
    return NewJob("outputs", "m/x", "docs", "m/x", work or {"ids": [1, 2, 3]}, total, parents)


def lapse(database: DB, id: str, field: str = "lease") -> None:
    database["_sddb.jobs"].update_one({"_id": id}, {"$set": {field: datetime.now(UTC) - timedelta(seconds=1)}})


@pytest.fixture
def store(database: DB) -> JobStore:
    return JobStore(database)


def one(store: JobStore, **options: Any) -> str:
    job = new(**options)
    store.create([job])
    return job.id


def test_a_job_is_claimed_once(store: JobStore) -> None:
    id = one(store)
    claims = [store.claim(id, owner) for owner in ("a", "b")]
    assert claims[0] is not None
    assert claims[0]["owner"] == "a"
    assert claims[0]["attempts"] == 1
    assert claims[1] is None


def test_a_lapsed_lease_passes_on_and_the_first_owner_changes_nothing_more(store: JobStore, database: DB) -> None:
    id = one(store)
    store.claim(id, "a")
    lapse(database, id)
    taken = store.claim(id, "b")
    assert taken is not None
    assert taken["attempts"] == 2
    progress = Progress({"cursor": 0, "done": 3, "failed": 0}, 3, 0, ())
    assert not store.report(id, "a", progress)
    assert not store.finish(id, "a", "succeeded")
    assert not store.owns(id, "a")
    assert store.finish(id, "b", "succeeded")
    assert store.get(id)["state"] == "succeeded"


def test_a_report_renews_the_lease(store: JobStore, database: DB) -> None:
    id = one(store)
    store.claim(id, "a")
    lapse(database, id)
    assert store.report(id, "a", Progress({"cursor": None, "done": 0, "failed": 0}, 1, 0, ()))
    assert store.claim(id, "b") is None
    assert store.get(id)["progress"]["done"] == 1


def test_who_stops_in_order_leaves_its_jobs_to_the_next_at_once(store: JobStore) -> None:
    id = one(store)
    store.claim(id, "a")
    store.let_go("a")
    assert store.claim(id, "b") is not None


def test_a_held_job_waits_for_its_data(store: JobStore) -> None:
    job = new()
    store.create([job], held=True)
    assert store.ready() == []
    assert store.claim(job.id, "a") is None
    store.release([job.id])
    assert [found["_id"] for found in store.ready()] == [job.id]


def test_a_hold_lapses_and_a_late_release_begins_the_job_again(store: JobStore, database: DB) -> None:
    job = new()
    store.create([job], held=True)
    lapse(database, job.id, "hold")
    assert store.claim(job.id, "a") is not None
    store.report(job.id, "a", Progress({"cursor": 0, "done": 3, "failed": 0}, 3, 0, ()))
    store.finish(job.id, "a", "succeeded")
    store.release([job.id])
    again = store.claim(job.id, "b")
    assert again is not None
    assert again["resume"] == {"cursor": None, "done": 0, "failed": 0}
    assert again["progress"]["total"] == 3
    assert again["hold"] is None


def test_release_leaves_a_cancelled_job_alone(store: JobStore) -> None:
    job = new()
    store.create([job], held=True)
    store.cancel(job.id)
    store.release([job.id])
    assert store.get(job.id)["state"] == "cancelled"


def test_children_wait_for_their_parents_and_are_blocked_when_one_fails(store: JobStore) -> None:
    parent = new()
    child, grandchild = new(parents=(parent.id,)), None
    grandchild = new(parents=(child.id,))
    store.create([parent, child, grandchild])
    assert [job["_id"] for job in store.ready()] == [parent.id]
    store.claim(parent.id, "a")
    store.finish(parent.id, "a", "failed", {"type": "E", "message": "m", "traceback": ""})
    assert [store.get(job.id)["state"] for job in (child, grandchild)] == ["blocked", "blocked"]
    assert store.get(grandchild.id)["blocked_by"] == child.id
    store.retry(parent.id)
    assert {store.get(job.id)["state"] for job in (parent, child, grandchild)} == {"pending"}
    assert store.get(parent.id)["retry_failed"]


def test_a_child_whose_parent_failed_unseen_is_blocked_when_looked_for(store: JobStore, database: DB) -> None:
    parent = new()
    child = new(parents=(parent.id,))
    store.create([parent, child])
    database["_sddb.jobs"].update_one({"_id": parent.id}, {"$set": {"state": "failed"}})  # its executor died here
    assert store.ready() == []
    assert store.get(child.id)["state"] == "blocked"


def test_children_that_ran_without_the_failed_documents_run_again(store: JobStore, database: DB) -> None:
    parent = new()
    child = new(parents=(parent.id,))
    store.create([parent, child])
    for job in (parent, child):
        store.claim(job.id, "a")
        store.finish(job.id, "a", "succeeded")
    database["_sddb.jobs"].update_one({"_id": parent.id}, {"$set": {"failures.count": 1}})
    store.retry(parent.id)
    assert store.get(child.id)["state"] == "pending"


def test_what_has_nothing_to_retry_is_refused(store: JobStore) -> None:
    id = one(store)
    with pytest.raises(InvalidInputError, match="pending"):
        store.retry(id)


def test_a_cancelled_job_is_no_longer_owned(store: JobStore) -> None:
    id = one(store)
    store.claim(id, "a")
    store.cancel(id)
    assert not store.owns(id, "a")
    assert not store.finish(id, "a", "succeeded")
    assert store.get(id)["state"] == "cancelled"


MIXED = [1, 2.5, "a", "b", ObjectId(), uuid4().hex, True, datetime(2026, 1, 1), {"k": 1}, bson.Int64(7), b"xy", None]


def read_all(store: JobStore, record: dict[str, Any]) -> list[Any]:
    ids, cursor = [], None
    while chunk := store.chunks.after(record, cursor):
        cursor, part = chunk
        ids += part
    return ids


@pytest.mark.parametrize("filter", [{}, {"n": {"$gte": 0}}])
def test_a_scan_pages_over_ids_of_mixed_types(
    store: JobStore, database: DB, monkeypatch: pytest.MonkeyPatch, filter: dict[str, Any]
) -> None:
    monkeypatch.setattr("superduper_nb.jobs.chunks.CHUNK_SIZE", 2)
    database["docs"].insert_many([{"_id": id, "n": n} for n, id in enumerate(MIXED)])
    found = read_all(store, new({"filter": json_util.dumps(filter)}).record())
    assert sorted(map(repr, found)) == sorted(map(repr, MIXED))


def test_a_scan_resumes_where_its_cursor_is(store: JobStore, database: DB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superduper_nb.jobs.chunks.CHUNK_SIZE", 10)
    database["docs"].insert_many([{"_id": n} for n in range(25)])
    record = new({"filter": "{}"}).record()
    assert store.chunks.after(record, 19) == (24, [20, 21, 22, 23, 24])
    assert store.chunks.after(record, 24) is None


def test_a_scan_reads_no_more_of_the_index_than_its_chunk(store: JobStore, database: DB) -> None:
    database["docs"].insert_many([{"_id": n} for n in range(3000)])
    with_id = {"$and": [{}, {"$expr": {"$gt": ["$_id", {"$literal": 1500}]}}]}
    plan = database["docs"].find(with_id).sort("_id", 1).limit(1000).explain()
    assert plan["executionStats"]["totalKeysExamined"] <= 1001


def test_a_batch_is_stored_in_chunks_and_read_in_order(store: JobStore) -> None:
    ids = list(range(2 * CHUNK_SIZE + 5))
    work = store.chunks.create(iter(ids))
    assert work["chunks"] == 3
    assert read_all(store, new(work).record()) == ids


def test_a_small_batch_stands_in_its_job(store: JobStore, database: DB) -> None:
    work = store.chunks.create(MIXED)
    assert work == {"ids": MIXED}
    assert read_all(store, new(work).record()) == MIXED
    assert database["_sddb.jobs"].count_documents({}) == 0


def test_a_chunk_that_is_gone_is_an_error_not_an_end(store: JobStore, database: DB) -> None:
    work = store.chunks.create(range(2 * CHUNK_SIZE))
    database["_sddb.jobs"].delete_one({"_id": f"{work['batch']}:00000001"})
    with pytest.raises(NotFoundError, match="deleted"):
        read_all(store, new(work).record())


def test_chunks_go_with_the_last_job_that_needs_them(store: JobStore, database: DB) -> None:
    work = store.chunks.create(range(2000))
    first, second = new(work), new(work)
    store.create([first, second])
    for job in (first, second):
        assert database["_sddb.jobs"].count_documents({"kind": "chunk"}) == 2
        store.claim(job.id, "a")
        store.finish(job.id, "a", "succeeded")
        store.chunks.forget(store.get(job.id))
    assert database["_sddb.jobs"].count_documents({"kind": "chunk"}) == 0


def test_chunks_of_a_failed_job_are_kept_for_a_retry_and_go_with_it(store: JobStore, database: DB) -> None:
    job = new(store.chunks.create(range(2000)))
    store.create([job])
    store.claim(job.id, "a")
    store.finish(job.id, "a", "failed")
    store.chunks.forget(store.get(job.id))
    dated = {"kind": "chunk", "finished": {"$type": "date"}}
    assert database["_sddb.jobs"].count_documents(dated) == 2
    store.retry(job.id)
    assert database["_sddb.jobs"].count_documents({"kind": "chunk"}) == 2
    assert database["_sddb.jobs"].count_documents(dated) == 0


def test_logs_are_numbered_bounded_and_read_from_a_line_on(store: JobStore) -> None:
    id = one(store)
    line = {"time": datetime.now(UTC), "text": "hello", "stream": "stdout"}
    store.log(id, [line] * 3)
    store.log(id, [{**line, "text": "more"}])
    assert [found["n"] for found in store.logs(id)] == [0, 1, 2, 3]
    assert [found["text"] for found in store.logs(id, since=3)] == ["more"]
    store.log(id, [line] * LOG_LINES)
    store.log(id, [line])
    last = store.logs(id, since=LOG_LINES - 1)
    assert len(last) == 1
    assert "no more is kept" in last[0]["text"]


def test_ended_jobs_and_logs_are_deleted_after_a_while(store: JobStore, database: DB) -> None:
    store.prepare()
    lifetimes = [
        index["expireAfterSeconds"]
        for name in ("_sddb.jobs", "_sddb.logs")
        for index in database[name].index_information().values()
        if "expireAfterSeconds" in index
    ]
    assert lifetimes == [14 * 24 * 3600] * 2
    assert (
        database["_sddb.jobs"].find({"state": "pending"}).explain()["queryPlanner"]["winningPlan"]["stage"] == "FETCH"
    )


def test_jobs_are_listed_newest_first_in_pages(store: JobStore, world: World) -> None:
    ids = [one(store) for _ in range(5)]
    store.chunks.create(range(2000))  # chunks are no jobs
    page = store.list(limit=3)
    assert [job["_id"] for job in page] == ids[:1:-1]
    assert [job["_id"] for job in store.list(since=page[-1]["_id"])] == ids[1::-1]
    with pytest.raises(InvalidInputError, match="The states: pending"):
        store.list(status="done")
    with pytest.raises(NotFoundError, match="No job 'x'"):
        store.get("x")
