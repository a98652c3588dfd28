"""Jobs as users hold them: waited for, cancelled, queued again; and what a write does while nobody works."""

from __future__ import annotations

from typing import Any

import pytest

import superduper_nb as sd
from superduper_nb.client.connecting import _carried
from superduper_nb.client.jobs import Jobs
from superduper_nb.config import Config
from superduper_nb.errors import DeadlineError, JobCancelledError, JobFailedError, ServerUnavailableError
from superduper_nb.jobs import JobStore, NewJob
from superduper_nb.jobs.backfill import matching
from superduper_nb.remote import RemoteServices

Docs = sd.Collection[Any]


@pytest.fixture
def store(docs: Docs) -> JobStore:
    return docs._workspace.jobs


@pytest.fixture
def two(docs: Docs, store: JobStore) -> Jobs:
    """Return a job that somebody else works on, and one that waits for it."""
    first = NewJob("outputs", "length/text", "docs", "length/text", {"ids": [1, 2]}, 2)
    second = NewJob("outputs", "words/text", "docs", "words/text", {"ids": [1, 2]}, 2, parents=(first.id,))
    store.create([first, second])
    store.claim(first.id, "somebody")
    return Jobs(docs._workspace, {"first": first.id, "second": second.id})


def test_wait_gives_up_after_its_timeout_and_the_job_goes_on(two: Jobs) -> None:
    with pytest.raises(DeadlineError, match=r"\(length/text\) is at 0/2 after 0.1 s; it goes on"):
        two["first"].wait(timeout=0.1)
    with pytest.raises(DeadlineError):
        two.wait(timeout=0.1)
    assert [job.status for job in two.values()] == ["running", "pending"]


def test_wait_names_the_first_failure_and_what_waits_for_it(two: Jobs, store: JobStore) -> None:
    store.finish(two["first"].id, "somebody", "failed", {"type": "ValueError", "message": "bad", "traceback": ""})
    with pytest.raises(JobFailedError, match=r"\(length/text\) failed: ValueError: bad"):
        two.wait(5)
    with pytest.raises(JobFailedError, match=r"\(words/text\) waits for length/text, .*: ValueError: bad"):
        two["second"].wait(5)


def test_cancel_ends_a_wait_and_retry_releases_what_was_blocked(two: Jobs, docs: Docs) -> None:
    two["first"].cancel()
    with pytest.raises(JobCancelledError, match="was cancelled"):
        two.wait(5)
    assert [job.status for job in two.values()] == ["cancelled", "blocked"]
    docs.create_model("words", len)
    docs.create_watcher("words", "text")
    two["first"].retry()
    assert [job.status for job in two.wait(5).values()] == ["succeeded", "succeeded"]


def test_a_write_succeeds_while_the_notebook_server_is_away(client: sd.Client[Any], docs: Docs, stored: Any) -> None:
    gone = RemoteServices("http://127.0.0.1:1/", "token", carried=_carried(client))
    client._use(gone, "a server that is gone", Config())
    jobs = docs.insert_many([{"_id": 1, "text": "one"}, {"_id": 2, "text": "two"}]).jobs
    assert stored.count_documents({}) == 2
    assert jobs["length/text"].record["hold"] is None  # whoever comes next may begin
    with pytest.raises(ServerUnavailableError):
        jobs.wait(5)


def test_a_cell_that_is_run_again_waits_for_what_is_under_way(findable: Docs, store: JobStore) -> None:
    whole = NewJob("outputs", "words/text", "docs", "words/text", matching({}), 2)
    store.create([whole, NewJob("outputs", "words/text", "docs", "words/text", {"ids": [1]}, 1)])

    def again() -> list[dict[str, str]]:
        made = findable.create_watcher("words", "text"), findable.create_semantic_index("meaning", ["words"], ["text"])
        return [{name: job.id for name, job in jobs.items()} for jobs in made]

    assert again() == [{"words/text": whole.id}] * 2
    store.cancel(whole.id)
    assert again() == [{}, {}]


def test_documents_that_failed_are_told_to_who_waits(docs: Docs, caplog: pytest.LogCaptureFixture) -> None:
    jobs = docs.insert_many([{"_id": 1, "text": "one"}, {"_id": 2, "text": 5}, {"_id": 3}]).jobs
    assert caplog.messages == []
    jobs.wait()
    assert caplog.messages == [
        "length/text: 1 of 3 documents failed, the first _id 2: TypeError: object of type 'int' has no len(). "
        f"docs.jobs[{jobs['length/text'].id!r}].failures tells of them."
    ]
    assert jobs["length/text"].progress == (3, 3, 1)
    assert repr(jobs["length/text"].progress) == "Done(done=3, total=3, failed=1)"
