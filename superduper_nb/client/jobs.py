"""Jobs as users hold them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from superduper_nb.errors import DeadlineError, Interrupted, JobCancelledError, JobFailedError, NotFoundError
from superduper_nb.jobs import FINAL_STATES
from superduper_nb.jobs.duplicates import PairStore
from superduper_nb.jobs.layouts import LayoutStore

if TYPE_CHECKING:
    from superduper_nb.client.workspace import Workspace
    from superduper_nb.search.measures import Floats

__all__ = ["Duplicates", "Job", "JobList", "Jobs", "Layout"]

log = logging.getLogger(__name__)

_POLL_FIRST_S: Final = 0.005
_POLL_LAST_S: Final = 0.25


class Done(NamedTuple):
    """How far a job is.

    Attributes
    ----------
    done, failed : int
        Documents that were looked at, and those of them that failed.
    total : int or None
        All there are; None: not known yet.
    """

    done: int
    total: int | None
    failed: int


class Job:
    """A piece of work that was queued; everything it says is read from its record when it is asked.

    Parameters
    ----------
    workspace : Workspace
        Of its database.
    id : str
        Its identifier.
    """

    def __init__(self, workspace: Workspace, id: str) -> None:
        self._workspace = workspace
        self.id = id

    @property
    def record(self) -> dict[str, Any]:
        """The whole record, as it is now."""
        return self._workspace.jobs.get(self.id)

    @property
    def name(self) -> str:
        """What it works on: a watcher's identifier, say."""
        return str(self.record["name"])

    @property
    def status(self) -> str:
        """``pending``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``blocked`` (by a failed parent)."""
        return str(self.record["state"])

    @property
    def progress(self) -> Done:
        """Documents done, in all (None: not known yet), and failed."""
        progress = self.record["progress"]
        return Done(progress["done"], progress["total"], progress["failed"])

    @property
    def error(self) -> str | None:
        """Why it failed, in one line."""
        error = self.record["error"]
        return error and f"{error['type']}: {error['message']}"

    @property
    def failures(self) -> dict[str, Any]:
        """Documents that failed: their ``count``, and the ``first`` of them as ``{"_id", "error"}``."""
        return dict(self.record["failures"])

    @property
    def workers(self) -> int:
        """How many workers its cluster has at the moment; 0 where jobs run in this process."""
        return int(self._workspace.services.status()["components"]["jobs"].get("workers") or 0)

    def logs(self, since: int = 0) -> list[dict[str, Any]]:
        """List what it printed, from line `since` on."""
        return self._workspace.jobs.logs(self.id, since)

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until it ends; a warning is logged where single documents failed.

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Raises
        ------
        JobFailedError
            It failed, or is blocked by one that did.
        JobCancelledError
            It was cancelled.
        DeadlineError
            It did not end in time; it goes on.
        Interrupted
            Somebody pressed stop; it goes on, too, as others may wait for it.
        """
        try:
            record = self._ended(timeout)
        except Interrupted:
            raise
        except KeyboardInterrupt as error:
            raise Interrupted.waiting_for(self.id) from error
        self._workspace.mark()
        if record["kind"] == "training":
            self._workspace.announce([])  # it may have registered new versions of models
        if record["state"] == "succeeded":
            if told := _failed_alone(record):
                log.warning(told)
            return self
        if record["state"] == "cancelled":
            raise JobCancelledError(
                f"Job {self.id} ({record['name']}) was cancelled. Queue it again: docs.jobs[{self.id!r}].retry()."
            )
        raise JobFailedError(self._why(record))

    def _ended(self, timeout: float | None) -> dict[str, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _POLL_FIRST_S
        with suppress(DeadlineError):  # the server is busy, and finds it without this
            self._workspace.services.notify(self._workspace.name, [self.id])
        while (record := self.record)["state"] not in FINAL_STATES:
            if deadline is not None and time.monotonic() > deadline:
                done, total, _ = self.progress
                raise DeadlineError(
                    f"Job {self.id} ({record['name']}) is at {done}/{total or '?'} after {timeout:g} s; it goes on."
                )
            time.sleep(pause)
            pause = min(_POLL_LAST_S, pause * 1.5)
        return record

    def _why(self, record: dict[str, Any]) -> str:
        if record["state"] == "blocked":
            parent = Job(self._workspace, record["blocked_by"])
            reason = parent.error or parent.status
            return f"Job {self.id} ({record['name']}) waits for {parent.name}, which did not succeed: {reason}"
        error = record["error"]
        return f"Job {self.id} ({record['name']}) failed: {error['type']}: {error['message']}"

    def cancel(self) -> Job:
        """Stop it; what it has written stays."""
        self._workspace.jobs.cancel(self.id)
        return self

    def retry(self) -> Job:
        """Queue it again, with the documents that failed, and what follows from it."""
        jobs = self._workspace.jobs
        jobs.retry(self.id)
        self._workspace.announce([self.id, *{job["_id"] for job in jobs.behind(self.id)}])
        return self

    def __repr__(self) -> str:
        try:
            record = self.record
        except NotFoundError:
            return f"<Job {self.id}: its record is gone>"
        progress = record["progress"]
        failed = f", {progress['failed']} failed" if progress["failed"] else ""
        total = "?" if progress["total"] is None else progress["total"]
        return f"<Job {record['name']} {record['state']} {progress['done']}/{total}{failed} ({self.id})>"


def _failed_alone(record: Mapping[str, Any]) -> str | None:
    """Return what is to be said of documents that failed in a job that succeeded."""
    failures = record["failures"]
    if not failures["count"]:
        return None
    first = next(iter(failures["first"]), {"_id": "?", "error": "?"})
    failed = f"{failures['count']} of {record['progress']['total']} documents failed"
    why = f"the first _id {first['_id']!r}: {first['error'].rstrip('.'):.200}"
    return f"{record['name']}: {failed}, {why}. docs.jobs[{record['_id']!r}].failures tells of them."


class Duplicates(Job):
    """A search for near-duplicates: a job, and what it found."""

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Yield the pairs, best first, as ``{"a": _id, "b": _id, "score": …}``; read as they are asked for.

        Raises
        ------
        JobFailedError, DeadlineError
            As `wait`; it is waited for.
        """
        self.wait()
        return PairStore(self._workspace.store.database).read(self.id)

    @property
    def least(self) -> float:
        """What a pair had to score: `min_score`, or more where there were more pairs than the limit."""
        run = PairStore(self._workspace.store.database).run(self.id)
        return float(run.get("least", run["min_score"]))


