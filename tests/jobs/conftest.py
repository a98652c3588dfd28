from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from job_world import World
from pymongo import MongoClient
from pymongo.database import Database

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.jobs import tasks, worker
from superduper_nb.jobs.dispatcher import Dispatcher, Pool


@pytest.fixture(scope="package", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the secret that signs models in one folder, for the workers that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("DATA", "RUNTIME", "CONFIG"):
            patch.setenv(f"JUPYTER_{kind}_DIR", str(tmp_path_factory.mktemp(kind.lower())))
        yield


@pytest.fixture
def world(database: Database[dict[str, Any]]) -> World:
    """Return a database with what the tests register in it."""
    return World(database)


@pytest.fixture
def worker_here(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process a worker, too: it finds MongoDB as a worker does."""
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)
    yield
    if worker._client.cache_info().currsize:
        worker._client().close()
    worker._client.cache_clear()
    worker.opened.cache_clear()
    worker.policy.cache_clear()
    tasks._kept.clear()


@pytest.fixture(scope="package")
def pool(_home: None, mongo_uri: str) -> Iterator[DaskPool]:
    """Return two real worker processes, shared by all tests: those that kill some of it leave it whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        pool = DaskPool(workers=2, environment={"SUPERDUPER_MONGODB__URI": mongo_uri})
        pool.start()
    yield pool
    pool.close()


@pytest.fixture
def dispatch(mongo_uri: str) -> Iterator[Callable[..., Dispatcher]]:
    """Start dispatchers, which are closed after the test."""
    begun: list[tuple[Dispatcher, MongoClient[dict[str, Any]]]] = []

    def start(pool: Pool, **options: Any) -> Dispatcher:
        client: MongoClient[dict[str, Any]] = MongoClient(options.pop("uri", mongo_uri), w="majority")
        dispatcher = Dispatcher(client, pool, **options)
        begun.append((dispatcher, client))
        dispatcher.start()
        return dispatcher

    yield start
    for dispatcher, client in begun:
        dispatcher.close()
        client.close()
