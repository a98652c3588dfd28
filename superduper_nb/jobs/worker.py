"""What a worker process keeps between tasks: its connection, the components it has loaded, whose turn it is."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database

from superduper_nb.documents.download import DownloadPolicy
from superduper_nb.jobs.turns import Turns
from superduper_nb.models.loading import Loader

__all__ = ["opened", "policy", "turns"]


@functools.cache
def turns() -> Turns:
    """Return who computes in this process."""
    # Our own pool says how many of a worker's threads compute at one time; elsewhere OMP_NUM_THREADS does so, too.
    return Turns(max(1, int(os.environ.get("OMP_NUM_THREADS") or 1)))


@functools.cache
def opened(database: str) -> tuple[Database[Any], Loader]:
    """Return a database as this worker's own configuration finds it, and what loads its components."""
    there = _client()[database]
    return there, Loader(there)


@functools.cache
def policy() -> DownloadPolicy:
    """Return what may be fetched."""
    from superduper_nb.config import Config

    return DownloadPolicy(**Config.load().downloads.values())


@functools.cache
def _client() -> MongoClient[dict[str, Any]]:
    from superduper_nb.cluster.mongod import connect_options
    from superduper_nb.config import Config

    logging.getLogger().setLevel(logging.INFO)  # a worker's log is that of its jobs
    return MongoClient(Config.load().mongodb.address(), **connect_options())