class Layout(Job):
    """Documents as points of a plane: a job, and what it computed."""

    def places(self) -> tuple[list[Any], Floats]:
        """Return the ``_id`` of each document, and an array of shape (n, 2).

        Raises
        ------
        JobFailedError, DeadlineError
            As `wait`; it is waited for.
        """
        self.wait()
        return LayoutStore(self._workspace.store.database).read(self.id)


class Jobs(Mapping[str, Job]):
    """The jobs that follow from one call, by name, in the order in which they run."""

    def __init__(self, workspace: Workspace, ids: Mapping[str, str]) -> None:
        self._jobs = {name: Job(workspace, id) for name, id in ids.items()}

    def __getitem__(self, name: str) -> Job:
        return self._jobs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def wait(self, timeout: float | None = None) -> Jobs:
        """Wait until all have ended; raise `JobFailedError` naming the first that failed (see `Job.wait`)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for job in self._jobs.values():
            job.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self

    def cancel(self) -> Jobs:
        """Stop them all; what they have written stays."""
        for job in self._jobs.values():
            job.cancel()
        return self

    def __repr__(self) -> str:
        return "Jobs(" + ", ".join(map(repr, self._jobs.values())) + ")"


class JobList:
    """The recorded jobs of a database or a collection: ``docs.jobs[id]``, ``list(docs.jobs)``, ``docs.jobs.list``."""

    def __init__(self, workspace: Workspace, collection: str | None = None) -> None:
        self._workspace, self._collection = workspace, collection

    def __getitem__(self, id: str) -> Job:
        self._workspace.jobs.get(id)
        return Job(self._workspace, id)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.list())

    def list(self, status: str | None = None, *, since: str | None = None, limit: int = 100) -> list[Job]:
        """List jobs, newest first.

        Parameters
        ----------
        status : str, optional
            Only those in this state.
        since : str, optional
            Those before this id: the next page.
        limit : int, default 100
        """
        records = self._workspace.jobs.list(status, since, limit, self._collection)
        return [Job(self._workspace, record["_id"]) for record in records]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.list(limit=20))) or "<no jobs>"
