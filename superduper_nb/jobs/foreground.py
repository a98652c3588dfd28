"""Run jobs here and now: the whole cluster in one process, same records, same code."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from typing import Any

from pymongo.database import Database

from superduper_nb.documents.download import DownloadPolicy
from superduper_nb.errors import Interrupted
from superduper_nb.jobs.kinds import work_of
from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.running import RunningJob
from superduper_nb.jobs.tasks import run_part
from superduper_nb.models.loading import Loader

__all__ = ["owner_name", "run_foreground"]


def owner_name() -> str:
    """Name this process in leases."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_foreground(
    database: Database[Any], loader: Loader, ids: Collection[str], policy: DownloadPolicy | None = None
) -> None:
    """Run these jobs to their ends, parents first; fetch what the policy allows."""
    store, owner = JobStore(database), owner_name()
    store.prepare()
    while True:
        ready = store.ready(limit=len(ids), only=ids)
        if not ready:
            return
        for job in ready:
            if claimed := store.claim(job["_id"], owner):
                _run(RunningJob(store, claimed, owner), database, loader, policy)


def _run(job: RunningJob, database: Database[Any], loader: Loader, policy: DownloadPolicy | None) -> None:
    job.worker = job.owner
    try:
        work = work_of(database, loader, job.record, policy)
        while part := job.next_part():
            job.out.add(part)

            def told(done: int, part: Any = part) -> None:
                part.partial = done
                job.report()

            outcome = run_part(work, job.store, job.record, part.ids, told=told)
            job.out.discard(part)
            job.count(part, outcome)
            job.close(part)
            if not job.report():
                return
    except Exception as error:
        job.error = error
    except KeyboardInterrupt as error:
        job.store.cancel(job.id)
        what = f"job {job.id} ({job.record['name']}) is cancelled; what it has written stays"
        raise Interrupted(f"{what}, docs.jobs[{job.id!r}].retry() does the rest.") from error
    except BaseException:
        job.store.cancel(job.id)
        raise
    job.finish()
