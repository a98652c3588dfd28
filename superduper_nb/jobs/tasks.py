"""What an executor runs: one chunk of one job, in this process or in a worker."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database

from superduper_nb.errors import InvalidInputError
from superduper_nb.jobs.outputs import Outcome, Refresh
from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.watchers import Watcher
from superduper_nb.models.loading import Loader

__all__ = ["execute", "run_chunk"]


def run_chunk(database: Database[Any], loader: Loader, job: dict[str, Any], ids: Sequence[Any]) -> Outcome:
    """Do a part of a job's work."""
    if job["kind"] != "outputs":
        raise InvalidInputError(f"This version knows no job of kind {job['kind']!r}. Update superduper_nb here.")
    watcher = loader.store.get("watcher", job["component"], collection=job["collection"])
    refresh = Refresh(database, loader, Watcher.from_component(watcher), retry_failed=job["retry_failed"])
    return refresh.run(ids)


def execute(database: str, job: str, ids: Sequence[Any]) -> Outcome:
    """Do a part of a job's work in a worker, which finds MongoDB by its own configuration."""
    opened, loader = _opened(database)
    return run_chunk(opened, loader, JobStore(opened).get(job), ids)


# A worker lives long: its connection and its loaded models are kept between tasks. They live in this module because
# globals of a pickled function would be new for each task.
@functools.cache
def _opened(database: str) -> tuple[Database[Any], Loader]:
    opened = _client()[database]
    return opened, Loader(opened)


@functools.cache
def _client() -> MongoClient[dict[str, Any]]:
    from superduper_nb.cluster.mongod import connect_options
    from superduper_nb.config import Config

    return MongoClient(Config.load().mongodb.address(), **connect_options())
