"""The whole cluster on this machine, for a notebook server to hold."""

from __future__ import annotations

import contextlib
import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from typing import Any

from pymongo import MongoClient

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.cluster.mongod import Mongod, connect_options, knock, wrap_uri_errors
from superduper_nb.components.store import ComponentStore
from superduper_nb.components.trust import TRUST_KEY, trust_key
from superduper_nb.config import Config
from superduper_nb.jobs.dispatcher import Dispatcher
from superduper_nb.jobs.follower import Follower
from superduper_nb.services.child import MONGODB_URI, current_version, load_model, registered_types
from superduper_nb.services.engines import Engines
from superduper_nb.serving import Body, Form, ModelServer, Prediction, Stream, UnreadBody
from superduper_nb.serving.cluster import OnCluster

__all__ = ["LocalServices"]


class LocalServices(Engines):
    """The whole cluster on this machine, for a notebook server to hold: MongoDB, workers, search, model server.

    Parameters
    ----------
    config : Config
        Where MongoDB is, how many workers.
    on_event : callable, optional
        Told of job events (`Dispatcher`).
    loop : asyncio.AbstractEventLoop, optional
        Where requests come from, which the model server may share; not that of the thread that closes the services.

    Attributes
    ----------
    mongo_uri : str
        With credentials: for kernels of this user on this machine.

    Raises
    ------
    MongoUnavailableError, ServiceError
        A part does not start; what had started is stopped again.
    """

    mode = "notebook server"

    def __init__(
        self,
        config: Config,
        *,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        loop: AbstractEventLoop | None = None,
    ) -> None:
        with contextlib.ExitStack() as undo:
            self._mongod, self.mongo_uri = _mongodb(config, undo)
            with wrap_uri_errors(config.mongodb.where):
                client: MongoClient[dict[str, Any]] = MongoClient(self.mongo_uri, **connect_options())
                undo.callback(client.close)
                knock(client)
            self._pool = _pool(config, self.mongo_uri)
            undo.callback(self._pool.close)
            self._server = _model_server(config, client, self.mongo_uri, self._pool, loop)
            super().__init__(client, self._server, config.linear_algebra, self._pool)
            undo.callback(super().close)
            self._pool.start()
            self._dispatcher = Dispatcher(
                client,
                self._pool,
                in_flight=config.jobs.in_flight,
                batch_timeout=config.jobs.batch_timeout,
                on_event=on_event,
            )
            undo.callback(self._dispatcher.close)
            self._dispatcher.start()
            self._follower = Follower(client, self._dispatcher.notify)
            undo.callback(self._follower.close)
            self._follower.start()
            self._undo = undo.pop_all()

    def describe_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how an index is; see that it and the models that encode its queries are on their way into memory."""
        described = super().describe_index(database, collection, id)
        index = ComponentStore(self.client[database]).get("semantic_index", id, collection=collection)
        for model in set(index.definition["models"]):
            self._models.submit(database, model, [])  # its import of torch alone takes seconds
        return described

    def ask(
        self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float
    ) -> Future[Prediction]:
        """Have a model applied to what came over HTTP."""
        return self._server.ask(database, model, body, form=form, timeout=timeout)

    def open(self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float) -> Stream:
        """Have a model's output yielded for what came over HTTP."""
        return self._server.open(database, model, body, form=form, timeout=timeout)

    def _encode(self, database: str, model: str, inputs: list[Any], version: int | None) -> list[Any]:
        # A tensor would have the event loop import torch, which holds everything up for a second and more.
        return list(self._server.submit(database, model, inputs, version=version, form="arrays").result().outputs)

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Have the dispatcher look at once."""
        super().notify(database, jobs)
        self._dispatcher.notify(database)

    def close(self) -> None:
        """Stop everything that was started; harmless when done twice."""
        self._undo.close()

    def _jobs_status(self) -> dict[str, Any]:
        return self._pool.describe()

    def _search_status(self) -> dict[str, Any]:
        return super()._search_status() | {"where": "the notebook server"}

    def _mongodb_status(self) -> dict[str, Any]:
        status = super()._mongodb_status() | {"embedded": self._mongod is not None}
        if self._mongod is not None and status["state"] != "running":
            status["error"] = self._mongod.status()["error"] or status["error"]
        return status


def _mongodb(config: Config, undo: contextlib.ExitStack) -> tuple[Mongod | None, str]:
    settings = config.mongodb
    if (uri := settings.address()) is not None:
        return None, uri
    mongod = undo.enter_context(Mongod.attach(settings.data, cache_gb=settings.cache_gb))
    return mongod, mongod.uri


def _workers(config: Config) -> int:
    return config.jobs.workers or os.cpu_count() or 1


def _pool(config: Config, mongo_uri: str) -> DaskPool:
    settings = config.jobs
    return DaskPool(
        address=settings.scheduler,
        tls=settings.certificates,
        max_workers=settings.max_workers,
        workers=_workers(config),
        threads=settings.threads,
        memory=_bytes(settings.memory_gb),
        resources=settings.resources,
        environment=_workers_environment(config, mongo_uri),
    )


def _workers_environment(config: Config, mongo_uri: str) -> dict[str, str]:
    """Return what workers can't know: other machines have no file with our key, and their own way to MongoDB."""
    if config.jobs.scheduler:
        return {TRUST_KEY: trust_key().hex()}
    return {MONGODB_URI: mongo_uri, **config.downloads.environment()}


def _model_server(
    config: Config, client: MongoClient[Any], mongo_uri: str, pool: DaskPool, loop: AbstractEventLoop | None
) -> ModelServer:
    settings = config.model_server
    on_cluster = settings.placement == "cluster"
    uri = None if on_cluster else mongo_uri  # a worker has its own way to MongoDB in its environment
    return ModelServer(
        partial(load_model, uri),
        partial(current_version, uri),
        types=partial(registered_types, uri),
        newest=lambda database, model: ComponentStore(client[database]).newest("model", model),
        place=OnCluster(pool, settings.resources) if on_cluster else None,
        replicas=settings.replicas,
        memory=_bytes(settings.memory_gb),
        loop=loop,
    )


def _bytes(gb: float | None) -> int | None:
    return int(gb * 2**30) if gb else None
