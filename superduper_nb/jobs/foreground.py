"""Run jobs here and now: the whole cluster in one process, same records, same code."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from typing import Any, Final

from pymongo.database import Database
from toolz import partition_all

from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.running import RunningJob
from superduper_nb.jobs.tasks import run_chunk
from superduper_nb.models.loading import Loader

__all__ = ["owner_name", "run_foreground"]

_STEP: Final = 200
"""Documents between two reports: progress moves, and the lease is renewed, also with a slow model."""


def owner_name() -> str:
    """Name this process in leases."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_foreground(database: Database[Any], loader: Loader, ids: Collection[str]) -> None:
    """Run these jobs to their ends, parents first."""
    store, owner = JobStore(database), owner_name()
    while True:
        ready = [job for job in store.ready() if job["_id"] in ids]
        if not ready:
            return
        for job in ready:
            if claimed := store.claim(job["_id"], owner):
                _run(RunningJob(store, claimed, owner), database, loader)


def _run(job: RunningJob, database: Database[Any], loader: Loader) -> None:
    try:
        while part := job.next_part():
            for ids in partition_all(_STEP, part.ids):
                job.count(part, run_chunk(database, loader, job.record, list(ids)))
                if not job.report():
                    return
            job.close(part)
    except Exception as error:
        job.finish(error)
    except BaseException:
        job.store.cancel(job.id)  # Ctrl-C: what is written stays, the rest waits for a retry
        raise
    else:
        job.finish()
